//! The tables of a recipe, each with its defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use judge::{Controversial, ReadAt, RewardKind};
pub use model::dtype::Dtype;
use model::generate::Sampling;
use serde::{Deserialize, Serialize};

use crate::advantage::Scale;
use crate::gspo::{Loss, Objective};

/// The format of a prompt file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By the file's extension: jsonl, csv, tsv or parquet.
    Auto,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated with a header line.
    Csv,
    /// Tab-separated with a header line.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// Columns `vanilla`, `adversarial`, `data_type` as WildJailbreak is published; TSV, or by the extension.
    Wildjailbreak,
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompts {
    /// `built-in`, or a file.
    pub source: String,
    /// How the file is read.
    pub format: Format,
    /// Only rows of this split, where the source names splits; empty takes all.
    pub split: String,
    /// The column that holds the prompt's text.
    pub prompt_column: String,
    /// The column that holds the kind; a file without it is all `harmful`.
    pub kind_column: String,
    /// Put before every prompt; empty leaves it out.
    pub system: String,
    /// Share of each kind in the batches: `harmful`, `adversarial`, `borderline`, `ordinary`. Kinds not named do not
    /// appear; an empty table takes every kind by its share of the rows.
    pub mix: BTreeMap<Kind, f64>,
}

impl Default for Prompts {
    fn default() -> Self {
        Self {
            source: "built-in".into(),
            format: Format::Auto,
            split: "train".into(),
            prompt_column: "prompt".into(),
            kind_column: "kind".into(),
            system: String::new(),
            mix: BTreeMap::new(),
        }
    }
}

/// What a prompt asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Plainly something harmful.
    Harmful,
    /// Something harmful in a wrapper.
    Adversarial,
    /// Something harmless that sounds harmful.
    Borderline,
    /// Something ordinary.
    Ordinary,
}

impl Kind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Harmful, Self::Adversarial, Self::Borderline, Self::Ordinary];
}

/// How answers are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Prompts a step; each is answered in every mode.
    pub prompts: usize,
    /// Answers to each prompt in each mode: the group.
    pub completions: usize,
    /// Most tokens of an answer, thinking included.
    pub max_new_tokens: usize,
    /// Divides the logits, in sampling and in the loss alike.
    pub temperature: f64,
    /// Smallest set of tokens whose probability reaches this; 1 samples from the policy itself, as the loss assumes.
    pub top_p: f64,
    /// The k likeliest tokens; 0 switches it off, as the loss assumes.
    pub top_k: usize,
    /// Longest prompt in tokens; a longer one stops the run before it starts.
    pub max_prompt_tokens: usize,
    /// Tokens that the sampler's KV pool holds; 0 makes room for a whole step.
    pub pool_tokens: usize,
    /// The base of an OpenAI-compatible API that samples instead of this process; see [`crate::server`]. Empty for none.
    pub url: String,
    /// The model's name at that server; empty for `model`.
    pub url_model: String,
    /// The environment variable that holds the server's key; empty where it wants none.
    pub key_env: String,
    /// How the server gets the trained weights after a step.
    pub push: Push,
}

/// How a server that samples gets the trained weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Push {
    /// Not at all: it keeps sampling with those that it has.
    None,
    /// The adapters, by vLLM's `/load_lora_adapter`.
    VllmLora,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            prompts: 8,
            completions: 8,
            max_new_tokens: 128,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_prompt_tokens: 1024,
            pool_tokens: 0,
            url: String::new(),
            url_model: String::new(),
            key_env: String::new(),
            push: Push::None,
        }
    }
}

impl Rollout {
    /// As the sampler wants it, with a seed of its own.
    pub fn sampling(&self, seed: u64) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed,
            ..Sampling::default()
        }
    }
}

/// What answers at a guard's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuardKind {
    /// Qwen3Guard-Gen, at the API's base.
    Qwen3guard,
    /// WildGuard, at the API's base.
    Wildguard,
    /// Any chat model, at the API's base; see [`judge::guard::llm`].
    LanguageModel,
}

/// What answers at a helpfulness score's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HelpfulnessKind {
    /// A reward model, at the whole address (vLLM's `/classify` or `/pooling`, SGLang's `/v1/embeddings`).
    RewardModel,
    /// Any chat model, at the API's base; see [`judge::helpfulness::llm`].
    LanguageModel,
}

/// Who judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Judges {
    /// `built-in`, `toy` (for tests, see [`crate::toy`]), the URL of an OpenAI-compatible server, or a guard's weights:
    /// a path, or `org/name` on the hub (Qwen3Guard-Gen, Qwen3Guard-Stream or WildGuard, told by the checkpoint).
    pub guard: String,
    /// What the server of the guard's URL serves.
    pub guard_kind: GuardKind,
    /// The guard's name at that server.
    pub guard_model: String,
    /// The environment variable that holds the server's key; empty where it wants none.
    pub guard_key_env: String,
    /// `built-in`, `toy`, a URL, or a reward model's weights: a path, or `org/name` on the hub (Qwen2ForRewardModel).
    pub helpfulness: String,
    /// What the server of the helpfulness's URL serves.
    pub helpfulness_kind: HelpfulnessKind,
    /// The token at which a reward model in this process is read: `last` of the rendered text, or `end-of-turn`.
    pub helpfulness_read_at: ReadAt,
    /// The reward model's name at that server.
    pub helpfulness_model: String,
    /// The environment variable that holds the server's key; empty where it wants none.
    pub helpfulness_key_env: String,
    /// A file of heads for the built-in judges; empty takes those that are part of the program.
    pub heads: String,
    /// Largest share of a step's completions that may stay without a score.
    pub unscorable_limit: f64,
    /// How often the judge is asked about a step before the run stops.
    pub attempts: usize,
    /// Seconds to wait between two attempts.
    pub wait_s: f64,
    /// Seconds that one answer of a judge's server may take.
    pub timeout_s: f64,
}

impl Default for Judges {
    fn default() -> Self {
        Self {
            guard: "built-in".into(),
            guard_kind: GuardKind::Qwen3guard,
            guard_model: "Qwen/Qwen3Guard-Gen-4B".into(),
            guard_key_env: String::new(),
            helpfulness: "built-in".into(),
            helpfulness_kind: HelpfulnessKind::RewardModel,
            helpfulness_read_at: ReadAt::Last,
            helpfulness_model: "Qwen/WorldPM-72B-HelpSteer2".into(),
            helpfulness_key_env: String::new(),
            heads: String::new(),
            unscorable_limit: 0.25,
            attempts: 5,
            wait_s: 30.0,
            timeout_s: 60.0,
        }
    }
}

/// What a verdict is worth.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reward {
    /// Hybrid or guard-only.
    pub kind: RewardKind,
    /// What controversial counts as in the hybrid reward.
    pub controversial: Controversial,
}

/// How judges and reward are offered to other trainers; a training run does not read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// The reward's name, where a protocol names a model.
    pub reward_name: String,
    /// The name of the helpfulness alone.
    pub helpfulness_name: String,
    /// The guard's name; clients of the real guard may expect `Qwen/Qwen3Guard-Gen-4B`.
    pub guard_name: String,
    /// Most items of one request.
    pub items: usize,
    /// Most items that wait for a judge; requests beyond are answered 429.
    pub queue: usize,
    /// Most items that are judged together.
    pub batch: usize,
    /// Milliseconds that an item waits for others to be judged with.
    pub batch_wait_ms: u64,
    /// Verdicts that are remembered by content.
    pub cache: usize,
    /// Seconds after which a request has its verdicts or their absence's cause.
    pub deadline_s: f64,
    /// Where every verdict is logged, as JSONL; empty for nowhere.
    pub audit: PathBuf,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            reward_name: "saferl-reward".into(),
            helpfulness_name: "saferl-helpfulness".into(),
            guard_name: "saferl-guard".into(),
            items: 512,
            queue: 4096,
            batch: 64,
            batch_wait_ms: 5,
            cache: 100_000,
            deadline_s: 120.0,
            audit: PathBuf::new(),
        }
    }
}

/// The loss and its constants; see [`crate::gspo`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossRecipe {
    /// `gspo`, `grpo` or `gspo-token`.
    pub kind: Loss,
    /// Ratios below `1 - clip_low` are cut.
    pub clip_low: f64,
    /// Ratios above `1 + clip_high` are cut.
    pub clip_high: f64,
    /// Weight of the KL divergence to the starting model; 0 saves computing it.
    pub kl: f64,
    /// What advantages are measured in: the deviation of their `group`, or of the whole `batch`.
    pub scale: Scale,
    /// Leave completions out of the loss that ran into the length limit.
    pub mask_truncated: bool,
}

impl Default for LossRecipe {
    fn default() -> Self {
        Self {
            kind: Loss::Gspo,
            clip_low: 3e-4,
            clip_high: 4e-4,
            kl: 0.0,
            scale: Scale::default(),
            mask_truncated: false,
        }
    }
}

impl LossRecipe {
    /// As the loss wants it.
    pub fn objective(&self) -> Objective {
        Objective {
            loss: self.kind,
            clip_low: self.clip_low,
            clip_high: self.clip_high,
            kl: self.kl,
        }
    }
}

/// How the loss becomes gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// Updates a step; the batch is divided among them by groups.
    pub minibatches: usize,
    /// Most tokens that go through the model at once; gradients of the parts add up. A group that is longer goes alone,
    /// cut at completions.
    pub micro_batch_tokens: usize,
    /// Recompute each block's activations in the backward pass: less memory, a third more time.
    pub gradient_checkpointing: bool,
    /// Largest norm of the gradient; a larger one is scaled down. 0 switches it off.
    pub gradient_clip: f64,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            minibatches: 4,
            micro_batch_tokens: 2048,
            gradient_checkpointing: false,
            gradient_clip: 1.0,
        }
    }
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a straight line to zero behind the last step.
    Linear,
    /// Falls along half a cosine to zero behind the last step.
    Cosine,
}

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerRecipe {
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay of matrices; norms and biases are exempt.
    pub weight_decay: f64,
    /// Steps in which the learning rate rises from zero.
    pub warmup_steps: usize,
    /// How it moves after that.
    pub schedule: Schedule,
}

impl Default for OptimizerRecipe {
    fn default() -> Self {
        Self {
            learning_rate: 1e-6,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
            schedule: Schedule::Constant,
        }
    }
}

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Modules that get adapters, by the last part of their names.
    pub targets: Vec<String>,
    /// Blocks that get them; empty for all. The backward pass ends at the lowest.
    pub layers: Vec<usize>,
}

impl Default for Lora {
    fn default() -> Self {
        let targets = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        Self {
            rank: 16,
            alpha: 32.0,
            targets: targets.map(String::from).to_vec(),
            layers: Vec::new(),
        }
    }
}

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointRecipe {
    /// Steps between two checkpoints; the last step is always saved.
    pub every: usize,
    /// How many of the newest stay.
    pub keep: usize,
}

impl Default for CheckpointRecipe {
    fn default() -> Self {
        Self { every: 10, keep: 2 }
    }
}

/// What makes a run suspicious; see [`crate::alarm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlarmRecipe {
    /// Largest share of refusals in a step's replies.
    pub refusal: f64,
    /// Largest share of a step's replies that start with the same five words, over different prompts.
    pub shared_opening: f64,
    /// Largest mean length as a multiple of that of the first steps.
    pub length_growth: f64,
    /// Steps in a row before the alarm sounds.
    pub patience: usize,
    /// Whether it stops the run.
    pub stop: bool,
}

impl Default for AlarmRecipe {
    fn default() -> Self {
        Self {
            refusal: 0.6,
            shared_opening: 0.5,
            length_growth: 3.0,
            patience: 3,
            stop: false,
        }
    }
}

/// The data filter; see [`crate::filter`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterRecipe {
    /// Answers to each prompt in each mode.
    pub completions: usize,
    /// Prompts sampled at once.
    pub batch: usize,
}

impl Default for FilterRecipe {
    fn default() -> Self {
        Self {
            completions: 8,
            batch: 16,
        }
    }
}
