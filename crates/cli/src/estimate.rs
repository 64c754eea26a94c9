//! What a run will take, from the model's shape and the recipe: a guess to plan by, not a measurement.

use std::time::Instant;

use candle_core::{Device, Tensor};
use model::config::Config;
use train::recipe::{Lora, Recipe};

const GIB: f64 = 1_073_741_824.0;
/// Bytes of a number; the CPU computes in f32.
const F32: f64 = 4.0;

/// How large a model is.
pub(crate) enum Size {
    /// Known from its configuration.
    Known(Box<Config>),
    /// Guessed from its name, as in `Qwen3-4B`: how many parameters.
    Named(f64),
}

impl Size {
    /// The size that a model's name tells: the last part that is a number followed by B or M.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let parts = name.rsplit(['-', '_', '/', ' ']);
        parts.into_iter().find_map(|part| {
            let (number, unit) = part.split_at_checked(part.len().checked_sub(1)?)?;
            let unit = match unit {
                "B" | "b" => 1e9,
                "M" | "m" => 1e6,
                _ => return None,
            };
            number
                .parse::<f64>()
                .ok()
                .filter(|number| *number > 0.0)
                .map(|number| Self::Named(number * unit))
        })
    }

    /// How many parameters.
    pub(crate) fn parameters(&self) -> f64 {
        match self {
            Self::Known(config) => parameters(config),
            Self::Named(parameters) => *parameters,
        }
    }
}

fn parameters(config: &Config) -> f64 {
    let hidden = config.hidden as f64;
    let queries = (config.heads * config.head_dim) as f64;
    let keys = (config.key_value_heads * config.head_dim) as f64;
    let layer =
        hidden * (2.0 * queries + 2.0 * keys) + 3.0 * hidden * config.intermediate as f64 + 2.0 * hidden;
    let embeddings = if config.tied { 1.0 } else { 2.0 } * config.vocabulary as f64 * hidden;
    embeddings + config.layers as f64 * layer + hidden
}

/// The parameters that LoRA adds to a model of this shape.
fn adapter_parameters(config: &Config, lora: &Lora) -> f64 {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let queries = config.heads * config.head_dim;
    let keys = config.key_value_heads * config.head_dim;
    let sides = |target: &String| match target.as_str() {
        "q_proj" | "o_proj" => hidden + queries,
        "k_proj" | "v_proj" => hidden + keys,
        "gate_proj" | "up_proj" | "down_proj" => hidden + inner,
        _ => 0,
    };
    let layers = if lora.layers.is_empty() {
        config.layers
    } else {
        lora.layers.len()
    };
    (lora.targets.iter().map(sides).sum::<usize>() * lora.rank * layers) as f64
}

/// The parts of a run's memory, in bytes.
pub(crate) fn memory(size: &Size, recipe: &Recipe) -> Vec<(&'static str, f64)> {
    let all = size.parameters();
    let trained = match (&recipe.lora, size) {
        (None, _) => all,
        (Some(lora), Size::Known(config)) => adapter_parameters(config, lora),
        // Adapters of rank 16 on every projection are about one in a hundred.
        (Some(lora), Size::Named(_)) => all * 0.01 * lora.rank as f64 / 16.0,
    };
    let frozen_copy = recipe.loss.kl > 0.0 && recipe.lora.is_none();
    let mut parts = vec![
        ("weights", all * F32),
        ("gradients", trained * F32),
        ("optimiser", trained * 2.0 * F32),
        (
            "starting model for the KL term",
            if frozen_copy { all * F32 } else { 0.0 },
        ),
    ];
    if let Size::Known(config) = size {
        parts.push(("sampler's KV pool", pool(config, recipe)));
        parts.push(("activations", activations(config, recipe)));
    }
    parts.retain(|(_, bytes)| *bytes > 0.0);
    parts
}

fn pool(config: &Config, recipe: &Recipe) -> f64 {
    let rollout = &recipe.rollout;
    let a_group = rollout.max_prompt_tokens + rollout.completions * rollout.max_new_tokens;
    let tokens = match rollout.pool_tokens {
        0 => rollout.prompts * recipe.modes.len() * a_group,
        tokens => tokens,
    };
    (tokens * config.layers * 2 * config.key_value_heads * config.head_dim) as f64 * F32
}

/// What the backward pass keeps of a micro-batch: every block's inner values, or with checkpointing one block's and the
/// inputs of the others.
fn activations(config: &Config, recipe: &Recipe) -> f64 {
    let block = 8 * config.hidden + 4 * config.intermediate + 3 * config.heads * config.head_dim;
    let kept = if recipe.update.gradient_checkpointing {
        block + config.layers * config.hidden
    } else {
        config.layers * block
    };
    (recipe.update.micro_batch_tokens * kept) as f64 * F32
}

/// Floating-point operations of a step, in passes of the model over every token: one to sample, three to update (two
/// with LoRA, whose frozen weights need no gradient; one more with checkpointing), one for the KL term, and one for the
/// policy that sampled, in all but the first minibatch, unless the sampler's own log-probabilities serve.
pub(crate) fn operations_a_step(size: &Size, recipe: &Recipe) -> f64 {
    let Recipe { rollout, update, .. } = recipe;
    let tokens = (rollout.prompts * recipe.modes.len() * rollout.completions * rollout.max_new_tokens) as f64;
    let passes = [
        1.0,
        if recipe.lora.is_some() { 2.0 } else { 3.0 },
        if update.gradient_checkpointing { 1.0 } else { 0.0 },
        if recipe.loss.kl > 0.0 { 1.0 } else { 0.0 },
        if rollout.temperature == 1.0 {
            0.0
        } else {
            1.0 - 1.0 / update.minibatches as f64
        },
    ];
    2.0 * size.parameters() * tokens * passes.iter().sum::<f64>()
}

/// Operations a second of this machine in a matrix product; `None` where it cannot be measured.
pub(crate) fn machine_speed() -> Option<f64> {
    const WIDTH: usize = 512;
    let a = Tensor::ones((WIDTH, WIDTH), candle_core::DType::F32, &Device::Cpu).ok()?;
    a.matmul(&a).ok()?;
    let start = Instant::now();
    let rounds = 8;
    for _ in 0..rounds {
        a.matmul(&a).ok()?;
    }
    Some(f64::from(rounds) * 2.0 * (WIDTH as f64).powi(3) / start.elapsed().as_secs_f64())
}

/// Bytes for people.
pub(crate) fn gibibytes(bytes: f64) -> String {
    if bytes >= 10.0 * GIB {
        format!("{:.0} GiB", bytes / GIB)
    } else {
        format!("{:.1} GiB", bytes / GIB)
    }
}

/// Seconds for people.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_names() {
        let size = |name| Size::of_name(name).map(|size| size.parameters());
        assert_eq!(size("Qwen/Qwen3-4B"), Some(4e9));
        assert_eq!(size("Qwen/Qwen3-4B-SafeRL"), Some(4e9));
        assert_eq!(size("HuggingFaceTB/SmolLM2-135M-Instruct"), Some(135e6));
        assert_eq!(size("Qwen/Qwen2.5-0.5B"), Some(0.5e9));
        assert_eq!(size("someone/something"), None);
        assert_eq!(size(""), None);
    }

    #[test]
    fn a_checkpoint_costs_less_memory_and_lora_less_still() {
        let full = Recipe::default();
        let total = |recipe: &Recipe| {
            memory(&Size::Named(1e9), recipe)
                .iter()
                .map(|(_, bytes)| bytes)
                .sum::<f64>()
        };
        assert_eq!(total(&full), 16e9);
        let lora = Recipe {
            lora: Some(Lora::default()),
            ..full.clone()
        };
        assert!(total(&lora) < 0.3 * total(&full));
        let operations = |recipe: &Recipe| operations_a_step(&Size::Named(1e9), recipe);
        assert!(operations(&lora) < operations(&full));
        let mut kl = full.clone();
        kl.loss.kl = 0.1;
        assert_eq!(total(&kl), 20e9);
        assert!(operations(&kl) > operations(&full));
    }

    #[test]
    fn units_are_for_people() {
        assert_eq!(gibibytes(3.0 * GIB), "3.0 GiB");
        assert_eq!(duration(45.0), "45 s");
        assert_eq!(duration(7200.0), "2.0 h");
        assert_eq!(duration(10.0 * 86_400.0), "10 days");
    }
}
