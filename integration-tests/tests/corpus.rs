//! The fuzz targets' corpus, replayed: what was found once stays found.
// For clippy.toml: helpers of tests may unwrap as tests do.
#![cfg(test)]

use std::{fs, path::Path};

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

#[test]
fn event() {
    replay("event", targets::event);
}

#[test]
fn dns() {
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
