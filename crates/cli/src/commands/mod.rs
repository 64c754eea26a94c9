//! The commands, one file each: arguments into calls of the crates beneath.

mod chat;
mod generate;
mod pull;
mod render;
mod report;

use crate::arguments::Command;
use crate::error::Result;

/// Carries out a command.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Render(arguments) => render::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
    }
}
