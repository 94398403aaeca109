//! Pods' networks: CNI's plugins bridge and host-local, configured below a private containerd's directory.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{command::run, node::names};

const BRIDGE: &str = "portcullis-cni";

/// Where containerd mounts the network namespaces that it makes for pods.
const NAMESPACES: &str = "/run/netns";

/// Where libcni keeps what each plugin answered.
const RESULTS: &str = "/var/lib/cni/results";

/// Configures them for a containerd, before it starts.
pub(crate) fn configure(directory: &Path) -> Result<()> {
    let configuration = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "portcullis-test",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": leases(directory),
                "ranges": [[{ "subnet": "10.98.0.0/24" }]],
            },
        }],
    });
    let file = directory.join("cni/10-portcullis-test.conflist");
    fs::create_dir_all(directory.join("cni"))?;
    fs::write(&file, configuration.to_string()).with_context(|| format!("writing {}", file.display()))
}

fn leases(directory: &Path) -> std::path::PathBuf {
    directory.join("cni-leases")
}

/// Removes what no plugin removes.
pub(crate) fn remove() -> Result<()> {
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        run(Command::new("ip").args(["link", "delete", BRIDGE]))?.success()?;
    }
    Ok(())
}

/// What exists on the node because of pods' networks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Networks {
    /// Addresses that are taken.
    pub leases: Vec<String>,
    /// Devices at the bridge.
    pub devices: Vec<String>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Answers of plugins that were kept.
    pub results: Vec<String>,
    /// Mounts below containerd's state: root file systems, and pods' shared memory.
    pub mounts: BTreeSet<String>,
}

impl Networks {
    /// Those of the containerd with this directory. Nobody else on the node may have pods.
    pub fn of(directory: &Path) -> Result<Self> {
        let mut leases = names(&leases(directory).join("portcullis-test"))?;
        leases.retain(|name| name.parse::<IpAddr>().is_ok());
        Ok(Self {
            leases,
            devices: names(&Path::new("/sys/class/net").join(BRIDGE).join("brif"))?,
            namespaces: names(Path::new(NAMESPACES))?,
            results: names(Path::new(RESULTS))?,
            mounts: mounts(directory)?,
        })
    }
}

fn mounts(directory: &Path) -> Result<BTreeSet<String>> {
    let below = directory.join("state").display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| point.starts_with(&below)).map(str::to_owned).collect())
}
