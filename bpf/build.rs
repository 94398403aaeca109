//! Compiles the kernel programs with clang. `CLANG` and `LLVM_STRIP` name other compilers and strippers.
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What guards containers, and what cuts one off from the network.
const PROGRAMS: [&str; 2] = ["portcullis", "isolate"];

/// Names to try in turn: Debian 12 has clang 14 as `clang`; the programs are tested with 19.
fn tool(variable: &str, candidates: &[&str]) -> Result<String, String> {
    println!("cargo:rerun-if-env-changed={variable}");
    if let Ok(name) = env::var(variable) {
        return Ok(name);
    }
    candidates
        .iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
        .map(|name| (*name).to_owned())
        .ok_or_else(|| {
            format!(
                "none of {candidates:?} is installed: apt-get install clang-19 llvm-19 libbpf-dev, or set {variable}"
            )
        })
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)))
}

/// Make's dependency syntax, as clang writes it: `object: a b \` and continuation lines.
fn watch_dependencies(depfile: &Path) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(depfile)?;
    let (_, files) = text.split_once(':').ok_or("clang wrote no dependencies")?;
    for file in files.split_whitespace().filter(|word| *word != "\\") {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    if env::var_os("CARGO_FEATURE_OBJECT").is_none() {
        println!("cargo:rerun-if-changed=build.rs");
        return Ok(());
    }
    PROGRAMS.iter().try_for_each(|name| compile(name))
}

fn compile(name: &str) -> Result<(), Box<dyn Error>> {
    let source = format!("src/bpf/{name}.bpf.c");
    println!("cargo:rerun-if-changed={source}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let object = out.join(format!("{name}.bpf.o"));
    let depfile = out.join(format!("{name}.bpf.d"));
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => return Err(format!("no BPF programs for {other}").into()),
    };
    // Where Debian keeps asm/types.h, which <linux/types.h> wants and `-target bpf` does not find by itself.
    let multiarch = format!("-I/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    let next_abi = env::var_os("CARGO_FEATURE_NEXT_ABI").map(|_| "-DPORTCULLIS_NEXT_ABI");
    run(Command::new(tool("CLANG", &["clang-19", "clang"])?)
        .args([
            "-target",
            "bpf",
            "-g",
            "-O2",
            "-mcpu=v3",
            "-std=gnu17",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
        ])
        .arg(format!("-D__TARGET_ARCH_{arch}"))
        .arg(multiarch)
        .args(next_abi)
        .args(["-MMD", "-MF"])
        .arg(&depfile)
        .args(["-c", &source, "-o"])
        .arg(&object))?;
    watch_dependencies(&depfile)?;
    // DWARF is 90 % of the object; BTF, which loading needs, stays.
    run(Command::new(tool("LLVM_STRIP", &["llvm-strip-19", "llvm-strip"])?).arg("-g").arg(&object))?;
    Ok(())
}
