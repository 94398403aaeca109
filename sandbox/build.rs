//! Compiles the profile to seccomp's BPF, for the architecture that is built for.
use std::{env, error::Error, fmt::Write, fs, path::Path};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

const PROFILE: &str = "../config/seccomp/portcullisd.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROFILE}");
    println!("cargo:rerun-if-changed=build.rs");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH")?;
    let target = TargetArch::try_from(architecture.as_str())?;
    let mut profile: Value = serde_json::from_slice(&fs::read(PROFILE)?)?;
    let filters = profile.as_object_mut().ok_or("the profile is no object")?;

    // One filter must know all that is allowed: of two, the stricter holds.
    for other in ["x86_64", "aarch64"] {
        let Some(mut only) = filters.remove(&format!("allowed-{other}")) else { continue };
        if other == architecture {
            let rules = only["filter"].as_array_mut().ok_or("a filter without rules")?;
            filters["allowed"]["filter"].as_array_mut().ok_or("a filter without rules")?.append(rules);
        }
    }
    let mut logged = filters["allowed"].clone();
    logged["mismatch_action"] = json!("log");
    filters.insert("logged".to_owned(), logged);

    let programs = compile_from_json(profile.to_string().as_bytes(), target)?;
    let mut code = String::new();
    for (constant, name) in [("ALLOWED", "allowed"), ("LOGGED", "logged"), ("ABSENT", "absent")] {
        write_program(&mut code, constant, programs.get(name).ok_or("a filter is missing")?)?;
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("filters.rs"), code)?;
    Ok(())
}

fn write_program(code: &mut String, constant: &str, program: &BpfProgram) -> std::fmt::Result {
    writeln!(code, "const {constant}: &[sock_filter] = &[")?;
    for instruction in program {
        let seccompiler::sock_filter { code: operation, jt, jf, k } = instruction;
        writeln!(code, "sock_filter {{ code: {operation}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    writeln!(code, "];")
}
