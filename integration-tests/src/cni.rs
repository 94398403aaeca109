//! Pods' networks: CNI's plugins bridge and host-local, configured below a private containerd's directory.

use std::{collections::BTreeSet, fs, io::ErrorKind, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::command::run;

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
    pub leases: BTreeSet<String>,
    /// Devices at the bridge.
    pub devices: BTreeSet<String>,
    /// Network namespaces.
    pub namespaces: BTreeSet<String>,
    /// Answers of plugins that were kept.
    pub results: BTreeSet<String>,
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

/// The file names in a directory; none if it is not there.
fn names(directory: &Path) -> Result<BTreeSet<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", directory.display())),
    }
}

fn mounts(directory: &Path) -> Result<BTreeSet<String>> {
    let below = directory.join("state").display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| point.starts_with(&below)).map(str::to_owned).collect())
}
