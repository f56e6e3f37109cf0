//! The `proxy` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy::cli::main()
}
