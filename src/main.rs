//! Tessera, a full-system PC emulator with dynamic binary translation.
//!
//! | module | does |
//! |---|---|
//! | [`cli`] | QEMU's command line, read and checked |
//! | [`event_loop`] | the main thread's loop: host input and output, signals |
//! | [`backends`] | the host side of devices |
//! | [`debug`] | the log |

mod backends;
mod cli;
mod debug;
mod event_loop;
mod guest_files;
mod native_speed;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().skip(1)) {
        Ok(cli::Invocation::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(cli::Invocation::Run(_)) => {
            eprintln!("tessera: there is no machine to run yet");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tessera: {error}");
            ExitCode::FAILURE
        }
    }
}
