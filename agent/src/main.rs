//! The program; what it is made of is a library, so that it can be fuzzed.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullisd::main()
}
