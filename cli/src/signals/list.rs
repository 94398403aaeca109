//! `signals list`.

use std::io::{self, BufWriter, Write};

use clap::ValueEnum;
use portcullis_proto::v1::{ListSignalsRequest, SignalOrder};

use super::{filter::Filter, row};
use crate::{
    args::Global,
    client,
    exit::note,
    output::{Format, Sequence},
    view::Signal,
};

/// So many at a time: enough for few round trips, and few enough for little memory.
const PAGE: u32 = 200;

/// List stored signals, newest first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// All that are stored
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Oldest first
    #[arg(long)]
    oldest_first: bool,
    /// What comes first: the newest, the most severe, or what was repeated most
    #[arg(long, value_enum, default_value = "time", conflicts_with = "oldest_first")]
    order: Order,
    #[command(flatten)]
    filter: Filter,
}

/// `--order`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    Time,
    Severity,
    Count,
}

impl From<Order> for SignalOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::Time => Self::Time,
            Order::Severity => Self::Severity,
            Order::Count => Self::Count,
        }
    }
}

impl Args {
    /// Lists them a page at a time, so that a long history takes no memory.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let filter = self.filter.to_proto(&agent).await?;
        let mut signals = agent.signals();
        let mut out = BufWriter::new(io::stdout().lock());
        let structured = matches!(global.output, Format::Json | Format::Yaml);
        let wide = global.output == Format::Wide;
        let mut sequence = Sequence::new(global.output == Format::Yaml);
        let mut table = row::table(wide, global.screen());
        let limit = if self.all { u64::MAX } else { self.limit };
        let mut left = limit;
        let mut page_token = String::new();
        loop {
            let page_size = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
            let request = ListSignalsRequest {
                filter: Some(filter.clone()),
                page_size,
                page_token,
                oldest_first: self.oldest_first,
                order: SignalOrder::from(self.order).into(),
            };
            let response =
                signals.list_signals(client::request(request)).await.map_err(|status| agent.error(&status))?;
            let page = response.into_inner();
            let found: Vec<Signal> =
                page.signals.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)).map(Into::into).collect();
            left = left.saturating_sub(found.len() as u64);
            if structured {
                found.iter().try_for_each(|signal| sequence.push(&mut out, signal))?;
            } else if !found.is_empty() {
                let rows: Vec<_> = found.iter().map(|signal| row::row(signal, wide)).collect();
                table.write(&mut out, &rows)?;
            }
            page_token = page.next_page_token;
            if page_token.is_empty() || left == 0 {
                break;
            }
        }
        if structured {
            sequence.finish(&mut out)?;
        }
        out.flush()?;
        if !structured && left == limit {
            note("no signals");
        } else if !structured && !page_token.is_empty() {
            note("there are more: --limit N or --all");
        }
        Ok(())
    }
}
