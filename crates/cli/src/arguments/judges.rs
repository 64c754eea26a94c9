//! `saferl guard` and `saferl reward`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::On;

/// `saferl guard`
#[derive(Debug, Subcommand)]
pub(crate) enum Guard {
    /// Train the built-in guard's heads
    Train(HeadsTrain),
    /// Judge JSONL rows {"prompt","response"}; a row without a response judges the prompt
    Score(GuardScore),
    /// Measure a guard on labelled rows
    Eval(GuardEval),
    /// Print the risk at every token of a reply, with Qwen3Guard-Stream
    Stream(GuardStream),
}

/// `saferl reward`
#[derive(Debug, Subcommand)]
pub(crate) enum Reward {
    /// Train the built-in helpfulness head
    Train(HeadsTrain),
    /// Score JSONL rows {"prompt","response"}
    Score(RewardScore),
}

/// `saferl guard train` and `saferl reward train`
#[derive(Debug, Args)]
pub(crate) struct HeadsTrain {
    /// The recipe, a TOML file that names the labelled sources
    pub(crate) recipe: PathBuf,
    /// The folder below which the recipe's public data lies
    #[arg(long, value_name = "FOLDER", default_value = "data")]
    pub(crate) data: PathBuf,
    /// Where the heads go; what the file holds of other heads stays
    #[arg(long, short, value_name = "FILE", default_value = "heads.safetensors")]
    pub(crate) output: PathBuf,
    /// Print one JSON object with the figures
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// Which heads judge.
#[derive(Debug, Args)]
pub(crate) struct HeadsFile {
    /// A file of trained heads [default: those that are part of the program]
    #[arg(long, value_name = "FILE")]
    pub(crate) heads: Option<PathBuf>,
}

/// Which guard judges.
#[derive(Debug, Args)]
pub(crate) struct GuardChoice {
    /// `built-in`, the URL of an OpenAI-compatible server, or weights: a folder, or org/name
    #[arg(long, value_name = "GUARD", default_value = "built-in")]
    pub(crate) guard: String,
    /// The guard's name at that server
    #[arg(long, value_name = "NAME", default_value = "Qwen/Qwen3Guard-Gen-4B")]
    pub(crate) guard_model: String,
    /// What that server serves
    #[arg(long, value_enum, value_name = "KIND", default_value_t = GuardKind::Qwen3guard)]
    pub(crate) guard_kind: GuardKind,
    #[command(flatten)]
    pub(crate) heads: HeadsFile,
}

/// What answers at a guard's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuardKind {
    /// Qwen3Guard-Gen.
    Qwen3guard,
    /// WildGuard.
    Wildguard,
    /// Any chat model, by our rubric.
    LanguageModel,
}

/// `saferl guard eval`
#[derive(Debug, Args)]
pub(crate) struct GuardEval {
    /// The recipe, a TOML file that names the labelled sources
    pub(crate) recipe: PathBuf,
    /// The folder below which the recipe's public data lies
    #[arg(long, value_name = "FOLDER", default_value = "data")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) guard: GuardChoice,
    /// Print one JSON object with the figures
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// `saferl guard score`
#[derive(Debug, Args)]
pub(crate) struct GuardScore {
    /// A JSONL file; standard input without it
    pub(crate) rows: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) guard: GuardChoice,
    #[command(flatten)]
    pub(crate) on: On,
}

/// `saferl guard stream`
#[derive(Debug, Args)]
pub(crate) struct GuardStream {
    /// A folder with Qwen3Guard-Stream, or org/name
    pub(crate) model: String,
    /// What the user says
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// A file with the reply; standard input without it
    #[arg(long, value_name = "FILE")]
    pub(crate) reply: Option<PathBuf>,
    /// Print a line of JSON for each token
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// `saferl reward score`
#[derive(Debug, Args)]
pub(crate) struct RewardScore {
    /// A JSONL file; standard input without it
    pub(crate) rows: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) heads: HeadsFile,
    #[command(flatten)]
    pub(crate) on: On,
}
