//! The commands, one file each: arguments into calls of the crates beneath.

mod bench;
mod card;
mod chat;
mod dry_run;
mod eval;
mod export;
mod filter;
mod generate;
mod guard;
mod heads;
mod launch;
mod pull;
mod quickstart;
mod render;
mod report;
mod reward;
mod serve;
mod train;

use crate::arguments::{Command, Data, Guard, Reward};
use crate::error::Result;

/// Carries out a command.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Quickstart(arguments) => quickstart::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Render(arguments) => render::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Data(Data::Filter(arguments)) => filter::run(&arguments),
        Command::Guard(Guard::Train(arguments)) => guard::train(&arguments),
        Command::Guard(Guard::Score(arguments)) => guard::score(&arguments),
        Command::Guard(Guard::Eval(arguments)) => guard::evaluate(&arguments),
        Command::Guard(Guard::Stream(arguments)) => guard::stream(&arguments),
        Command::Reward(Reward::Train(arguments)) => reward::train(&arguments),
        Command::Reward(Reward::Score(arguments)) => reward::score(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Launch(arguments) => launch::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Export(target) => export::run(&target),
    }
}
