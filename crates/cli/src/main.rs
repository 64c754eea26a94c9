//! The program `saferl`: arguments into one call.
//!
//! Standard output is data, standard error is progress and log. The exit code is 0 when the work is done, 1 when a gate
//! is not met, 2 for an error, which is printed with its causes and, where there is a cure, a hint.

mod arguments;
mod commands;
mod error;
mod estimate;
mod local;
mod output;
mod progress;
mod reward_service;
mod table;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    // A server gives back what a busy hour took; everything else runs once.
    if !matches!(arguments.command, arguments::Command::Serve(_)) {
        kernels::keep_memory();
    }
    progress::start_log();
    match commands::run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::say(&error.report());
            ExitCode::from(error.exit_code())
        }
    }
}
