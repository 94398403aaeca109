//! Makes the client of CRI out of its published definition (proto/README.md), and the programs of tests/faults and benches/node, which take
//! them along: in the machines that they run in there is no compiler.

use std::{env, error::Error, path::Path, process::Command};

const PROGRAMS: [&str; 2] = ["fault", "spawn"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let descriptors = protox::compile(["api.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    for name in PROGRAMS {
        let source = format!("container/{name}.c");
        println!("cargo::rerun-if-changed={source}");
        let program = Path::new(&env::var("OUT_DIR")?).join(name);
        let compiled =
            Command::new("gcc").args(["-static", "-O2", "-Wall", "-Wextra", &source, "-o"]).arg(program).status()?;
        if !compiled.success() {
            return Err(format!("{source} did not compile: {compiled}").into());
        }
    }
    Ok(())
}
