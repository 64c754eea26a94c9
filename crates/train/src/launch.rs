//! A recipe on an engine for many machines: TRL under Accelerate, or verl on Ray, with our reward service.
//!
//! [`plan`] writes down what such a run needs and starts nothing: the prompts in the order in which our own trainer deals
//! them, the engine's configuration with the recipe's loss, clip, group and optimiser, our reward function, and the
//! command. What an engine cannot do as the recipe says is an error that names the key.

use std::path::Path;

use model::chat::{Message, Mode};
use model::template::RenderOptions;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::advantage::Scale;
use crate::error::{Error, Result};
use crate::gspo::Loss;
use crate::prompts::{Cursor, Deck, PromptRow, load};
use crate::recipe::{Dtype, Recipe, Schedule};

const TRL_REWARD: &str = include_str!("../../../integrations/trl/saferl_reward.py");
const VERL_REWARD: &str = include_str!("../../../integrations/verl/saferl_reward.py");

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// TRL's GRPOTrainer, started by `accelerate launch`.
    Trl,
    /// verl's PPO trainer with group advantages, started by Python (Ray starts itself or is joined).
    Verl,
}

/// Files to write and the command to start in their folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Names within the folder, and contents.
    pub files: Vec<(&'static str, String)>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables beside those that are there.
    pub environment: Vec<(&'static str, String)>,
}

/// The recipe as a run of `target` with `processes` in the folder `folder`, rewarded by the service at `url`.
/// `tokenizer` is the model's; it is needed where the recipe has several modes on TRL.
///
/// # Errors
/// A key that the target cannot follow; prompts that do not load.
pub fn plan(
    recipe: &Recipe,
    target: Target,
    processes: usize,
    url: &str,
    folder: &Path,
    tokenizer: Option<&Tokenizer>,
) -> Result<Plan> {
    check(recipe, processes)?;
    let deck = Deck::new(load(&recipe.prompts)?, &recipe.prompts.mix, recipe.seed)?;
    let mut cursor = Cursor::default();
    let mut rows = Vec::new();
    for _ in 0..recipe.steps {
        rows.extend(deck.deal(&mut cursor, recipe.rollout.prompts));
    }
    let environment = vec![("SAFERL_URL", url.to_owned())];
    match target {
        Target::Trl => Ok(Plan {
            files: vec![
                ("prompts.jsonl", trl_prompts(recipe, &rows, tokenizer)?),
                ("config.yaml", trl_config(recipe, processes, folder)?),
                ("saferl_reward.py", TRL_REWARD.to_owned()),
            ],
            command: trl_command(recipe, processes),
            environment,
        }),
        Target::Verl => Ok(Plan {
            files: vec![
                ("prompts.jsonl", verl_prompts(recipe, &rows)?),
                ("saferl_reward.py", VERL_REWARD.to_owned()),
            ],
            command: verl_command(recipe, processes, folder)?,
            environment,
        }),
    }
}

fn refuse<T>(key: &str, expected: &str, found: String) -> Result<T> {
    Err(Error::Key {
        key: key.into(),
        expected: expected.into(),
        found,
    })
}

/// What neither engine can follow.
fn check(recipe: &Recipe, processes: usize) -> Result<()> {
    if processes == 0 {
        return refuse("processes", "at least 1", "0".into());
    }
    if recipe.time_limit_s > 0.0 {
        let expected = "0 on another engine, which takes every step";
        return refuse("time_limit_s", expected, recipe.time_limit_s.to_string());
    }
    if !Path::new(&recipe.model).is_dir() && !recipe.model.contains('/') {
        let expected = "a folder or `org/name` for another engine (`saferl export hf` writes a folder)";
        return refuse("model", expected, format!("`{}`", recipe.model));
    }
    if recipe.lora.as_ref().is_some_and(|lora| !lora.layers.is_empty()) {
        return refuse(
            "lora.layers",
            "none for another engine, which adapts every layer",
            "a list".into(),
        );
    }
    if !recipe.rollout.url.is_empty() {
        let expected = "nothing for another engine, which samples by its own means";
        return refuse("rollout.url", expected, format!("`{}`", recipe.rollout.url));
    }
    if let Some(lora) = recipe.lora.as_ref().filter(|lora| lora.alpha.fract() != 0.0) {
        let expected = "a whole number for another engine";
        return refuse("lora.alpha", expected, lora.alpha.to_string());
    }
    let groups = recipe.rollout.prompts * recipe.modes.len();
    if !groups.is_multiple_of(recipe.update.minibatches) {
        let expected = format!("a divisor of a step's {groups} groups for another engine");
        return refuse(
            "update.minibatches",
            &expected,
            recipe.update.minibatches.to_string(),
        );
    }
    let each = groups / recipe.update.minibatches * recipe.rollout.completions;
    if !each.is_multiple_of(processes) {
        let expected = format!("a divisor of a minibatch's {each} completions");
        return refuse("processes", &expected, processes.to_string());
    }
    Ok(())
}

fn messages(recipe: &Recipe, row: &PromptRow) -> Vec<Message> {
    let system = Some(&recipe.prompts.system).filter(|system| !system.is_empty());
    system
        .map(Message::system)
        .into_iter()
        .chain([Message::user(&row.prompt)])
        .collect()
}

/// A line a group: messages where there is one mode, rendered text with its messages beside where there are several,
/// since TRL's template arguments are the same for all.
fn trl_prompts(recipe: &Recipe, rows: &[&PromptRow], tokenizer: Option<&Tokenizer>) -> Result<String> {
    let mut lines = String::new();
    for row in rows {
        let messages = messages(recipe, row);
        for &mode in &recipe.modes {
            let line = if recipe.modes.len() == 1 {
                json!({ "prompt": messages, "id": row.id, "kind": row.kind })
            } else {
                let tokenizer = tokenizer.ok_or_else(|| Error::Key {
                    key: "modes".into(),
                    expected: "one mode, or a model whose template is at hand".into(),
                    found: format!("{:?}", recipe.modes),
                })?;
                let text = tokenizer.render(&messages, &RenderOptions::from(mode))?.text;
                json!({ "prompt": text, "messages": messages, "mode": mode, "id": row.id, "kind": row.kind })
            };
            lines += &format!("{line}\n");
        }
    }
    Ok(lines)
}

/// The configuration of TRL's GRPO script. YAML is a superset of JSON, so that a value is written as JSON.
fn trl_config(recipe: &Recipe, processes: usize, folder: &Path) -> Result<String> {
    let (rollout, update, loss, optimizer) =
        (&recipe.rollout, &recipe.update, &recipe.loss, &recipe.optimizer);
    let step = rollout.prompts * recipe.modes.len() * rollout.completions;
    let asked = step / processes;
    if recipe.service.items < asked {
        let expected =
            format!("at least {asked}: each of TRL's processes asks for its share of a step at once");
        return refuse("service.items", &expected, recipe.service.items.to_string());
    }
    let minibatch = step / update.minibatches;
    // One group at a time where it divides the minibatch, else a completion at a time.
    let share = minibatch / processes;
    let device_batch = if share.is_multiple_of(rollout.completions) {
        rollout.completions
    } else {
        1
    };
    let level = match loss.kind {
        Loss::Gspo => "sequence",
        Loss::GspoToken => "sequence_token",
        Loss::Grpo => "token",
    };
    let mut keys: Vec<(&str, Value)> = vec![
        ("model_name_or_path", json!(model(recipe))),
        ("dtype", json!(dtype(recipe.dtype))),
        ("bf16", json!(recipe.dtype == Dtype::Bf16)),
        (
            "datasets",
            json!([{ "path": "json", "data_files": absolute(&folder.join("prompts.jsonl")), "split": "train" }]),
        ),
        ("shuffle_dataset", json!(false)),
        ("reward_funcs", json!(["saferl_reward.saferl_reward"])),
        ("output_dir", json!(absolute(&folder.join("checkpoints")))),
        ("seed", json!(recipe.seed)),
        ("num_generations", json!(rollout.completions)),
        ("generation_batch_size", json!(step)),
        ("per_device_train_batch_size", json!(device_batch)),
        ("gradient_accumulation_steps", json!(share / device_batch)),
        ("max_steps", json!(recipe.steps * update.minibatches)),
        ("num_iterations", json!(1)),
        ("max_completion_length", json!(rollout.max_new_tokens)),
        ("temperature", json!(rollout.temperature)),
        ("top_p", json!(rollout.top_p)),
        ("top_k", json!(rollout.top_k)),
        ("importance_sampling_level", json!(level)),
        ("loss_type", json!("grpo")),
        ("scale_rewards", json!(loss.scale)),
        ("epsilon", json!(loss.clip_low)),
        ("epsilon_high", json!(loss.clip_high)),
        ("beta", json!(loss.kl)),
        ("mask_truncated_completions", json!(loss.mask_truncated)),
        ("learning_rate", json!(optimizer.learning_rate)),
        ("lr_scheduler_type", json!(schedule(recipe))),
        ("warmup_steps", json!(optimizer.warmup_steps * update.minibatches)),
        ("adam_beta1", json!(optimizer.beta1)),
        ("adam_beta2", json!(optimizer.beta2)),
        ("adam_epsilon", json!(optimizer.epsilon)),
        ("weight_decay", json!(optimizer.weight_decay)),
        ("max_grad_norm", json!(update.gradient_clip)),
        ("gradient_checkpointing", json!(update.gradient_checkpointing)),
        ("logging_steps", json!(1)),
        ("save_steps", json!(recipe.checkpoint.every * update.minibatches)),
        ("save_total_limit", json!(recipe.checkpoint.keep)),
        ("report_to", json!("none")),
    ];
    if recipe.modes == [Mode::NoThink] {
        keys.push(("chat_template_kwargs", json!({ "enable_thinking": false })));
    }
    if let Some(lora) = &recipe.lora {
        keys.push(("use_peft", json!(true)));
        keys.push(("lora_r", json!(lora.rank)));
        keys.push(("lora_alpha", json!(lora.alpha as u64)));
        keys.push(("lora_dropout", json!(0.0)));
        keys.push(("lora_target_modules", json!(lora.targets)));
    }
    Ok(keys
        .iter()
        .map(|(key, value)| format!("{key}: {}\n", yaml(value)))
        .collect())
}

/// A value as YAML reads it: as JSON, but numbers without exponents, which some readers take for text.
fn yaml(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => format!("{number}"),
        _ => value.to_string(),
    }
}

fn trl_command(recipe: &Recipe, processes: usize) -> Vec<String> {
    let precision = if recipe.dtype == Dtype::Bf16 { "bf16" } else { "no" };
    let processes = processes.to_string();
    let words = [
        "accelerate",
        "launch",
        "--num_machines",
        "1",
        "--num_processes",
        processes.as_str(),
        "--mixed_precision",
        precision,
        "--dynamo_backend",
        "no",
        "-m",
        "trl.scripts.grpo",
        "--config",
        "config.yaml",
    ];
    let mut words: Vec<String> = words.map(String::from).into();
    if processes != "1" {
        // Without it, accelerate starts one process where it finds no GPU.
        words.insert(2, "--multi_gpu".into());
    }
    words
}

/// A line a group, as verl's data set has it; the reward function finds the messages in `extra_info`.
fn verl_prompts(recipe: &Recipe, rows: &[&PromptRow]) -> Result<String> {
    if recipe.modes.len() > 1 {
        let expected = "one mode on verl, whose template arguments are the same for all prompts";
        return refuse("modes", expected, format!("{:?}", recipe.modes));
    }
    let line = |(index, row): (usize, &&PromptRow)| {
        // Only these two fields: others would be null, and verl's template would print them.
        let messages: Vec<Value> = messages(recipe, row)
            .iter()
            .map(|message| json!({ "role": message.role, "content": message.content }))
            .collect();
        let line = json!({
            "data_source": "saferl",
            "prompt": messages,
            "ability": row.kind,
            "reward_model": { "style": "model", "ground_truth": "" },
            "extra_info": { "index": index, "id": row.id, "messages": messages },
        });
        format!("{line}\n")
    };
    Ok(rows.iter().enumerate().map(line).collect())
}

fn verl_command(recipe: &Recipe, processes: usize, folder: &Path) -> Result<Vec<String>> {
    let (rollout, update, loss, optimizer) =
        (&recipe.rollout, &recipe.update, &recipe.loss, &recipe.optimizer);
    let mode = match loss.kind {
        Loss::Gspo => "gspo",
        Loss::Grpo => "vanilla",
        Loss::GspoToken => {
            return refuse("loss.kind", "gspo or grpo on verl", "gspo-token".into());
        }
    };
    let prompts = absolute(&folder.join("prompts.jsonl"));
    let model = model(recipe);
    let actor = "actor_rollout_ref.actor";
    // verl's constant schedule warms up by itself.
    let schedule = match optimizer.schedule {
        Schedule::Constant => "constant",
        Schedule::Cosine => "cosine",
        Schedule::Linear => {
            return refuse(
                "optimizer.schedule",
                "constant or cosine on verl",
                "linear".into(),
            );
        }
    };
    if loss.scale == Scale::Batch {
        return refuse("loss.scale", "group on verl", "batch".into());
    }
    if loss.mask_truncated {
        let expected = "false on verl, whose loss takes truncated completions in";
        return refuse("loss.mask_truncated", expected, "true".into());
    }
    let mut words: Vec<String> = ["python3", "-m", "verl.trainer.main_ppo"]
        .map(String::from)
        .into();
    words.extend([
        "algorithm.adv_estimator=grpo".into(),
        "algorithm.use_kl_in_reward=False".into(),
        format!("data.train_files={prompts}"),
        format!("data.val_files={prompts}"),
        "data.shuffle=False".into(),
        format!("data.train_batch_size={}", rollout.prompts),
        format!("data.max_prompt_length={}", recipe.rollout.max_prompt_tokens),
        format!("data.max_response_length={}", rollout.max_new_tokens),
        "data.truncation=error".into(),
        format!("actor_rollout_ref.model.path={model}"),
        format!(
            "actor_rollout_ref.model.enable_gradient_checkpointing={}",
            if update.gradient_checkpointing {
                "True"
            } else {
                "False"
            }
        ),
        "actor_rollout_ref.rollout.name=vllm".into(),
        format!("actor_rollout_ref.rollout.n={}", rollout.completions),
        format!("actor_rollout_ref.rollout.temperature={}", rollout.temperature),
        format!("actor_rollout_ref.rollout.top_p={}", rollout.top_p),
        format!(
            "actor_rollout_ref.rollout.top_k={}",
            if rollout.top_k == 0 {
                -1
            } else {
                rollout.top_k as i64
            }
        ),
        format!(
            "{actor}.ppo_mini_batch_size={}",
            rollout.prompts / update.minibatches
        ),
        format!("{actor}.use_dynamic_bsz=True"),
        format!("{actor}.ppo_max_token_len_per_gpu={}", update.micro_batch_tokens),
        format!("{actor}.policy_loss.loss_mode={mode}"),
        format!("{actor}.loss_agg_mode=seq-mean-token-mean"),
        format!("{actor}.clip_ratio_low={}", loss.clip_low),
        format!("{actor}.clip_ratio_high={}", loss.clip_high),
        format!(
            "{actor}.use_kl_loss={}",
            if loss.kl > 0.0 { "True" } else { "False" }
        ),
        format!("{actor}.kl_loss_coef={}", loss.kl),
        format!("{actor}.grad_clip={}", update.gradient_clip),
        format!("{actor}.optim.lr={}", optimizer.learning_rate),
        format!("{actor}.optim.lr_scheduler_type={schedule}"),
        format!(
            "{actor}.optim.lr_warmup_steps={}",
            optimizer.warmup_steps * update.minibatches
        ),
        format!("{actor}.optim.weight_decay={}", optimizer.weight_decay),
        format!("{actor}.optim.betas=[{},{}]", optimizer.beta1, optimizer.beta2),
        // Ray's workers have folders of their own.
        format!(
            "reward.custom_reward_function.path={}",
            absolute(&folder.join("saferl_reward.py"))
        ),
        "reward.custom_reward_function.name=compute_score".into(),
        format!("trainer.total_training_steps={}", recipe.steps),
        format!("trainer.n_gpus_per_node={processes}"),
        "trainer.nnodes=1".into(),
        "trainer.val_before_train=False".into(),
        "trainer.test_freq=-1".into(),
        format!("trainer.save_freq={}", recipe.checkpoint.every),
        format!(
            "trainer.default_local_dir={}",
            absolute(&folder.join("checkpoints"))
        ),
        "trainer.logger=[console]".into(),
        "trainer.project_name=saferl".into(),
        format!("trainer.experiment_name={}", recipe.run),
    ]);
    if recipe.modes == [Mode::NoThink] {
        words.push("+data.apply_chat_template_kwargs.enable_thinking=False".into());
    }
    if let Some(lora) = &recipe.lora {
        words.push(format!("actor_rollout_ref.model.lora_rank={}", lora.rank));
        words.push(format!(
            "actor_rollout_ref.model.lora_alpha={}",
            lora.alpha as u64
        ));
        words.push(format!(
            "actor_rollout_ref.model.target_modules=[{}]",
            lora.targets.join(",")
        ));
    }
    Ok(words)
}

/// A path that means the same from any folder.
fn absolute(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.display().to_string()
}

/// A model's folder by its whole path; a name stays a name.
fn model(recipe: &Recipe) -> String {
    let path = Path::new(&recipe.model);
    if path.exists() {
        absolute(path)
    } else {
        recipe.model.clone()
    }
}

fn dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::Bf16 => "bfloat16",
    }
}

fn schedule(recipe: &Recipe) -> &'static str {
    match recipe.optimizer.schedule {
        // With a warm-up, transformers has a name of its own for it.
        Schedule::Constant if recipe.optimizer.warmup_steps > 0 => "constant_with_warmup",
        Schedule::Constant => "constant",
        Schedule::Linear => "linear",
        Schedule::Cosine => "cosine",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(overrides: &[&str]) -> Recipe {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        let text = "model = \"org/name\"\nsteps = 3\n[rollout]\nprompts = 4\ncompletions = 8\n[update]\nminibatches = 2";
        Recipe::parse(text, "test", &overrides).unwrap()
    }

    fn planned(target: Target, processes: usize, overrides: &[&str]) -> Result<Plan> {
        plan(
            &recipe(overrides),
            target,
            processes,
            "http://127.0.0.1:1",
            Path::new("there"),
            None,
        )
    }

    #[test]
    fn trl_gets_the_same_prompts_groups_and_clip() {
        let plan = planned(Target::Trl, 2, &[]).unwrap();
        let prompts: Vec<Value> = plan.files[0]
            .1
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(prompts.len(), 12);
        let recipe = recipe(&[]);
        let deck = Deck::new(load(&recipe.prompts).unwrap(), &recipe.prompts.mix, recipe.seed).unwrap();
        let first = deck.deal(&mut Cursor::default(), 4)[0];
        assert_eq!(
            prompts[0]["prompt"],
            json!([{"role": "user", "content": first.prompt}])
        );
        let config = &plan.files[1].1;
        // 4 prompts x 8 completions a step; 2 updates of 16, each of 2 processes x 1 group of 8.
        for line in [
            "generation_batch_size: 32\n",
            "per_device_train_batch_size: 8\n",
            "gradient_accumulation_steps: 1\n",
            "max_steps: 6\n",
            "importance_sampling_level: \"sequence\"\n",
            "epsilon: 0.0003\n",
            "epsilon_high: 0.0004\n",
            "chat_template_kwargs: {\"enable_thinking\":false}\n",
        ] {
            assert!(config.contains(line), "{line} in {config}");
        }
        assert_eq!(
            plan.environment,
            [("SAFERL_URL", "http://127.0.0.1:1".to_owned())]
        );
        assert_eq!(plan.command[..3], ["accelerate", "launch", "--multi_gpu"]);
        assert!(plan.command.contains(&"2".to_owned()));
        let alone = planned(Target::Trl, 1, &[]).unwrap();
        assert!(!alone.command.contains(&"--multi_gpu".to_owned()));
    }

    #[test]
    fn verl_gets_the_same_prompts_groups_and_clip() {
        let plan = planned(Target::Verl, 8, &["loss.kl=0.01"]).unwrap();
        for word in [
            "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
            "actor_rollout_ref.actor.clip_ratio_high=0.0004",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.n_gpus_per_node=8",
        ] {
            assert!(
                plan.command.contains(&word.to_owned()),
                "{word} in {:?}",
                plan.command
            );
        }
        let first: Value = serde_json::from_str(plan.files[0].1.lines().next().unwrap()).unwrap();
        assert_eq!(first["extra_info"]["messages"], first["prompt"]);
    }

    #[test]
    fn the_report_s_recipe_goes_to_trl_and_with_two_changes_to_verl() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/qwen3-4b-saferl.toml");
        for (target, more) in [
            (Target::Trl, vec!["modes=[\"think\"]"]),
            (
                Target::Verl,
                vec!["modes=[\"think\"]", "loss.mask_truncated=false"],
            ),
        ] {
            let built_in = ["prompts.source=built-in", "prompts.split=train"];
            let overrides: Vec<String> = more.iter().chain(&built_in).map(ToString::to_string).collect();
            let recipe = Recipe::load(&path, &overrides).unwrap();
            let plan = plan(&recipe, target, 8, "http://127.0.0.1:1", Path::new("there"), None).unwrap();
            let warm = "actor_rollout_ref.actor.optim.lr_scheduler_type=constant".to_owned();
            assert_eq!(plan.command.contains(&warm), target == Target::Verl);
        }
    }

    #[test]
    fn what_an_engine_cannot_follow_is_refused_by_name() {
        for (target, overrides, key) in [
            (Target::Trl, "model=smollm2-135m", "model"),
            (Target::Trl, "modes=[\"think\", \"no-think\"]", "modes"),
            (Target::Verl, "modes=[\"think\", \"no-think\"]", "modes"),
            (Target::Verl, "loss.kind=gspo-token", "loss.kind"),
            (Target::Verl, "optimizer.schedule=linear", "optimizer.schedule"),
            (Target::Trl, "update.minibatches=3", "update.minibatches"),
            (Target::Trl, "lora.layers=[1]", "lora.layers"),
            (Target::Trl, "rollout.url=http://127.0.0.1:1/v1", "rollout.url"),
            (Target::Verl, "rollout.url=http://127.0.0.1:1/v1", "rollout.url"),
            (Target::Trl, "lora.alpha=2.5", "lora.alpha"),
            (Target::Verl, "lora.alpha=2.5", "lora.alpha"),
            (Target::Verl, "loss.mask_truncated=true", "loss.mask_truncated"),
            (Target::Verl, "loss.scale=batch", "loss.scale"),
            (Target::Trl, "time_limit_s=60.0", "time_limit_s"),
            (Target::Trl, "service.items=31", "service.items"),
        ] {
            let error = planned(target, 1, &[overrides]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        // Two processes ask for half a step each; verl asks for one reply at a time.
        assert!(planned(Target::Trl, 2, &["service.items=16"]).is_ok());
        assert!(planned(Target::Verl, 1, &["service.items=1"]).is_ok());
        assert!(
            planned(Target::Trl, 5, &[])
                .unwrap_err()
                .to_string()
                .contains("processes")
        );
    }
}
