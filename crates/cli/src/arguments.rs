//! The command line, parsed purely: nothing here opens a file or loads a model.

mod judges;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kernels::Place;
use model::chat::Mode;
use model::export::WeightType;
use model::generate::Sampling;

pub(crate) use self::judges::{
    Guard, GuardChoice, GuardEval, GuardKind, GuardScore, GuardStream, HeadsFile, HeadsTrain, Reward,
    RewardScore,
};

/// Align a language model by reinforcement learning: safe, helpful, and not a refuser.
#[derive(Debug, Parser)]
#[command(name = "saferl", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a small real model for a few minutes and see what changed
    Quickstart(Quickstart),
    /// Fetch a model into the cache and print where it lies
    Pull(Pull),
    /// Talk with a model in the terminal
    Chat(Chat),
    /// Answer one prompt
    Generate(Generate),
    /// Show the text and the token ids that a model's chat template makes of messages
    Render(Render),
    /// Train a model by a recipe
    Train(Train),
    /// Work on training prompts
    #[command(subcommand)]
    Data(Data),
    /// Judge how safe prompts and replies are
    #[command(subcommand)]
    Guard(Guard),
    /// Score how helpful replies are
    #[command(subcommand)]
    Reward(Reward),
    /// Measure models on benchmarks and print the table
    Eval(Eval),
    /// Serve models, a guard or a reward recipe over HTTP
    Serve(Serve),
    /// Run a recipe on TRL or verl, rewarded by this program
    Launch(Launch),
    /// Measure speed on this machine
    Bench(Bench),
    /// Write a run's page, report.html
    Report(Report),
    /// Write a checkpoint in other programs' formats
    #[command(subcommand)]
    Export(Export),
}

/// `saferl quickstart`
#[derive(Debug, Args)]
pub(crate) struct Quickstart {
    /// A recipe of one's own, such as `recipes/quickstart-qwen.toml` [default: the built-in one]
    pub(crate) recipe: Option<PathBuf>,
    /// Override a key of the recipe, for example `--set steps=20`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Print one JSON object with the figures before and after
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// Where models compute.
#[derive(Debug, Args)]
pub(crate) struct On {
    /// Where models compute: cpu, cuda:N or metal; docs/devices.md says what that takes
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: Place,
}

/// `saferl pull`
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// A built-in name such as smollm2-135m, or org/name on the Hugging Face hub
    pub(crate) name: String,
}

/// How tokens are drawn, and which mode the model answers in.
#[derive(Debug, Args)]
pub(crate) struct Drawing {
    /// Ask the model not to think
    #[arg(long)]
    pub(crate) no_think: bool,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) max_tokens: usize,
    /// Divides the logits; 0 is greedy [default: 0.6, or 0.7 with --no-think]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Smallest set of tokens whose probability reaches this [default: 0.95, or 0.8 with --no-think]
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// The K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = Drawing::TOP_K)]
    pub(crate) top_k: usize,
    /// Tokens at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f64,
    /// Subtracted from the logits of tokens already written
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f64,
    /// Divides the logits of tokens already seen
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f64,
    /// End the reply at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// The same seed gives the same reply
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// f32 as references compute, bf16 in half the memory, or int8: fastest, in a quarter, less exact (as llama.cpp)
    #[arg(long, value_enum, default_value_t = Precision::F32, hide_possible_values = true)]
    pub(crate) dtype: Precision,
    #[command(flatten)]
    pub(crate) on: On,
}

impl Drawing {
    /// Temperature and top-p where nothing else is asked for.
    pub(crate) const USUAL: (f64, f64) = (0.6, 0.95);
    /// The likeliest tokens where nothing else is asked for.
    pub(crate) const TOP_K: usize = 20;

    /// The mode that was asked for.
    pub(crate) fn mode(&self) -> Mode {
        if self.no_think { Mode::NoThink } else { Mode::Think }
    }

    /// As the engine wants it; the defaults are those that Qwen3 is published with, by mode.
    pub(crate) fn sampling(&self) -> Sampling {
        let (temperature, top_p) = if self.no_think { (0.7, 0.8) } else { Self::USUAL };
        Sampling {
            max_new_tokens: self.max_tokens,
            temperature: self.temperature.unwrap_or(temperature),
            top_p: self.top_p.unwrap_or(top_p),
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            repetition_penalty: self.repetition_penalty,
            stop: self.stop.clone(),
            seed: self.seed,
            ..Sampling::default()
        }
    }
}

/// Number types of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit floating point.
    F32,
    /// Brain floating point.
    Bf16,
    /// Integers of 8 bits or fewer.
    Int8,
}

impl Precision {
    /// As recipes and people write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl From<Precision> for candle_core::DType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::BF16,
            Precision::Int8 => Self::U8,
        }
    }
}

/// `saferl chat`
#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// A folder, a .gguf file, a built-in name, or org/name
    pub(crate) model: String,
    /// Instructions that stand above the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) drawing: Drawing,
}

/// `saferl generate`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "prompt_tokens"]))]
pub(crate) struct Generate {
    /// A folder, a .gguf file, a built-in name, or org/name
    pub(crate) model: String,
    /// What the user says
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Token ids to continue, as they are, without the chat template
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) prompt_tokens: Vec<u32>,
    /// Instructions that stand above the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_tokens")]
    pub(crate) system: Option<String>,
    /// Print one JSON object with token ids, thinking, content and usage
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) drawing: Drawing,
}

/// `saferl render`
#[derive(Debug, Args)]
pub(crate) struct Render {
    /// A folder (no weights needed), a .gguf file, a built-in name, or org/name
    pub(crate) model: String,
    /// A JSON list of messages, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: PathBuf,
    /// Switch thinking off in the template
    #[arg(long)]
    pub(crate) no_think: bool,
    /// Leave out what opens the assistant's turn
    #[arg(long)]
    pub(crate) no_generation_prompt: bool,
    /// Print one JSON object with `text` and `ids`
    #[arg(long)]
    pub(crate) json: bool,
}

/// A recipe and its overrides.
#[derive(Debug, Args)]
pub(crate) struct RecipeArguments {
    /// The recipe, a TOML file
    pub(crate) recipe: PathBuf,
    /// Override a key of the recipe, for example `--set optimizer.learning_rate=1e-5`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

/// `saferl train`
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Go on from the run's last whole checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Resolve the recipe, name what is missing, estimate memory and time, and stop
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// `saferl data`
#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Sample and judge answers, and keep the prompts whose answers are neither all safe nor all unsafe
    Filter(Filter),
}

/// `saferl data filter`
#[derive(Debug, Args)]
pub(crate) struct Filter {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Where the kept prompts go, as JSONL
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) on: On,
}

/// `saferl eval`
#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// The folder below which the tasks' files lie
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: Option<PathBuf>,
    /// Only this task of the recipe; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Vec<String>,
    /// Only this model of the recipe; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Vec<String>,
    /// Only the first N prompts of each task
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Only N prompts of each task, drawn by the recipe's seed; a larger N keeps what a smaller one drew
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<usize>,
    /// Exit 1 where a figure is so, for example `safety < 0.95` or `xstest refusal @after > 10%`; may be repeated
    #[arg(long, value_name = "CONDITION")]
    pub(crate) fail_if: Vec<String>,
    /// Form of the table on standard output
    #[arg(long, value_enum, default_value_t = TableFormat::Text)]
    pub(crate) format: TableFormat,
    /// Say what is missing, how many requests and tokens it takes and what that costs, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// Forms of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// For the terminal.
    Text,
    /// Markdown.
    Markdown,
    /// A row for each figure.
    Csv,
    /// `booktabs`.
    Latex,
    /// One JSON object.
    Json,
}

/// `saferl serve`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("served").required(true).multiple(true).args(["models", "guard", "reward"]))]
pub(crate) struct Serve {
    /// Folders, .gguf files, built-in names, or org/name; where there are several, requests choose by name
    #[arg(value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Judge prompts and replies: `built-in`, the URL of an OpenAI-compatible server, or weights: a folder, or org/name
    #[arg(long, value_name = "GUARD")]
    pub(crate) guard: Option<String>,
    /// The guard's name at that server
    #[arg(long, value_name = "NAME", default_value = "Qwen/Qwen3Guard-Gen-4B")]
    pub(crate) guard_model: String,
    /// What that server serves
    #[arg(long, value_enum, value_name = "KIND", default_value_t = GuardKind::Qwen3guard)]
    pub(crate) guard_kind: GuardKind,
    /// What happens to what is not safe
    #[arg(long, value_enum, default_value_t = GuardAction::Annotate)]
    pub(crate) guard_action: GuardAction,
    /// Let controversial texts count as safe
    #[arg(long)]
    pub(crate) guard_loose: bool,
    /// Serve the rewards of this recipe, a TOML file
    #[arg(long, value_name = "RECIPE")]
    pub(crate) reward: Option<PathBuf>,
    /// The folder of training runs to show at /runs, if it is there
    #[arg(long, value_name = "FOLDER", default_value = "runs")]
    pub(crate) runs: PathBuf,
    /// Port; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub(crate) port: u16,
    /// Address to listen at; others than this machine's own need a key in SAFERL_API_KEY
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// How thinking is told from content [default: by the chat template]
    #[arg(long, value_enum, value_name = "PARSER")]
    pub(crate) reasoning_parser: Option<ReasoningParser>,
    /// Tokens whose keys and values are kept at once [default: four contexts, within 2 GiB]
    #[arg(long, value_name = "N", value_parser = whole_blocks)]
    pub(crate) cache_tokens: Option<usize>,
    /// f32 as references compute, bf16 in half the memory, or int8: fastest, in a quarter, less exact (as llama.cpp)
    #[arg(long, value_enum, default_value_t = Precision::F32, hide_possible_values = true)]
    pub(crate) dtype: Precision,
    #[command(flatten)]
    pub(crate) on: On,
}

/// A number of tokens that is worth a pool.
fn whole_blocks(text: &str) -> Result<usize, String> {
    let tokens: usize = text.parse().map_err(|_| "expected a number".to_owned())?;
    if tokens < 64 {
        return Err("expected at least 64".into());
    }
    Ok(tokens)
}

/// What happens to what a guard does not find safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuardAction {
    /// Deliver it with its verdict.
    Annotate,
    /// Hold it back.
    Block,
    /// Go on from the last safe sentence, with a nudge.
    Rewind,
}

/// How thinking is told from content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReasoningParser {
    /// As Qwen3 thinks.
    Qwen3,
    /// As DeepSeek-R1 thinks.
    DeepseekR1,
    /// No thinking.
    None,
}

/// `saferl launch`
#[derive(Debug, Args)]
pub(crate) struct Launch {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// The engine
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(crate) on: Engine,
    /// Processes that train: GPUs, or CPU processes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) processes: usize,
    /// Only show the configuration and the command
    #[arg(long)]
    pub(crate) print: bool,
    /// More arguments for the engine's own command
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) more: Vec<String>,
}

/// Engines that `saferl launch` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// TRL under Accelerate.
    Trl,
    /// verl on Ray.
    Verl,
}

/// `saferl bench`
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to time
    #[arg(value_enum)]
    pub(crate) work: Work,
    /// A folder, a .gguf file, a built-in name, or org/name
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Rows of a product, tokens of a prompt, sequences of a batch, or a step's completions of each prompt; several with
    /// commas
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(crate) sizes: Vec<usize>,
    /// Of decoding: tokens of the prompt that it goes on from [default: a short question]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// How often each is timed
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) repeats: usize,
    /// Of a step: train adapters of this rank in every block, and nothing else
    #[arg(long, value_name = "RANK")]
    pub(crate) lora: Option<usize>,
    /// Of training and a step: keep each block's input alone and run it again for its gradients; less memory, more time
    #[arg(long)]
    pub(crate) gradient_checkpointing: bool,
    /// Number type of the matrix products: f32, bf16, or int8 (as llama.cpp has them)
    #[arg(long, value_enum, default_value_t = Precision::F32, hide_possible_values = true)]
    pub(crate) dtype: Precision,
    /// Print a JSON object for each figure
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) on: On,
}

/// What `saferl bench` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// The product of the feed-forward network
    Matmul,
    /// Reading a prompt
    Prefill,
    /// Generating 64 tokens for every sequence of a batch
    Decode,
    /// Loss, gradients and update of 2048 tokens, every weight trained
    Train,
    /// A GSPO step: 4 prompts, 8 completions each of up to 64 tokens, every weight trained or, with --lora, adapters
    Step,
}

/// `saferl report`
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The run's folder
    pub(crate) run: PathBuf,
}

/// `saferl export`
#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    /// A folder that transformers loads; LoRA adapters are merged into the weights
    Hf(ExportTarget),
    /// The LoRA adapters alone, as a folder that PEFT loads
    Peft(ExportTarget),
    /// One GGUF file, for llama.cpp and what builds on it; LoRA adapters are merged into the weights
    Gguf(GgufTarget),
    /// A folder for `ollama create NAME -f FOLDER/Modelfile`: the GGUF file, and a Modelfile with the chat template in
    /// Ollama's form, stop tokens and sampling
    Ollama(GgufTarget),
}

/// What to export as GGUF, and where to.
#[derive(Debug, Args)]
pub(crate) struct GgufTarget {
    /// A run's folder (its last checkpoint), a checkpoint's folder, or any other model
    pub(crate) model: String,
    /// What to write: a .gguf file, for Ollama a folder
    pub(crate) output: PathBuf,
    /// Type of the weights; q4_k_m is llama.cpp's mix of 4 and 6 bits
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = GgufType::F16)]
    pub(crate) kind: GgufType,
}

/// `--type` of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GgufType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_k_m")]
    Q4KM,
    #[value(name = "q6_k")]
    Q6K,
}

impl From<GgufType> for WeightType {
    fn from(kind: GgufType) -> Self {
        match kind {
            GgufType::F32 => Self::F32,
            GgufType::F16 => Self::F16,
            GgufType::Bf16 => Self::Bf16,
            GgufType::Q8_0 => Self::Q8_0,
            GgufType::Q4_0 => Self::Q4_0,
            GgufType::Q4KM => Self::Q4KM,
            GgufType::Q6K => Self::Q6K,
        }
    }
}

/// What to export, and where to.
#[derive(Debug, Args)]
pub(crate) struct ExportTarget {
    /// A run's folder (its last checkpoint), a checkpoint's folder, or any other model
    pub(crate) checkpoint: String,
    /// The folder to write
    #[arg(long, short, value_name = "FOLDER")]
    pub(crate) output: PathBuf,
    /// Number type of a whole model's weights, f32 or bf16; adapters are always f32
    #[arg(long, value_enum, default_value_t = Precision::F32, hide_possible_values = true)]
    pub(crate) dtype: Precision,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Command {
        Arguments::try_parse_from(line.split(' '))
            .unwrap_or_else(|error| panic!("{error}"))
            .command
    }

    #[test]
    fn the_command_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sampling_defaults_follow_the_mode() {
        let sampling = |line: &str| match parse(line) {
            Command::Generate(generate) => (generate.drawing.mode(), generate.drawing.sampling()),
            other => panic!("{other:?}"),
        };
        let (mode, think) = sampling("saferl generate m --prompt hello");
        assert_eq!(
            (mode, think.temperature, think.top_p, think.top_k),
            (Mode::Think, 0.6, 0.95, 20)
        );
        let (mode, plain) =
            sampling("saferl generate m --prompt hello --no-think --top-k 0 --seed 7 --stop a --stop b");
        assert_eq!(
            (mode, plain.temperature, plain.top_p, plain.top_k),
            (Mode::NoThink, 0.7, 0.8, 0)
        );
        assert_eq!(
            (plain.seed, plain.stop),
            (7, vec!["a".to_string(), "b".to_string()])
        );
        let (_, greedy) = sampling("saferl generate m --prompt-tokens 1,2,3 --temperature 0");
        assert_eq!(greedy.temperature, 0.0);
    }

    #[test]
    fn one_input_is_required() {
        for line in [
            "saferl generate m",
            "saferl generate m --prompt a --prompt-tokens 1",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_server_serves_something() {
        assert!(Arguments::try_parse_from(["saferl", "serve"]).is_err());
        for line in [
            "saferl serve a b",
            "saferl serve --guard built-in",
            "saferl serve --reward recipe.toml --port 0",
        ] {
            let Command::Serve(serve) = parse(line) else {
                panic!()
            };
            assert!(serve.host.is_loopback());
        }
    }

    #[test]
    fn overrides_may_repeat() {
        let Command::Train(train) = parse("saferl train a.toml --set steps=1 --set run=x --resume") else {
            panic!()
        };
        assert_eq!(train.recipe.overrides, ["steps=1", "run=x"]);
        assert!(train.resume && !train.dry_run);
    }

    #[test]
    fn a_device_is_named_and_the_cpu_is_where_nothing_is() {
        let place = |line: &str| match parse(line) {
            Command::Chat(chat) => chat.drawing.on.device,
            Command::Train(train) => train.on.device,
            other => panic!("{other:?}"),
        };
        assert_eq!(place("saferl chat m"), Place::Cpu);
        assert_eq!(place("saferl chat m --device cuda:1"), Place::Cuda(1));
        assert_eq!(place("saferl train a.toml --device metal"), Place::Metal);
        let error = Arguments::try_parse_from(["saferl", "chat", "m", "--device", "tpu"]).unwrap_err();
        assert!(error.to_string().contains("expected cpu, cuda:N"), "{error}");
    }
}
