//! Where there is unsafe code: where docs/security.md accounts for it.
// For clippy.toml: helpers of tests may unwrap as tests do.
#![cfg(test)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each says why at every place.
const UNSAFE: [&str; 4] = ["bpf/src/abi.rs", "bpf/src/heap.rs", "sandbox/src/refusals.rs", "sandbox/tests/refusal.rs"];
/// Crates without a line of it.
const SAFE_ROOTS: [&str; 10] = [
    "agent/kubernetes/src/main.rs",
    "agent/src/lib.rs",
    "agent/src/main.rs",
    "cli/src/main.rs",
    "integration-tests/src/lib.rs",
    "policy/src/lib.rs",
    "proto/src/lib.rs",
    "shim/src/lib.rs",
    "shim/src/main.rs",
    "fuzz/src/lib.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether a line opens something unsafe: the word with what may follow it, not `unsafe_code` nor the word in a text.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["{", "impl ", "fn ", "extern ", "trait "].iter().any(|next| code.contains(&format!("{} {next}", "unsafe")))
        || code.contains(concat!("unsafe", "("))
}

#[test]
fn unsafe_code_is_where_it_is_accounted_for() {
    assert!(
        is_unsafe("let a = unsafe { b() };") && is_unsafe("#[unsafe(no_mangle)]") && is_unsafe("pub unsafe fn a() {")
    );
    assert!(!is_unsafe("#![forbid(unsafe_code)]") && !is_unsafe("style-src 'unsafe-inline'"));
    let mut files = Vec::new();
    rust_files(root(), &mut files);
    let own = Path::new(file!()).file_name();
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().display().to_string();
    let found: BTreeSet<String> = files
        .iter()
        .filter(|path| path.file_name() != own && fs::read_to_string(path).unwrap().lines().any(is_unsafe))
        .map(relative)
        .collect();
    assert_eq!(found, UNSAFE.map(str::to_owned).into());
    for file in SAFE_ROOTS {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.lines().any(|line| line == "#![forbid(unsafe_code)]"), "{file} does not forbid it");
    }
    let documented = fs::read_to_string(root().join("docs/security.md")).unwrap();
    assert!(UNSAFE.iter().all(|file| documented.contains(file)));
}
