//! Compiles the profile to seccomp's BPF, for the architecture that is built for.
use std::{env, error::Error, fmt::Write, fs, path::Path};

use seccompiler::{BpfMap, BpfProgram, TargetArch, compile_from_json};
use serde_json::{Map, Value, json};

const PROFILE: &str = "../config/seccomp/portcullisd.json";

const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROFILE}");
    println!("cargo:rerun-if-changed=build.rs");
    let profile: Map<String, Value> = serde_json::from_slice(&fs::read(PROFILE)?)?;
    let architecture = env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut programs = None;
    // All of them: what is wrong for another one is found here as well.
    for other in ARCHITECTURES {
        let compiled = compile(profile.clone(), other)?;
        programs = programs.or((architecture == other).then_some(compiled));
    }
    let programs = programs.ok_or_else(|| format!("there is no profile for {architecture}"))?;
    let mut code = String::new();
    for (constant, name) in [("ALLOWED", "allowed"), ("LOGGED", "logged"), ("ABSENT", "absent")] {
        write_program(&mut code, constant, programs.get(name).ok_or("a filter is missing")?)?;
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("filters.rs"), code)?;
    Ok(())
}

fn compile(mut profile: Map<String, Value>, architecture: &str) -> Result<BpfMap, Box<dyn Error>> {
    // One filter must know all that is allowed: of two, the stricter holds.
    let mut allowed = profile.remove("allowed").ok_or("the profile has no filter \"allowed\"")?;
    for other in ARCHITECTURES {
        let Some(mut only) = profile.remove(&format!("allowed-{other}")) else { continue };
        if other == architecture {
            rules(&mut allowed)?.append(rules(&mut only)?);
        }
    }
    let mut logged = allowed.clone();
    *logged.pointer_mut("/mismatch_action").ok_or("a filter without mismatch_action")? = json!("log");
    profile.extend([("allowed".to_owned(), allowed), ("logged".to_owned(), logged)]);
    let profile = serde_json::to_vec(&profile)?;
    Ok(compile_from_json(profile.as_slice(), TargetArch::try_from(architecture)?)?)
}

fn rules(filter: &mut Value) -> Result<&mut Vec<Value>, &'static str> {
    filter.pointer_mut("/filter").and_then(Value::as_array_mut).ok_or("a filter without rules")
}

fn write_program(code: &mut String, constant: &str, program: &BpfProgram) -> std::fmt::Result {
    writeln!(code, "pub const {constant}: &[sock_filter] = &[")?;
    for instruction in program {
        let seccompiler::sock_filter { code: operation, jt, jf, k } = instruction;
        writeln!(code, "sock_filter {{ code: {operation}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    writeln!(code, "];")
}
