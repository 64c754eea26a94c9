//! What a recipe may not say, and what it had better not.

use std::path::Path;

use judge::endpoint::is_address;

use super::{Push, Recipe};
use crate::error::{Error, Result};
use crate::gspo::Loss;

impl Recipe {
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
    pub(super) fn check(&self) -> Result<()> {
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
        require(
            "time_limit_s",
            "seconds, or 0 for no limit",
            self.time_limit_s,
            not_negative(self.time_limit_s),
        )?;
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
        let address = is_address(&rollout.url);
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
