//! Makes the client of CRI out of its published definition (proto/README.md), and the program of tests/faults, which takes it along:
//! in the machines that it runs in there is no compiler.

use std::{env, error::Error, path::Path, process::Command};

const FAULT: &str = "container/fault.c";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    println!("cargo::rerun-if-changed={FAULT}");
    let descriptors = protox::compile(["api.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    let program = Path::new(&env::var("OUT_DIR")?).join("fault");
    let compiled =
        Command::new("gcc").args(["-static", "-O2", "-Wall", "-Wextra", FAULT, "-o"]).arg(program).status()?;
    if !compiled.success() {
        return Err(format!("{FAULT} did not compile: {compiled}").into());
    }
    Ok(())
}
