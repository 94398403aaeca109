//! The agent's unit, as systemd knows it: whether it would be there after the next boot.

use std::{collections::HashMap, path::Path, process::Command};

use super::report::Check;

const NAME: &str = "unit";
/// There only where systemd is the init system.
const SYSTEMD: &str = "/run/systemd/system";
/// Where packages put units; what is elsewhere comes before.
pub const PACKAGED: [&str; 2] =
    ["/usr/lib/systemd/system/portcullisd.service", "/lib/systemd/system/portcullisd.service"];

/// Nothing where there is no systemd.
pub fn check(agent_answers: bool) -> Option<Check> {
    if !Path::new(SYSTEMD).exists() {
        return None;
    }
    let properties = "LoadState,UnitFileState,FragmentPath,NeedDaemonReload";
    let output = Command::new("systemctl").args(["show", "portcullisd.service", "--property", properties]).output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => return Some(Check::warning(NAME, format!("systemctl: {error}"), "run this where systemctl is")),
    };
    let packaged = PACKAGED.iter().any(|path| Path::new(path).exists());
    judge(&text, packaged, agent_answers)
}

fn judge(properties: &str, packaged: bool, agent_answers: bool) -> Option<Check> {
    let properties: HashMap<_, _> = properties.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |key| properties.get(key).copied().unwrap_or_default();
    let (path, state) = (value("FragmentPath"), value("UnitFileState"));
    Some(match value("LoadState") {
        // An agent that something else starts, a container perhaps.
        "not-found" if agent_answers => return None,
        "not-found" => Check::warning(NAME, "systemd knows no portcullisd.service", "portcullis install"),
        "masked" => {
            Check::warning(NAME, "portcullisd.service is masked: nothing starts it", "systemctl unmask portcullisd")
        }
        _ if value("NeedDaemonReload") == "yes" => Check::warning(
            NAME,
            format!("{path} has changed since systemd read it"),
            "systemctl daemon-reload && systemctl restart portcullisd",
        ),
        _ if packaged && path.starts_with("/etc/") => Check::warning(
            NAME,
            format!("{path} hides the package's: it is of an earlier installation"),
            "portcullis uninstall && systemctl daemon-reload && portcullis install && systemctl restart portcullisd",
        ),
        _ if !matches!(state, "enabled" | "enabled-runtime" | "static" | "linked" | "alias") => Check::warning(
            NAME,
            format!("portcullisd.service is {state}: after the next boot nothing would be guarded"),
            "systemctl enable portcullisd",
        ),
        _ => Check::ok(NAME, format!("{state}, {path}")),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::report::State, *};

    const PATH: &str = "FragmentPath=/lib/systemd/system/portcullisd.service";

    fn judged(properties: &str) -> (State, String) {
        let check = judge(properties, true, false).unwrap();
        (check.state, check.remedy)
    }

    #[test]
    fn only_what_comes_back_after_a_boot_is_well() {
        let loaded = |rest: &str| format!("LoadState=loaded\n{PATH}\n{rest}");
        assert_eq!(judged(&loaded("UnitFileState=enabled\nNeedDaemonReload=no")).0, State::Ok);
        let (state, remedy) = judged(&loaded("UnitFileState=disabled\nNeedDaemonReload=no"));
        assert_eq!((state, remedy.as_str()), (State::Warning, "systemctl enable portcullisd"));
        assert!(judged(&loaded("UnitFileState=enabled\nNeedDaemonReload=yes")).1.contains("daemon-reload"));
        assert!(judged("LoadState=masked\nUnitFileState=masked").1.contains("unmask"));
        let earlier = "LoadState=loaded\nUnitFileState=enabled\nFragmentPath=/etc/systemd/system/portcullisd.service";
        assert!(judged(earlier).1.starts_with("portcullis uninstall"));
        assert!(judge(earlier, false, false).is_some_and(|check| check.state == State::Ok));
        assert_eq!(judged("LoadState=not-found").0, State::Warning);
        assert!(judge("LoadState=not-found", false, true).is_none());
    }
}
