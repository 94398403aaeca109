//! Signals of other containers that have something in common with a story.

use std::collections::BTreeSet;

use portcullis_proto::v1::{RelatedSignal, Signal};
use prost::Message;

use super::{endpoint, processes::head};
use crate::clock::ns;

/// So many are told, of so many encoded bytes at most.
const TOLD: usize = 50;
const TOLD_BYTES: usize = 512 << 10;
/// Names, destinations and the like that are looked for.
const MARKS: usize = 64;
/// Bytes of what is named in a reason.
const NAMED_BYTES: usize = 200;

/// What the story has that others may have as well, and those that do.
#[derive(Debug, Default)]
pub struct Common {
    destinations: BTreeSet<String>,
    names: BTreeSet<String>,
    commands: BTreeSet<(String, Vec<String>)>,
    tools: BTreeSet<String>,
    image: String,
    pod: (String, String),
    moment_ns: i64,
    found: Vec<(u32, RelatedSignal)>,
}

/// Where a signal's process connected or sent to.
fn destinations(signal: &Signal) -> impl Iterator<Item = String> {
    use portcullis_proto::v1::network_operation::Kind;
    let operations = signal.network.iter().flat_map(|network| &network.operations);
    let towards = operations.filter(|operation| matches!(operation.kind(), Kind::Connect | Kind::Send));
    towards.filter_map(|operation| operation.endpoint.as_ref()).chain(signal.remote.as_ref()).map(endpoint)
}

fn dns_names(signal: &Signal) -> impl Iterator<Item = &String> {
    let operations = signal.network.iter().flat_map(|network| &network.operations);
    operations.map(|operation| &operation.dns_name).filter(|name| !name.is_empty())
}

fn command(signal: &Signal) -> Option<(String, Vec<String>)> {
    let argv = &signal.process.as_ref()?.argv;
    // A bare name says nothing.
    (argv.len() > 1).then(|| (signal.tool.as_ref().map(|tool| tool.id.clone()).unwrap_or_default(), argv.clone()))
}

impl Common {
    /// Of the story's signals.
    pub fn of(signals: &[Signal], subject: Option<&Signal>) -> Self {
        let newest = subject.or(signals.last());
        let container = newest.and_then(|signal| signal.container.as_ref());
        let pod = container.and_then(|container| container.pod.as_ref());
        Self {
            destinations: signals.iter().flat_map(destinations).take(MARKS).collect(),
            names: signals.iter().flat_map(dns_names).take(MARKS).cloned().collect(),
            commands: signals.iter().filter_map(command).take(MARKS).collect(),
            tools: signals.iter().filter_map(|signal| Some(signal.tool.as_ref()?.id.clone())).take(MARKS).collect(),
            image: container.map(|container| container.image.clone()).unwrap_or_default(),
            pod: pod.map(|pod| (pod.namespace.clone(), pod.name.clone())).unwrap_or_default(),
            moment_ns: newest.map_or(0, |signal| ns(signal.time.as_ref())),
            found: Vec::new(),
        }
    }

    /// Keeps another container's signal if it has enough in common.
    pub fn consider(&mut self, signal: Signal) {
        let (mut score, mut reasons) = (0, Vec::new());
        let mut has = |points: u32, reason: String| {
            score += points;
            reasons.push(reason);
        };
        let mut theirs = destinations(&signal);
        if let Some(same) = theirs.find(|destination| self.destinations.contains(destination)) {
            has(8, format!("same destination {same}"));
        }
        drop(theirs);
        if let Some(same) = dns_names(&signal).find(|name| self.names.contains(*name)) {
            has(8, format!("same DNS name {}", head(same, NAMED_BYTES)));
        }
        if command(&signal).is_some_and(|command| self.commands.contains(&command)) {
            has(4, "same command".to_owned());
        }
        let container = signal.container.as_ref();
        let pod = container.and_then(|container| container.pod.as_ref());
        if pod.is_some_and(|pod| (&pod.namespace, &pod.name) == (&self.pod.0, &self.pod.1)) {
            has(4, "same pod".to_owned());
        }
        if container.is_some_and(|container| !container.image.is_empty() && container.image == self.image) {
            has(2, format!("same image {}", head(&self.image, NAMED_BYTES)));
        }
        if let Some(tool) = signal.tool.as_ref().filter(|tool| self.tools.contains(&tool.id)) {
            has(2, format!("same tool {}", tool.id));
        }
        if score > 0 {
            self.found.push((score, RelatedSignal { signal: Some(signal), reasons }));
            if self.found.len() >= 4 * TOLD {
                self.shorten();
            }
        }
    }

    /// The most in common first, and of those with as much the nearest in time.
    fn shorten(&mut self) {
        let moment = self.moment_ns;
        self.found.sort_by_key(|(score, related)| {
            let time = related.signal.as_ref().map_or(0, |signal| ns(signal.time.as_ref()));
            (std::cmp::Reverse(*score), time.abs_diff(moment))
        });
        self.found.truncate(TOLD);
    }

    /// Those that were kept.
    pub fn into_list(mut self) -> Vec<RelatedSignal> {
        self.shorten();
        let mut bytes = 0;
        let fits = |related: &RelatedSignal| {
            bytes += related.encoded_len();
            bytes <= TOLD_BYTES
        };
        self.found.into_iter().map(|(_, related)| related).take_while(fits).collect()
    }
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::Endpoint;

    use super::{
        super::testing::{second, signal, web_shell},
        *,
    };

    #[test]
    fn the_most_in_common_comes_first() {
        let mut story = web_shell();
        story[2].remote = Some(Endpoint { address: "10.0.0.1".into(), port: 4444 });
        let mut common = Common::of(&story, Some(&story[1]));
        let mut same_end = signal(11, 9, "perl", &["perl"]);
        same_end.remote = story[2].remote.clone();
        let mut same_command = story[1].clone();
        (same_command.id, same_command.time) = (12, Some(second(500)));
        let mut same_tool = signal(13, 9, "nc", &["nc", "-h"]);
        same_tool.time = Some(second(400));
        let nothing = signal(14, 9, "curl", &["curl"]);
        for signal in [nothing, same_tool, same_end, same_command] {
            common.consider(signal);
        }
        let list = common.into_list();
        let told: Vec<_> = list.iter().map(|one| (one.signal.as_ref().unwrap().id, one.reasons.join(", "))).collect();
        assert_eq!(
            told,
            [
                (11, "same destination 10.0.0.1:4444".to_owned()),
                (12, "same command, same tool nc".to_owned()),
                (13, "same tool nc".to_owned()),
            ]
        );
    }

    #[test]
    fn memory_is_bounded() {
        let story = web_shell();
        let mut common = Common::of(&story, None);
        for id in 0..5000 {
            common.consider(signal(id, 9, "nc", &["nc"]));
            assert!(common.found.len() <= 4 * TOLD);
        }
        assert_eq!(common.into_list().len(), TOLD);
        let mut common = Common::of(&story, None);
        for id in 0..60 {
            let message = "x".repeat(40_000);
            common.consider(Signal { message, ..signal(id, 9, "nc", &["nc"]) });
        }
        let list = common.into_list();
        assert!(list.len() > 5 && list.iter().map(Message::encoded_len).sum::<usize>() <= TOLD_BYTES);
    }
}
