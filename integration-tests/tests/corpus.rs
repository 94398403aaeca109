//! The fuzz targets' corpus, replayed: what was found once stays found.
// For clippy.toml: helpers of tests may unwrap as tests do.
#![cfg(test)]

use std::{fs, path::Path};

use portcullis_bpf::abi::{Activity, Event};

#[path = "../../fuzz/src/lib.rs"]
#[allow(clippy::all, clippy::pedantic, clippy::restriction)]
mod targets;

fn replay(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", directory.display());
}

/// Of another ABI version inputs are refused by their first bytes, and no run gets any further: with a new version make them anew.
fn input(target: &str, name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target).join(name)).unwrap()
}

#[test]
fn event() {
    for name in ["blocked", "cut-argv", "reverse-shell"] {
        Event::decode(&input("event", name)).unwrap();
    }
    replay("event", targets::event);
}

#[test]
fn dns() {
    Activity::decode(&input("dns", "activity")).unwrap();
    replay("dns", targets::dns);
}

#[test]
fn fingerprint() {
    replay("fingerprint", targets::fingerprint);
}

#[test]
fn catalog() {
    replay("catalog", targets::catalog);
}

#[test]
fn policy() {
    replay("policy", targets::policy);
}

#[test]
fn records() {
    replay("records", targets::records);
}
