//! What happens in a pod's life, as kubelet makes it: init containers, probes, restarts; and operators in between.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    cri::{Cri, POD_NAMESPACE, Pod},
    eventually::eventually,
    node::Node,
    signals::{self, Containment, Signal},
};
use portcullis_policy::policyset::Backend;
use rustix::process::{Pid, Signal as UnixSignal, kill_process};

use super::{ENFORCE, all_agree, assert_nc_is_stopped, assert_told, nothing_is_left};
use crate::{selection::told, stopped};

/// Of each probe. Two are interleaved, and a session takes a second in an emulated machine.
const PACE: Duration = Duration::from_secs(4);

/// Four are enough, unless the machine is too busy to keep the pace.
const ROUNDS: u32 = 20;

/// Where nothing listens to, an answer does not come.
const ANSWER: Duration = Duration::from_secs(2);

fn serve(port: u16) -> [String; 3] {
    let serve = format!(
        "mkdir /tmp/{port} && echo ok >/tmp/{port}/index.html && exec busybox httpd -f -p {port} -h /tmp/{port}"
    );
    ["sh".into(), "-c".into(), serve]
}

fn start_server(pod: &Pod<'_>, name: &str, port: u16) -> Result<String> {
    let command = serve(port);
    pod.container(name).command(&command.each_ref().map(String::as_str)).start()
}

/// A container of a pod, as signals tell of it.
fn expected(pod: &Pod<'_>, name: &str, container: &str) -> signals::Pod {
    signals::Pod {
        name: name.into(),
        namespace: POD_NAMESPACE.into(),
        uid: format!("uid-of-{name}"),
        sandbox_id: pod.id().into(),
        container_name: container.into(),
    }
}

/// A pod in one of the modes.
struct Life<'a> {
    node: &'a Node,
    cri: &'a Cri,
    name: &'static str,
    pod: Pod<'a>,
    enforced: bool,
    /// Those whose first process is nc.
    inits: Vec<String>,
    app: String,
}

impl<'a> Life<'a> {
    fn begin(node: &'a Node, cri: &'a Cri, name: &'static str, enforced: bool) -> Result<Self> {
        let pod = cri.pod(name, if enforced { &ENFORCE } else { &[] })?;
        let mut inits = Vec::new();
        // Where it fails kubelet tries again, and never starts the app; here it is, for its probe and what an operator does.
        for attempt in 0..if enforced { 2 } else { 1 } {
            let init = pod.container("init").command(&["nc", "-h"]).attempt(attempt).create()?;
            // runc may notice that it could not start it, or lose it.
            let started = cri.start(&init);
            let code = cri.exit_code(&init)?;
            if enforced {
                ensure!(code != 0 && (node.backend() == Backend::Lsm || code == 137), "{code}, {started:?}");
            } else {
                ensure!(code == 0, "{code}, {started:?}");
            }
            inits.push(init);
        }
        let app = start_server(&pod, "app", 8080)?;
        Ok(Self { node, cri, name, pod, enforced, inits, app })
    }

    fn verdict(&self) -> &'static str {
        if self.enforced { stopped(self.node) } else { "would_block" }
    }

    /// What kubelet sees of a probe: an exit code, or that it could not be started.
    fn probe(&self) -> Result<()> {
        let answer = self.cri.exec(&self.app, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]);
        let healthy = answer.as_ref().is_ok_and(|output| output.status == 0 && output.stdout == "ok\n");
        ensure!(healthy != self.enforced, "{answer:?}");
        Ok(())
    }

    /// The signals of a container; all of it must be told of each.
    fn signals(&self, container: &str, name: &str) -> Result<Vec<Signal>> {
        let mut signals = self.node.signals()?;
        signals.retain(|signal| signal.container_id() == container);
        let pod = expected(&self.pod, self.name, name);
        for signal in &signals {
            let told = signal.container.as_ref().context("no container")?;
            ensure!(told.pod.as_ref() == Some(&pod) && told.image.ends_with("portcullis-demo:latest"), "{signal:#?}");
            ensure!(signal.verdict == self.verdict(), "{signal:#?}");
        }
        Ok(signals)
    }

    /// Tool, origin and count of each.
    fn told(&self, container: &str, name: &str) -> Result<Vec<(String, String, u64)>> {
        let signals = self.signals(container, name)?;
        Ok(signals.iter().map(|signal| (signal.tool().to_owned(), signal.origin.clone(), signal.count)).collect())
    }

    fn has_probes(&self) -> Result<bool> {
        Ok(self.told(&self.app, "app")?.iter().any(|(_, origin, _)| origin == "probe"))
    }

    /// All of it was told, each once.
    fn assert_told(&self, probes: u64) -> Result<()> {
        eventually(|| {
            for init in &self.inits {
                let told = self.told(init, "init")?;
                ensure!(told == [("nc".into(), "container".into(), 1)], "{told:?}");
            }
            let told = self.told(&self.app, "app")?;
            let of = |tool: &str, origin: &str| {
                told.iter().filter(|told| (&*told.0, &*told.1) == (tool, origin)).map(|told| told.2).sum::<u64>()
            };
            let (first, later) = (of("wget", "exec_session"), of("wget", "probe"));
            ensure!(first >= 3 && later >= 1 && first + later == probes, "{told:?} of {probes} probes");
            ensure!(of("nslookup", "exec_session") == 1 && told.len() >= 3, "{told:?}");
            ensure!(told.iter().all(|told| told.1 != "container"), "{told:?}");
            Ok(())
        })
    }
}

/// In detect and in enforce: an init container runs nc, a probe wget, and an operator nslookup.
pub fn a_pod_s_life_is_told(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    let lives = [Life::begin(node, &cri, "web-detect", false)?, Life::begin(node, &cri, "web-enforce", true)?];
    // The server needs its moment.
    eventually(|| cri.exec(&lives[0].app, &["cat", "/tmp/8080/index.html"])?.success())?;
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < 4 || (rounds < ROUNDS && !(lives[0].has_probes()? && lives[1].has_probes()?)) {
        for (life, offset) in lives.iter().zip([Duration::ZERO, PACE / 2]) {
            sleep((began + rounds * PACE + offset).saturating_duration_since(Instant::now()));
            life.probe()?;
        }
        rounds += 1;
    }
    for life in lives {
        let looked_up = cri.exec(&life.app, &["sh", "-c", "/usr/bin/nslookup -version"])?;
        ensure!((looked_up.status == 0) != life.enforced, "{looked_up}");
        life.assert_told(rounds.into())?;
        life.pod.remove()?;
    }
    Ok(())
}

pub fn a_restarted_container_is_guarded_anew(node: &Node) -> Result<()> {
    nothing_is_left(node, &[])?;
    let cri = node.cri()?;
    let pod = cri.pod("again", &ENFORCE)?;
    let first = pod.start("app", &[])?;
    assert_nc_is_stopped(node, &cri, &first)?;
    let cgroup = told(node, &first)?.cgroup_id;
    kill_process(Pid::from_raw(cri.pid(&first)?).context("no pid")?, UnixSignal::KILL)?;
    ensure!(cri.exit_code(&first)? == 137, "it was not killed");
    let second = pod.container("app").attempt(1).start()?;
    all_agree(node, &cri, &[&pod], &[&second])?;
    ensure!(told(node, &second)?.cgroup_id != cgroup, "it has the cgroup of its predecessor");
    assert_nc_is_stopped(node, &cri, &second)?;
    // As kubelet does when there is a newer one.
    cri.remove_container(&first)?;
    for container in [&first, &second] {
        assert_told(node, container, &[(stopped(node), 1); 2])?;
        for signal in node.signals()?.iter().filter(|signal| signal.container_id() == container.as_str()) {
            let told = signal.container.as_ref().and_then(|told| told.pod.as_ref());
            ensure!(told == Some(&expected(&pod, "again", "app")), "{signal:#?}");
        }
    }
    pod.remove()?;
    nothing_is_left(node, &[])
}

/// What a server answers to somebody on the node.
fn fetch(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.ends_with("\r\n\r\nok\n"), "{answer:?}");
    Ok(())
}

/// Two servers in one pod with one network and one shim: what is done to one is not done to the other.
pub fn containers_are_contained_alone(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    let pod = cri.pod("pair", &[])?;
    let [web, side] = [start_server(&pod, "web", 8080)?, start_server(&pod, "side", 8081)?];
    let address = pod.address()?;
    let [to_web, to_side] = [8080, 8081].map(|port| SocketAddr::new(address, port));
    all_agree(node, &cri, &[&pod], &[&web, &side])?;
    ensure!(node.containerd().own_shims().len() == 1, "more than one shim");
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net"));
    let networks = [cri.pid(&web)?, cri.pid(&side)?, i32::try_from(std::process::id())?].map(network);
    let [Ok(first), Ok(second), Ok(nodes)] = &networks else { anyhow::bail!("{networks:?}") };
    ensure!(first == second && first != nodes, "{networks:?}");
    let both_answer = || eventually(|| fetch(to_web).and_then(|()| fetch(to_side)));
    let only_answers = |server: SocketAddr, silent: SocketAddr| -> Result<()> {
        ensure!(fetch(silent).is_err(), "{silent} answers");
        eventually(|| fetch(server))
    };
    let in_effect = |container: &str| Ok::<_, anyhow::Error>(told(node, container)?.containment);
    let nothing = Containment { frozen: Some(false), network_isolated: false, locked: false };
    let contain = |measure: &str, container: &str| node.portcullis(&["contain", container, measure])?.success();
    both_answer()?;

    contain("--isolate-network", &web)?;
    only_answers(to_side, to_web)?;
    // They have one loopback device.
    cri.exec(&side, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"])?.success()?;
    ensure!(in_effect(&web)? == Some(Containment { network_isolated: true, ..nothing }), "{:?}", in_effect(&web)?);
    ensure!(in_effect(&side)? == Some(nothing), "{:?}", in_effect(&side)?);
    node.portcullis(&["release", &web])?.success()?;
    both_answer()?;

    contain("--freeze", &side)?;
    only_answers(to_web, to_side)?;
    ensure!(in_effect(&side)? == Some(Containment { frozen: Some(true), ..nothing }), "{:?}", in_effect(&side)?);
    ensure!(in_effect(&web)? == Some(nothing), "{:?}", in_effect(&web)?);
    node.portcullis(&["release", &side])?.success()?;
    both_answer()?;

    contain("--kill", &side)?;
    ensure!(cri.exit_code(&side)? == 137, "it was not killed");
    only_answers(to_web, to_side)?;
    all_agree(node, &cri, &[&pod], &[&web])?;
    pod.remove()
}
