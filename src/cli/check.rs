//! `proxy check`: every problem of a configuration at once, nothing touched.

use super::args::CheckArgs;
use crate::master;

pub(super) fn run(args: &CheckArgs) -> u8 {
    match master::load(&args.config) {
        Ok(loaded) => {
            if !args.quiet {
                for warning in loaded.warnings {
                    eprintln!("{warning}");
                }
                println!("{}: valid", args.config.display());
            }
            super::DONE
        }
        Err(error) => {
            eprintln!("{}", error.chain());
            super::REFUSED
        }
    }
}
