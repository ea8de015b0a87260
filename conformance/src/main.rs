//! `pxg-conformance`: checks a guest, and proves that it can.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_golang_conformance::cli::main()
}
