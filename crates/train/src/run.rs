//! The run: deal, sample, judge, compare, update, record, save.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use judge::Judge;
use model::chat::Mode;
use model::decoder::Decoder;
use model::engine::Engine;
use model::generate::Generate;
use model::lora::Lora;
use model::source::Source;
use model::tokenizer::Tokenizer;

use crate::alarm::Alarm;
use crate::checkpoint::{self, State};
use crate::error::{Error, Result};
use crate::folder::RunFolder;
use crate::gradient::{Activations, Below, Gradients, backpropagate, log_probabilities};
use crate::gspo::{Completions, Statistics};
use crate::metrics::{Metrics, Replies, resident_mebibytes};
use crate::optimizer::{Optimizer, learning_rate};
use crate::pack::{Family, Pack, minibatches, pack};
use crate::prompts::{Cursor, Deck, load};
use crate::question::render;
use crate::recipe::Recipe;
use crate::rollout::{Group, judge_all, sample};
use crate::server::Server;

/// Rows of the KV pool that the sampler gets without being asked for a number.
const POOL_TOKENS: usize = 1 << 16;

/// What a run tells whoever watches.
#[derive(Debug)]
pub enum Event<'a> {
    /// It goes on behind this step.
    Resumed(usize),
    /// Something is odd, but the run goes on.
    Warning(String),
    /// A step is done.
    Step(&'a Metrics),
    /// An alarm sounds; see [`crate::alarm`].
    Alarm(&'a str),
    /// A checkpoint is whole.
    Saved(&'a Path),
}

/// Everything that a run holds.
pub struct Trainer {
    recipe: Recipe,
    folder: RunFolder,
    deck: Deck,
    tokenizer: Arc<Tokenizer>,
    engine: Engine,
    /// Samples in the engine's place, where the recipe says so.
    server: Option<Server>,
    decoder: Decoder,
    /// The model that the run started from; only where `loss.kl` asks for it.
    reference: Option<Decoder>,
    optimizer: Optimizer,
    cursor: Cursor,
    alarm: Alarm,
    step: usize,
}

impl Trainer {
    /// Loads model and prompts and opens the run folder, at its newest whole checkpoint where `resume` says so.
    ///
    /// # Errors
    /// A run folder that is in use already or belongs to another recipe, a prompt that is too long, a model that does
    /// not load, a checkpoint that does not fit.
    pub fn new(
        recipe: &Recipe,
        source: &Source,
        device: &Device,
        resume: bool,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        recipe
            .warnings()
            .into_iter()
            .for_each(|warning| watch(Event::Warning(warning)));
        let tokenizer = Arc::new(Tokenizer::load(source)?);
        let deck = Deck::new(load(&recipe.prompts)?, &recipe.prompts.mix, recipe.seed)?;
        let longest_prompt = longest_prompt(recipe, &tokenizer, &deck)?;
        let checkpoints = recipe.folder().join("checkpoints");
        let saved = match resume {
            true => checkpoint::latest(&checkpoints, &mut |warning| watch(Event::Warning(warning)))?,
            false => None,
        };
        let step = saved.as_ref().map_or(0, |(_, state)| state.step);
        let folder = RunFolder::open(recipe, source, resume, step)?;

        let mut decoder = Decoder::load(source, recipe.dtype.into(), device)?;
        let start = decoder.clone();
        let parameters = match &recipe.lora {
            Some(crate::recipe::Lora {
                rank,
                alpha,
                targets,
                layers,
            }) => {
                let lora = Lora {
                    rank: *rank,
                    alpha: *alpha,
                    targets: targets.clone(),
                    layers: layers.clone(),
                };
                decoder.add_adapters(&lora, recipe.seed)?
            }
            None => decoder.make_trainable()?,
        };
        let mut optimizer = Optimizer::new(parameters)?;
        let (mut cursor, mut alarm) = (Cursor::default(), Alarm::default());
        if let Some((path, state)) = saved {
            checkpoint::restore(&path, &state, &mut optimizer, device)?;
            (cursor, alarm) = (state.cursor, state.alarm);
            watch(Event::Resumed(step));
        }
        let reference = (recipe.loss.kl > 0.0).then_some(start);
        let pool_tokens = pool_tokens(recipe, longest_prompt);
        let engine = Engine::new(decoder.frozen()?, Arc::clone(&tokenizer), pool_tokens)?;
        let server = Server::of(recipe, &tokenizer)?;
        let recipe = recipe.clone();
        let mut trainer = Self {
            recipe,
            folder,
            deck,
            tokenizer,
            engine,
            server,
            decoder,
            reference,
            optimizer,
            cursor,
            alarm,
            step,
        };
        trainer.push_weights()?;
        Ok(trainer)
    }

    /// Gives the server that samples, if there is one that wants them, the adapters as they are now.
    fn push_weights(&mut self) -> Result<()> {
        let Some(server) = self.server.as_mut().filter(|server| server.takes_adapters()) else {
            return Ok(());
        };
        let name = format!("{}-step-{}", self.recipe.run, self.step);
        let folder = self.folder.path().join("pushed").join(&name);
        self.decoder
            .save_adapters(&folder, &base_name(&self.recipe.model))?;
        server.load_adapters(&name, &folder)?;
        // The server has read the new ones; those before are of no use to anybody.
        let before = format!("{}-step-{}", self.recipe.run, self.step.wrapping_sub(1));
        let before = self.folder.path().join("pushed").join(before);
        if before.exists() {
            std::fs::remove_dir_all(&before).map_err(|source| Error::file(&before, source))?;
        }
        Ok(())
    }

    /// Takes the steps that are left, or those that `time_limit_s` has time for. The sampler then has the trained weights.
    ///
    /// # Errors
    /// Whatever stops a step; all that was written before stays, and the last checkpoint is whole.
    pub fn run(&mut self, judge: &mut dyn Judge, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let (began, limit) = (Instant::now(), self.recipe.time_limit_s);
        while self.step < self.recipe.steps {
            let (metrics, alarms) = self.take_step(judge)?;
            watch(Event::Step(&metrics));
            alarms.iter().for_each(|alarm| watch(Event::Alarm(alarm)));
            let stopped = alarms.into_iter().next().filter(|_| self.recipe.alarm.stop);
            let late = limit > 0.0 && began.elapsed().as_secs_f64() >= limit;
            let due =
                self.step.is_multiple_of(self.recipe.checkpoint.every) || self.step == self.recipe.steps;
            if late || due || stopped.is_some() {
                watch(Event::Saved(&self.save()?));
            }
            if let Some(what) = stopped {
                return Err(Error::Alarm {
                    step: self.step,
                    what,
                });
            }
            if late {
                break;
            }
        }
        Ok(())
    }

    /// One step of the algorithm; its metrics, and the alarms that sound. [`Trainer::run`] is the way to train; a step
    /// alone leaves no checkpoint.
    ///
    /// # Errors
    /// Whatever stops the step.
    pub fn take_step(&mut self, judge: &mut dyn Judge) -> Result<(Metrics, Vec<String>)> {
        let (began, step, recipe) = (Instant::now(), self.step + 1, self.recipe.clone());
        let mut cursor = self.cursor.clone();
        let rows = self.deck.deal(&mut cursor, recipe.rollout.prompts);
        let questions = render(&recipe, &self.tokenizer, &rows)?;

        let sampling = recipe.rollout.sampling(seed_of(recipe.seed, step));
        let policy: &mut dyn Generate = match &mut self.server {
            Some(server) => server,
            None => &mut self.engine,
        };
        let completions = sample(policy, &questions, recipe.rollout.completions, &sampling)?;
        let rollout_s = began.elapsed().as_secs_f64();
        let groups = judge_all(&recipe, judge, step, questions, completions)?;
        let judge_s = began.elapsed().as_secs_f64() - rollout_s;

        // The sampler's own copy of the weights, in the order in which products read them, makes room for the update.
        self.engine.set_decoder(self.decoder.clone())?;
        let lr = learning_rate(&recipe.optimizer, step, recipe.steps);
        let update = kernels::in_pool(|| self.update(step, lr, &groups))?;
        self.engine.set_decoder(self.decoder.frozen()?)?;
        let update_s = began.elapsed().as_secs_f64() - rollout_s - judge_s;

        let step_s = began.elapsed().as_secs_f64();
        let tokens = groups
            .iter()
            .flat_map(|group| &group.answers)
            .map(|answer| answer.completion.ids.len())
            .sum();
        let metrics = Metrics {
            step,
            replies: Replies::measure(groups.iter()),
            lr,
            tokens,
            rollout_s,
            judge_s,
            update_s,
            step_s,
            tokens_per_s: tokens as f64 / step_s,
            rss_mb: resident_mebibytes(),
            modes: by_mode(&recipe.modes, &groups),
            ..update.metrics()
        };
        let alarms = self.alarm.watch(&recipe.alarm, &metrics.replies, &groups);
        self.folder.record(&metrics, &groups, &alarms)?;
        (self.step, self.cursor) = (step, cursor);
        self.push_weights()?;
        Ok((metrics, alarms.into_iter().map(|(_, text)| text).collect()))
    }

    /// Takes a batch in minibatches, each one update.
    fn update(&mut self, step: usize, learning_rate: f64, groups: &[Group]) -> Result<Updates> {
        let recipe = &self.recipe;
        let (objective, temperature) = (recipe.loss.objective(), recipe.rollout.temperature);
        let families: Vec<Family<'_>> = groups
            .iter()
            .filter_map(|group| Family::of(group, recipe.loss.mask_truncated))
            .collect();
        let batches: Vec<Vec<Pack>> = minibatches(&families, recipe.update.minibatches)
            .into_iter()
            .map(|families| pack(families, recipe.update.micro_batch_tokens))
            .collect();
        // The first minibatch meets the policy that sampled still in place: its own log-probabilities are the old ones,
        // and its ratios exactly 1. For the others they are taken before anything changes.
        let mut old = Vec::new();
        if batches.len() > 1 {
            let policy = self.decoder.frozen()?;
            for packs in &batches[1..] {
                let packs = packs.iter().map(|pack| sampled(&policy, pack, temperature));
                old.push(packs.collect::<Result<Vec<_>>>()?);
            }
        }

        let mut updates = Updates::default();
        for (index, packs) in batches.iter().enumerate() {
            let minibatch = packs.iter().map(|pack| pack.lengths.len()).sum();
            let mut gradients = Gradients::new(self.optimizer.parameters());
            for (place, pack) in packs.iter().enumerate() {
                let below = match self.decoder.blocks_below_adapters() {
                    0 => None,
                    blocks => Some(Below::new(&self.decoder, pack, blocks)?),
                };
                let below = below.as_ref();
                let reference_n = match &self.reference {
                    Some(reference) => Some(log_probabilities(reference, pack, below, temperature)?),
                    None => None,
                };
                let loss = |new_n: &Tensor| {
                    let old_n = if index == 0 {
                        &new_n.detach()
                    } else {
                        &old[index - 1][place]
                    };
                    if index == 0 && temperature == 1.0 {
                        updates.compare(new_n, &pack.sampler)?;
                    }
                    let completions = Completions {
                        lengths: &pack.lengths,
                        advantages: &pack.advantages,
                        old_t: old_n,
                        reference_t: reference_n.as_ref(),
                        minibatch,
                    };
                    let (loss, statistics) = objective.loss(new_n, &completions)?;
                    if !statistics.loss.is_finite() {
                        let what = "the loss".into();
                        return Err(Error::NotFinite {
                            step,
                            what,
                            value: statistics.loss,
                        });
                    }
                    updates.statistics.add(&statistics);
                    Ok(loss)
                };
                let activations = Activations::checkpointed(recipe.update.gradient_checkpointing);
                let decoder = &self.decoder;
                backpropagate(
                    decoder,
                    pack,
                    below,
                    temperature,
                    activations,
                    loss,
                    &mut gradients,
                )?;
            }
            let sums = gradients.into_sums();
            let clip = recipe.update.gradient_clip;
            let norm = self
                .optimizer
                .update(&recipe.optimizer, &sums, step, learning_rate, clip)?;
            updates.norms.push(norm);
        }
        Ok(updates)
    }

    /// Writes a checkpoint of the present step.
    fn save(&mut self) -> Result<PathBuf> {
        self.folder.synchronize()?;
        let state = State {
            step: self.step,
            seed: self.recipe.seed,
            updates: self.optimizer.updates,
            cursor: self.cursor.clone(),
            alarm: self.alarm.clone(),
        };
        let (decoder, recipe) = (&self.decoder, &self.recipe);
        checkpoint::save(
            &self.folder.checkpoints(),
            recipe.checkpoint.keep,
            &state,
            &self.optimizer,
            |folder| {
                match &recipe.lora {
                    Some(_) => decoder.save_adapters(folder, &base_name(&recipe.model))?,
                    None => decoder.save(folder, DType::F32)?,
                }
                Ok(self.tokenizer.save(folder)?)
            },
        )
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The sampler with the weights as they are now.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }
}

/// What a step's minibatches saw.
#[derive(Debug, Default)]
struct Updates {
    statistics: Statistics,
    norms: Vec<f64>,
    gap_sum: f64,
    gap_tokens: usize,
}

impl Updates {
    /// Holds the trainer's log-probabilities of sampled tokens against the sampler's, both of temperature 1.
    fn compare(&mut self, trainer_n: &Tensor, sampler: &[f32]) -> Result<()> {
        for (trainer, sampler) in trainer_n.detach().to_vec1::<f32>()?.iter().zip(sampler) {
            self.gap_sum += f64::from((trainer - sampler).abs());
            self.gap_tokens += 1;
        }
        Ok(())
    }

    fn metrics(&self) -> Metrics {
        let seen = &self.statistics;
        let of = |sum: f64, count: usize| (count > 0).then(|| sum / count as f64);
        Metrics {
            ratio_mean: of(seen.ratio_sum, seen.ratios),
            ratio_max: (seen.ratios > 0).then_some(seen.ratio_max),
            clip_fraction: of(seen.clipped as f64, seen.ratios),
            kl: seen.kl_sum.and_then(|sum| of(sum, seen.completions)),
            grad_norm: of(self.norms.iter().sum(), self.norms.len()),
            sampler_gap: of(self.gap_sum, self.gap_tokens),
            ..Metrics::default()
        }
    }
}

/// A model's name as it is to stand in an adapter's file: a path means the same from any folder.
fn base_name(model: &str) -> String {
    std::fs::canonicalize(model).map_or_else(|_| model.to_owned(), |path| path.display().to_string())
}

/// Log-probabilities of a pack's tokens under the policy that sampled them. At temperature 1 they are the sampler's own,
/// which runs the same kernels (`sampler_gap` says how close it comes); at another, the policy is asked again.
fn sampled(policy: &Decoder, pack: &Pack, temperature: f64) -> Result<Tensor> {
    if temperature == 1.0 && pack.sampler.len() == pack.targets.len() {
        return Ok(Tensor::new(pack.sampler.as_slice(), policy.device())?);
    }
    log_probabilities(policy, pack, None, temperature)
}

/// The seed of a step's sampling: a step draws the same whether the run was interrupted before it or not.
fn seed_of(seed: u64, step: usize) -> u64 {
    // The finaliser of splitmix64, so that neighbouring steps and seeds have nothing in common.
    let mut mixed = seed.wrapping_add((step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn by_mode(modes: &[Mode], groups: &[Group]) -> std::collections::BTreeMap<Mode, Replies> {
    if modes.len() < 2 {
        return std::collections::BTreeMap::new();
    }
    let of = |mode| Replies::measure(groups.iter().filter(move |group| group.prompt.mode == mode));
    modes.iter().map(|&mode| (mode, of(mode))).collect()
}

/// Renders every prompt once, so that one that is too long stops the run before it starts.
fn longest_prompt(recipe: &Recipe, tokenizer: &Tokenizer, deck: &Deck) -> Result<usize> {
    let questions = render(recipe, tokenizer, &deck.rows().iter().collect::<Vec<_>>())?;
    Ok(questions
        .iter()
        .map(|question| question.prompt.ids.len())
        .max()
        .unwrap_or_default())
}

/// Room for a whole step, within reason; what does not fit waits its turn in the sampler.
fn pool_tokens(recipe: &Recipe, longest_prompt: usize) -> usize {
    let rollout = &recipe.rollout;
    if rollout.pool_tokens > 0 {
        return rollout.pool_tokens;
    }
    // A sequence's last block is half empty on average.
    let block = model::kv_pool::BLOCK_SLOTS;
    let group = longest_prompt + block + rollout.completions * (rollout.max_new_tokens + block);
    let step = rollout.prompts * recipe.modes.len() * group;
    step.min(POOL_TOKENS.max(longest_prompt + rollout.max_new_tokens + 2 * block))
}
