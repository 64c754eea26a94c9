//! A recipe: one TOML file that says everything about a run.
//!
//! Every key has a default, unknown keys are refused, and `--set table.key=value` overrides single ones. The recipe as
//! resolved, with all defaults written out, goes into the run folder; read again it means the same run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use judge::{Controversial, RewardKind};
use model::chat::Mode;
use model::generate::Sampling;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gspo::{Loss, Objective};

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Name of the run: its folder under `runs_dir`.
    pub run: String,
    /// Where run folders go.
    pub runs_dir: PathBuf,
    /// Everything random follows from it.
    pub seed: u64,
    /// The model to start from: a path, a built-in name, or `org/name` on the hub.
    pub model: String,
    /// The type that matrix products take their inputs in; sums, norms and weights in training stay f32.
    pub dtype: Dtype,
    /// Steps to take; each samples once and updates `update.minibatches` times.
    pub steps: usize,
    /// Modes in which every prompt is answered.
    pub modes: Vec<Mode>,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// How answers are sampled.
    pub rollout: Rollout,
    /// Who judges them.
    pub judge: Judges,
    /// What a verdict is worth.
    pub reward: Reward,
    /// How judges and reward are offered to other trainers by `saferl serve --reward`.
    pub service: Service,
    /// The loss.
    pub loss: LossRecipe,
    /// How the loss becomes gradients.
    pub update: Update,
    /// How gradients become weights.
    pub optimizer: OptimizerRecipe,
    /// Low-rank adapters; without this table all weights are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// When the run is saved.
    pub checkpoint: CheckpointRecipe,
    /// What makes the run suspicious.
    pub alarm: AlarmRecipe,
    /// The data filter.
    pub filter: FilterRecipe,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            run: "run".into(),
            runs_dir: "runs".into(),
            seed: 1,
            model: "smollm2-135m".into(),
            dtype: Dtype::F32,
            steps: 40,
            modes: vec![Mode::NoThink],
            prompts: Prompts::default(),
            rollout: Rollout::default(),
            judge: Judges::default(),
            reward: Reward::default(),
            service: Service::default(),
            loss: LossRecipe::default(),
            update: Update::default(),
            optimizer: OptimizerRecipe::default(),
            lora: None,
            checkpoint: CheckpointRecipe::default(),
            alarm: AlarmRecipe::default(),
            filter: FilterRecipe::default(),
        }
    }
}

/// The type of a model's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits: equal to references.
    F32,
    /// bfloat16 inputs with f32 sums.
    Bf16,
}

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

impl Recipe {
    /// Reads a recipe file and applies overrides such as `optimizer.learning_rate=1e-5`.
    ///
    /// # Errors
    /// A file that cannot be read, TOML that does not parse, an unknown key, a value that cannot be meant.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::file(path, source))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Like [`Recipe::load`] from text; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let broken = |what: &dyn ToString| Error::Recipe {
            path: origin.into(),
            what: what.to_string(),
        };
        // Parsed once as it stands, so that an error shows the line in the file.
        toml::from_str::<Self>(text).map_err(|error| broken(&error))?;
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| broken(&error))?;
        for text in overrides {
            override_key(&mut table, text)?;
        }
        let recipe: Self = table.try_into().map_err(|error: toml::de::Error| Error::Recipe {
            path: format!("{origin} with --set {}", overrides.join(" --set ")),
            what: error.to_string(),
        })?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe with all defaults written out.
    pub fn resolved(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::Recipe {
            path: "resolved".into(),
            what: error.to_string(),
        })
    }

    /// The first key in which this recipe would give other numbers than `other`, with both values. Keys that only say
    /// how long, how often saved, how patiently judged or where do not count: a run may be resumed with other ones.
    pub fn difference(&self, other: &Self) -> Result<Option<String>> {
        let mut same = other.clone();
        (same.runs_dir, same.steps) = (self.runs_dir.clone(), self.steps);
        (same.checkpoint, same.alarm, same.filter) =
            (self.checkpoint.clone(), self.alarm.clone(), self.filter.clone());
        (same.judge.attempts, same.judge.wait_s) = (self.judge.attempts, self.judge.wait_s);
        (same.judge.timeout_s, same.service) = (self.judge.timeout_s, self.service.clone());
        let table = |recipe: &Self| {
            toml::Table::try_from(recipe).map_err(|error| Error::Recipe {
                path: "resolved".into(),
                what: error.to_string(),
            })
        };
        Ok(first_difference("", &table(self)?, &table(&same)?))
    }

    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        self.runs_dir.join(&self.run)
    }

    /// What is allowed but rarely meant; printed before the run starts.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.update.minibatches == 1 {
            warnings.push("update.minibatches = 1: every ratio is one and the clip never acts".into());
        }
        let widest = self.loss.clip_low.max(self.loss.clip_high);
        if self.loss.kind != Loss::Grpo && widest >= 0.05 {
            warnings.push(format!(
                "loss.clip of {widest} is a token-level range; sequence ratios move by thousandths (the default is 3e-4 and 4e-4)"
            ));
        }
        if self.loss.kind == Loss::Grpo && widest < 0.01 {
            warnings.push(format!(
                "loss.clip of {widest} is a sequence-level range; token ratios need about 0.2"
            ));
        }
        if self.rollout.top_p < 1.0 || self.rollout.top_k > 0 {
            warnings.push(
                "rollout.top_p or rollout.top_k cut the distribution; the loss assumes samples of the policy itself".into(),
            );
        }
        if !self.rollout.url.is_empty() && self.rollout.push == Push::None {
            warnings.push(
                "rollout.url without rollout.push: the server keeps its weights, and its samples grow stale"
                    .into(),
            );
        }
        let groups = self.rollout.prompts * self.modes.len();
        if groups < self.update.minibatches {
            warnings.push(format!(
                "a step has {groups} groups for {} minibatches: some updates will be left out",
                self.update.minibatches
            ));
        }
        warnings
    }

    /// Refuses values that cannot be meant.
    fn check(&self) -> Result<()> {
        let positive = [
            ("steps", self.steps),
            ("modes", self.modes.len()),
            ("rollout.prompts", self.rollout.prompts),
            ("rollout.max_new_tokens", self.rollout.max_new_tokens),
            ("update.minibatches", self.update.minibatches),
            ("update.micro_batch_tokens", self.update.micro_batch_tokens),
            ("judge.attempts", self.judge.attempts),
            ("checkpoint.every", self.checkpoint.every),
            ("checkpoint.keep", self.checkpoint.keep),
            ("alarm.patience", self.alarm.patience),
            ("filter.batch", self.filter.batch),
            ("service.items", self.service.items),
            ("service.batch", self.service.batch),
            ("lora.rank", self.lora.as_ref().map_or(1, |lora| lora.rank)),
            (
                "lora.targets",
                self.lora.as_ref().map_or(1, |lora| lora.targets.len()),
            ),
        ];
        for (key, value) in positive {
            require(key, "at least 1", value, value >= 1)?;
        }
        for (key, value) in [
            ("rollout.completions", self.rollout.completions),
            ("filter.completions", self.filter.completions),
        ] {
            require(key, "at least 2: a group compares its answers", value, value >= 2)?;
        }
        let duplicate = (1..self.modes.len()).any(|index| self.modes[..index].contains(&self.modes[index]));
        require("modes", "each mode once", format!("{:?}", self.modes), !duplicate)?;
        let name = Path::new(&self.run);
        let plain = !self.run.is_empty() && name.file_name().is_some_and(|file| file == name.as_os_str());
        require("run", "a plain folder name", format!("`{}`", self.run), plain)?;
        let above_zero = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let rate = self.optimizer.learning_rate;
        require(
            "optimizer.learning_rate",
            "a number above 0",
            rate,
            above_zero(rate),
        )?;
        require(
            "optimizer.epsilon",
            "a number above 0",
            self.optimizer.epsilon,
            above_zero(self.optimizer.epsilon),
        )?;
        for (key, beta) in [
            ("optimizer.beta1", self.optimizer.beta1),
            ("optimizer.beta2", self.optimizer.beta2),
        ] {
            require(key, "at least 0 and below 1", beta, (0.0..1.0).contains(&beta))?;
        }
        for (key, seconds) in [
            ("judge.timeout_s", self.judge.timeout_s),
            ("service.deadline_s", self.service.deadline_s),
        ] {
            let wanted = "seconds above 0 and at most a day";
            require(key, wanted, seconds, above_zero(seconds) && seconds <= 86400.0)?;
        }
        let rollout = &self.rollout;
        let address = rollout.url.starts_with("http://") || rollout.url.starts_with("https://");
        let found = format!("`{}`", rollout.url);
        require(
            "rollout.url",
            "an address with http://, or nothing",
            found,
            address || rollout.url.is_empty(),
        )?;
        let pushes = rollout.push == Push::VllmLora;
        let needs = "none without rollout.url and a [lora] table";
        require(
            "rollout.push",
            needs,
            "vllm-lora",
            !pushes || (address && self.lora.is_some()),
        )?;
        let (items, queue) = (self.service.items, self.service.queue);
        require(
            "service.queue",
            &format!("room for service.items, {items}"),
            queue,
            queue >= items,
        )?;
        let temperature = self.rollout.temperature;
        require(
            "rollout.temperature",
            "above 0: greedy answers have no contrast",
            temperature,
            above_zero(temperature),
        )?;
        require(
            "rollout.top_p",
            "above 0, at most 1",
            self.rollout.top_p,
            self.rollout.top_p > 0.0 && self.rollout.top_p <= 1.0,
        )?;
        for (key, value) in [
            ("loss.clip_low", self.loss.clip_low),
            ("loss.clip_high", self.loss.clip_high),
            ("loss.kl", self.loss.kl),
            ("update.gradient_clip", self.update.gradient_clip),
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("judge.wait_s", self.judge.wait_s),
        ] {
            require(key, "a number of at least 0", value, not_negative(value))?;
        }
        for (key, value) in [
            ("judge.unscorable_limit", self.judge.unscorable_limit),
            ("alarm.refusal", self.alarm.refusal),
            ("alarm.shared_opening", self.alarm.shared_opening),
        ] {
            require(key, "a share from 0 to 1", value, (0.0..=1.0).contains(&value))?;
        }
        let shares: f64 = self.prompts.mix.values().sum();
        let shaped = self.prompts.mix.values().all(|&share| not_negative(share));
        let mixed = self.prompts.mix.is_empty() || (shaped && shares > 0.0);
        require(
            "prompts.mix",
            "shares of at least 0, not all 0",
            format!("{:?}", self.prompts.mix),
            mixed,
        )
    }
}

fn first_difference(prefix: &str, table: &toml::Table, other: &toml::Table) -> Option<String> {
    let keys: std::collections::BTreeSet<&String> = table.keys().chain(other.keys()).collect();
    keys.into_iter()
        .find_map(|key| match (table.get(key), other.get(key)) {
            (Some(toml::Value::Table(table)), Some(toml::Value::Table(other))) => {
                first_difference(&format!("{prefix}{key}."), table, other)
            }
            (value, other) if value == other => None,
            (value, other) => {
                let text = |value: Option<&toml::Value>| value.map_or("absent".into(), ToString::to_string);
                Some(format!("{prefix}{key} is {}, was {}", text(value), text(other)))
            }
        })
}

fn require(key: &str, expected: &str, found: impl ToString, holds: bool) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::Key {
        key: key.into(),
        expected: expected.into(),
        found: found.to_string(),
    })
}

/// Sets `a.b=value` in a table. The value is read as TOML, and where it is none, as a plain string.
fn override_key(table: &mut toml::Table, text: &str) -> Result<()> {
    let broken = |what: &str| Error::Recipe {
        path: format!("--set {text}"),
        what: what.into(),
    };
    let (key, value) = text.split_once('=').ok_or_else(|| broken("expected key=value"))?;
    let value = value.trim();
    let parsed = format!("value = {value}").parse::<toml::Table>().ok();
    let value = parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut path: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = path
        .pop()
        .filter(|last| !last.is_empty())
        .ok_or_else(|| broken("expected a key before ="))?;
    let mut table = table;
    for part in path {
        let entry = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = entry
            .as_table_mut()
            .ok_or_else(|| broken(&format!("`{part}` is a value, not a table")))?;
    }
    table.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse(text, "test.toml", &overrides)
    }

    #[test]
    fn an_empty_recipe_is_the_default_and_the_resolved_form_reads_back() {
        let recipe = parse("", &[]).unwrap();
        assert_eq!(recipe, Recipe::default());
        let resolved = recipe.resolved().unwrap();
        assert!(resolved.contains("clip_high = 0.0004"), "{resolved}");
        assert_eq!(parse(&resolved, &[]).unwrap(), recipe);
        let recipe = parse(
            "modes = [\"think\", \"no-think\"]\n[lora]\nrank = 4\n[prompts.mix]\nharmful = 0.5\n",
            &[],
        );
        let recipe = recipe.unwrap();
        assert_eq!(parse(&recipe.resolved().unwrap(), &[]).unwrap(), recipe);
    }

    #[test]
    fn the_recipes_that_ship_are_good() {
        // The quickstart takes each batch whole, and says so.
        for (name, text, warnings) in [
            ("smoke", include_str!("../../../recipes/smoke.toml"), 0),
            ("quickstart", include_str!("../../../recipes/quickstart.toml"), 1),
            (
                "qwen3-4b-saferl",
                include_str!("../../../recipes/qwen3-4b-saferl.toml"),
                0,
            ),
        ] {
            let recipe = Recipe::parse(text, name, &[]).unwrap();
            assert_eq!((recipe.run.as_str(), recipe.warnings().len()), (name, warnings));
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = parse("steps = 3\n[loss]\nclip = 0.2\n", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("test.toml") && error.contains("line 3") && error.contains("clip"),
            "{error}"
        );
        assert!(
            parse("", &["loss.clip=0.2"])
                .unwrap_err()
                .to_string()
                .contains("--set loss.clip=0.2")
        );
    }

    #[test]
    fn overrides_reach_nested_keys_and_take_plain_words() {
        let overrides = [
            "run=trial-2",
            "optimizer.learning_rate=1e-5",
            "lora.rank=4",
            "modes=[\"think\"]",
            "loss.kind=grpo",
        ];
        let recipe = parse("steps = 3\n[optimizer]\nlearning_rate = 1.0\n", &overrides).unwrap();
        assert_eq!((recipe.run.as_str(), recipe.steps), ("trial-2", 3));
        assert_eq!(
            (recipe.optimizer.learning_rate, recipe.lora.unwrap().rank),
            (1e-5, 4)
        );
        assert_eq!((recipe.modes, recipe.loss.kind), (vec![Mode::Think], Loss::Grpo));
        assert!(parse("", &["steps"]).is_err());
        assert!(parse("", &["=3"]).is_err());
        assert!(
            parse("", &["steps.x=3"]).is_ok_and(|_| false) || parse("steps = 1", &["steps.x=3"]).is_err()
        );
    }

    #[test]
    fn impossible_values_are_named() {
        for (text, key) in [
            ("steps = 0", "steps"),
            ("run = \"a/b\"", "run"),
            ("run = \"..\"", "run"),
            ("modes = []", "modes"),
            ("modes = [\"think\", \"think\"]", "modes"),
            ("[rollout]\ncompletions = 1", "rollout.completions"),
            ("[rollout]\ntemperature = 0.0", "rollout.temperature"),
            ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate"),
            ("[judge]\nunscorable_limit = 2.0", "judge.unscorable_limit"),
            ("[prompts.mix]\nharmful = 0.0", "prompts.mix"),
        ] {
            let error = parse(text, &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{text}: {error}");
        }
    }

    #[test]
    fn a_difference_that_changes_numbers_is_named() {
        let recipe = Recipe::default();
        let longer = parse("steps = 99\n[checkpoint]\nevery = 1\n[judge]\nwait_s = 1.0", &[]).unwrap();
        assert_eq!(longer.difference(&recipe).unwrap(), None);
        let other = parse("[loss]\nkl = 0.5", &[]).unwrap();
        assert_eq!(
            other.difference(&recipe).unwrap().unwrap(),
            "loss.kl is 0.5, was 0.0"
        );
        let adapted = parse("[lora]", &[]).unwrap();
        assert!(
            adapted
                .difference(&recipe)
                .unwrap()
                .unwrap()
                .starts_with("lora is")
        );
    }

    #[test]
    fn one_minibatch_and_a_token_range_are_warned_of() {
        assert!(
            parse("[rollout]\nprompts = 8", &[])
                .unwrap()
                .warnings()
                .is_empty()
        );
        let recipe = parse(
            "[update]\nminibatches = 1\n[loss]\nclip_low = 0.2\nclip_high = 0.2",
            &[],
        )
        .unwrap();
        let warnings = recipe.warnings();
        assert!(warnings.len() == 2 && warnings[0].contains("minibatches") && warnings[1].contains("0.2"));
    }
}
