//! The reverse proxy `pxg-host`; see `pxg-host --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_golang_host::proxy::cli::main()
}
