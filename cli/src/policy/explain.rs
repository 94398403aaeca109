//! `policy explain`.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::PathBuf,
};

use anyhow::{Context, anyhow, bail};
use portcullis_policy::{
    arrange::{Arrangement, arrange},
    catalog::Catalog,
    compile::Compiled,
    decide::{Execution, basename},
    explain::explain,
    identity::compile,
    policyset::{self, PolicySet},
    select::Facts,
    source::{self, SHIPPED_DEFAULT},
    yaml,
};
use portcullis_proto::v1::{self, ExplainPolicyRequest};

use super::{
    explanation::{Explanation, Finding, Outcome},
    files::{self, CatalogArgs},
};
use crate::{
    args::Global,
    client,
    escape::{shell_command, text},
    output::{self, Format, Screen, Tone},
    view::{Place, Verdict},
};

/// Tell what would come of an execution, and why
///
/// Which policy a container would have and why not another, which rule and which exception decide, and what happens on each
/// backend. Nothing is executed. Against the agent, unless there are files: then offline, with these policies and, where none
/// of them is for all containers, the shipped default.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The command, behind --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
    #[command(flatten)]
    container: Where,
    #[command(flatten)]
    execution: How,
    /// Offline: with this policy file; may be given several times
    #[arg(long = "file", value_name = "FILE", help_heading = "Offline")]
    files: Vec<PathBuf>,
    /// Offline: with the policy files of this directory
    #[arg(long, value_name = "DIR", help_heading = "Offline")]
    directory: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Offline")]
    catalog: CatalogArgs,
}

/// What is known of the container. What is not given matches no selection.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The container; what is not given, no policy's selection matches")]
struct Where {
    /// Its pod's namespace, or, without Kubernetes, containerd's
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Its pod's name
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Its name in the pod, or, without Kubernetes, containerd's id
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Its image
    #[arg(long)]
    image: Option<String>,
    /// An annotation; may be given several times
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = key_value)]
    annotations: Vec<(String, String)>,
}

/// How the command is executed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The execution")]
struct How {
    /// By this user, as the node sees it
    #[arg(long, value_name = "UID", default_value_t = 0)]
    user: u32,
    /// The file that is executed, links followed; without it, of the command's name
    #[arg(long, value_name = "PATH")]
    exe: Option<String>,
    /// The executable that calls it, then, given again, those before; nearest first
    #[arg(long = "ancestor", value_name = "PATH")]
    ancestors: Vec<String>,
    /// What is remarkable about where the file is; may be given several times
    #[arg(long = "place", value_name = "PLACE")]
    places: Vec<Place>,
    /// An internet socket is its standard input or output
    #[arg(long)]
    stdio_socket: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it has no =, as in example.org/tier=web")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Args {
    /// Asks the agent, or looks at the files; and shows the answer.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let explanation =
            if self.files.is_empty() && self.directory.is_none() { self.ask(global).await? } else { self.look()? };
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json => output::json(&mut out, &explanation)?,
            Format::Yaml => output::yaml(&mut out, &explanation)?,
            Format::Table | Format::Wide => show(&mut out, &explanation, &self.argv, global.screen())?,
        }
        Ok(out.flush()?)
    }

    async fn ask(&self, global: &Global) -> anyhow::Result<Explanation> {
        let Where { namespace, pod, container, image, annotations } = &self.container;
        let known = |text: &Option<String>| text.clone().unwrap_or_default();
        let How { user, exe, ancestors, places, stdio_socket } = &self.execution;
        let request = ExplainPolicyRequest {
            namespace: known(namespace),
            pod: known(pod),
            container: known(container),
            image: known(image),
            annotations: annotations.iter().cloned().collect(),
            argv: self.argv.clone(),
            exe: known(exe),
            uid: *user,
            ancestors: ancestors.clone(),
            places: places.iter().map(|place| v1::Place::from(*place).into()).collect(),
            stdio_is_socket: *stdio_socket,
        };
        let agent = global.agent().await?;
        let response = agent.policies().explain_policy(client::request(request)).await;
        Ok(response.map_err(|status| agent.error(&status))?.into_inner().into())
    }

    fn look(&self) -> anyhow::Result<Explanation> {
        let catalog = self.catalog.load()?;
        let compiled = self.compiled(&catalog)?;
        let Arrangement { default_policy, policies, .. } =
            arrange(&compiled, |_| None).context("no policy is for all containers")?;
        let set = PolicySet {
            format: policyset::FORMAT,
            backend: policyset::Backend::Lsm,
            pins: PathBuf::new(),
            inner_shim: PathBuf::new(),
            catalog: catalog.version(),
            default_policy,
            policies,
        };
        let Where { namespace, pod, container, image, annotations } = &self.container;
        let annotations: BTreeMap<String, String> = annotations.iter().cloned().collect();
        let facts = Facts {
            namespace: namespace.as_deref(),
            pod: pod.as_deref(),
            container: container.as_deref(),
            image: image.as_deref(),
            annotations: &annotations,
        };
        let How { user, exe, ancestors, places, stdio_socket } = &self.execution;
        let argv: Vec<&str> = self.argv.iter().map(String::as_str).collect();
        let command = Execution::of_command(&argv);
        let execution = Execution {
            resolved: exe.as_ref().map_or(command.resolved, |exe| basename(exe.as_bytes())),
            uid: *user,
            images: ancestors.iter().map(String::as_bytes).collect(),
            places: places.iter().filter_map(|place| rules_place(*place)).collect(),
            stdio_is_socket: *stdio_socket,
            image: facts.image,
            ..command
        };
        Ok(explain(&catalog, &set, &compiled, &facts, &execution)?.into())
    }

    /// The policies of the files, as the agent would read them.
    fn compiled(&self, catalog: &Catalog) -> anyhow::Result<Vec<Compiled>> {
        let mut paths = self.files.clone();
        if let Some(directory) = &self.directory {
            paths.extend(files::files(directory, &["yaml", "yml"])?);
        }
        let mut compiled: Vec<Compiled> = Vec::new();
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        for path in paths {
            let name = files::name(&path);
            let bytes = files::read(&path).with_context(|| text(&name))?;
            let policy =
                yaml::decode(&name, &bytes).and_then(|yaml| compile(catalog, &source::parse(&name, yaml)?)).map_err(
                    |error| anyhow!("{}; portcullis policy validate tells all errors", text(&error.to_string())),
                )?;
            if let Some(other) = owners.insert(policy.entry.name.clone(), name.clone()) {
                let policy = &policy.entry.name;
                bail!(
                    "{} and {} both hold a policy named {policy}: give one of them another name",
                    text(&other),
                    text(&name)
                );
            }
            compiled.push(policy);
        }
        if !compiled.iter().any(|policy| policy.entry.select.is_everything()) {
            compiled.push(compile(catalog, &source::parse("shipped default", SHIPPED_DEFAULT)?)?);
        }
        Ok(compiled)
    }
}

/// A place that rules know.
fn rules_place(place: Place) -> Option<source::Place> {
    match place {
        Place::WritableDirectory => Some(source::Place::WritableDirectory),
        Place::UpperLayer => Some(source::Place::UpperLayer),
        Place::Memfd => Some(source::Place::Memfd),
        Place::Deleted => Some(source::Place::Deleted),
        Place::TemporaryDirectory | Place::Unknown => None,
    }
}

/// For people, in the order of the questions: what happens, by which rule, under which policy, and why not another.
fn show(out: &mut impl Write, explanation: &Explanation, argv: &[String], screen: Screen) -> io::Result<()> {
    writeln!(out, "{}", screen.paint(Tone::Title, &shell_command(argv)))?;
    for Outcome { backend, verdict, message, in_use } in &explanation.outcomes {
        let here = if *in_use { " (this node)" } else { "" };
        let backend = format!("{backend}{here}");
        let verdict = match verdict {
            None => "no signal".to_owned(),
            Some(verdict @ (Verdict::Blocked | Verdict::Killed)) => screen.paint(Tone::Good, verdict.word()),
            Some(verdict) => screen.paint(Tone::Warning, verdict.word()),
        };
        writeln!(out, "  {backend:<22}{verdict}: {}", text(message))?;
    }
    writeln!(out)?;
    for finding in explanation.excepted.iter().chain(&explanation.finding) {
        writeln!(out, "{}", found(finding))?;
    }
    if explanation.finding.is_none() && explanation.excepted.is_empty() {
        writeln!(out, "It is nothing that a rule of the policy names.")?;
    }
    let Explanation { policy, policy_reason, mode, mode_reason, candidates, .. } = explanation;
    let policy = screen.paint(Tone::Title, &text(policy));
    writeln!(out, "Policy {policy}: {}.", text(policy_reason))?;
    writeln!(out, "Mode {mode}, by {}.", text(mode_reason))?;
    let others: Vec<_> = candidates.iter().filter(|candidate| !candidate.chosen).collect();
    if !others.is_empty() {
        writeln!(out, "\nNot")?;
    }
    for candidate in others {
        writeln!(out, "  {}: {}", text(&candidate.name), text(&candidate.reason))?;
    }
    Ok(())
}

fn found(finding: &Finding) -> String {
    let Finding { tool, identified_by, action, rule, exception, severity } = finding;
    let ways = identified_by.iter().map(|way| way.word().replace('_', " ")).collect::<Vec<_>>().join(", ");
    let by = if ways.is_empty() { String::new() } else { format!(" by {ways}") };
    let passes = exception.map(|number| format!(", but exception {number} lets it pass")).unwrap_or_default();
    format!("It is {} ({severity}){by}; rule {rule} says {action}{passes}.", text(tool))
}
