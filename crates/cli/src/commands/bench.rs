//! `saferl bench`: how fast the work of this program is here, beside what the machine gives.
//!
//! A figure is the median of some repetitions after one that is not counted. The machine's own ceiling, a square f32
//! product and a copy, is measured in the same process. `cpu_s` is the time that the threads really had, which says more
//! than the clock where other programs compute beside this one. On another device than the CPU a repetition ends when the
//! device is done; its ceiling and its memory are not measured.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use kernels::{Packed, Segment};
use model::chat::{Message, Mode};
use model::decoder::Decoder;
use model::engine::Engine;
use model::generate::Sampling;
use model::tokenizer::Tokenizer;
use serde::Serialize;
use train::gradient::{Activations, Gradients, backpropagate};
use train::optimizer::Optimizer;
use train::pack::Pack;
use train::recipe::{OptimizerRecipe, Recipe};
use train::run::Trainer;

use crate::arguments::{Bench, Work};
use crate::commands::train::tell;
use crate::error::{Error, Result};
use crate::local::{check_precision, open_device, resolve};
use crate::output::{print_json, print_line};

/// Tokens that each sequence generates.
const NEW_TOKENS: usize = 64;
/// Prompts of a GSPO step.
const PROMPTS: usize = 4;
/// Sequences of a training step, and their tokens.
const TRAINED: (usize, usize) = (8, 256);
/// By which the number of threads reaches every library that counts them.
const THREADS: &str = "RAYON_NUM_THREADS";

/// One timed piece of work.
struct Task {
    /// What its size counts, and how many.
    size: String,
    /// Tokens that one repetition takes or makes; 0 for a product.
    tokens: f64,
    /// Multiplications and additions of its matrix products.
    operations: f64,
    /// Bytes of weights that it reads at least; 0 where arithmetic is what counts.
    bytes: f64,
}

/// What `--json` prints for each size.
#[derive(Debug, Serialize)]
struct Figures {
    work: Work,
    model: String,
    dtype: &'static str,
    threads: usize,
    size: String,
    repeats: usize,
    median_s: f64,
    /// Processor time of all threads, the median; `None` where the system does not tell.
    cpu_s: Option<f64>,
    /// Slowest less fastest, as a share of the median.
    spread: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
    gflop_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_per_s: Option<f64>,
    /// Of the process so far; `None` where the system does not tell.
    peak_mb: Option<f64>,
    #[serde(flatten)]
    ceiling: Option<Machine>,
}

/// What the CPU gives, and how much of it was reached.
#[derive(Debug, Clone, Copy, Serialize)]
struct Machine {
    /// What a square f32 product by candle reaches.
    ceiling_gflop_per_s: f64,
    /// What a copy reaches, reading and writing.
    ceiling_gb_per_s: f64,
    /// The larger of the two shares of a ceiling.
    share_of_ceiling: f64,
}

impl Machine {
    /// Measures it; nothing is reached yet.
    fn measure() -> Result<Self> {
        Ok(Self {
            ceiling_gflop_per_s: kernels::product_ceiling().map_err(model::Error::from)?,
            ceiling_gb_per_s: kernels::copy_ceiling(),
            share_of_ceiling: 0.0,
        })
    }

    fn reached(self, gflop_per_s: f64, gb_per_s: f64) -> Self {
        let (products, copies) = (self.ceiling_gflop_per_s, self.ceiling_gb_per_s);
        Self {
            share_of_ceiling: (gflop_per_s / products).max(gb_per_s / copies),
            ..self
        }
    }
}

/// Times one kind of work at every size.
pub(crate) fn run(arguments: &Bench) -> Result<()> {
    if let Some(threads) = arguments.threads {
        start_again_with(threads)?;
    }
    let device = open_device(&arguments.on)?;
    check_precision(arguments.dtype, &device)?;
    let ceiling = device.is_cpu().then(Machine::measure).transpose()?;
    let mut show = |task: Task, times: Vec<Seconds>| show(arguments, ceiling, &task, &times);
    match arguments.work {
        Work::Matmul => matmul(arguments, &device, &mut show),
        Work::Prefill => prefill(arguments, &device, &mut show),
        Work::Decode => decode(arguments, &device, &mut show),
        Work::Train => train(arguments, &device, &mut show),
        Work::Step => step(arguments, &device, &mut show),
    }
}

/// Libraries read the number of threads once, at their start: so the program starts again with it.
fn start_again_with(threads: usize) -> Result<()> {
    let wanted = threads.max(1).to_string();
    if std::env::var(THREADS).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let again = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(THREADS, wanted)
            .status()
    });
    let status = again.map_err(|source| Error::file(&PathBuf::from("saferl"), source))?;
    exit(status.code().unwrap_or(2))
}

/// How long a repetition took.
#[derive(Clone, Copy)]
struct Seconds {
    clock: f64,
    processor: Option<f64>,
}

type Show<'a> = &'a mut dyn FnMut(Task, Vec<Seconds>) -> Result<()>;

fn show(arguments: &Bench, ceiling: Option<Machine>, task: &Task, seconds: &[Seconds]) -> Result<()> {
    let sorted = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times
    };
    let times = sorted(seconds.iter().map(|seconds| seconds.clock).collect());
    let processor = sorted(seconds.iter().filter_map(|seconds| seconds.processor).collect());
    let median_s = times[times.len() / 2];
    let rate = |amount: f64| (amount > 0.0).then(|| amount / median_s);
    let gflop_per_s = task.operations / median_s / 1e9;
    let gb_per_s = rate(task.bytes / 1e9);
    let figures = Figures {
        work: arguments.work,
        model: arguments.model.clone(),
        dtype: arguments.dtype.name(),
        threads: kernels::threads(),
        size: task.size.clone(),
        repeats: times.len(),
        median_s,
        cpu_s: processor.get(processor.len() / 2).copied(),
        spread: (times[times.len() - 1] - times[0]) / median_s,
        tokens_per_s: rate(task.tokens),
        gflop_per_s,
        gb_per_s,
        peak_mb: peak_mebibytes(),
        ceiling: ceiling.map(|ceiling| ceiling.reached(gflop_per_s, gb_per_s.unwrap_or(0.0))),
    };
    if arguments.json {
        return print_json(&figures);
    }
    let of =
        |value: Option<f64>, unit: &str| value.map_or(String::new(), |value| format!(", {value:.1} {unit}"));
    let share = figures.ceiling.map_or(String::new(), |ceiling| {
        format!(
            "; {:.0}% of the machine's {:.1} GFLOP/s or {:.1} GB/s",
            ceiling.share_of_ceiling * 100.0,
            ceiling.ceiling_gflop_per_s,
            ceiling.ceiling_gb_per_s
        )
    });
    print_line(&format!(
        "{}: {median_s:.4} s (spread {:.0}%){}, {gflop_per_s:.1} GFLOP/s{}{}{share}",
        figures.size,
        figures.spread * 100.0,
        of(figures.tokens_per_s, "tokens/s"),
        of(figures.gb_per_s, "GB/s of weights"),
        of(figures.peak_mb, "MiB at most"),
    ))
}

/// The most memory that this process has held.
fn peak_mebibytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

/// Processor time that this process's threads have had, in seconds.
fn processor_seconds() -> Option<f64> {
    let mut nanoseconds = 0.0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let statistics = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += statistics.split(' ').next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds / 1e9)
}

/// Seconds of each of some repetitions, after one that is not counted.
fn time(repeats: usize, mut body: impl FnMut() -> Result<Seconds>) -> Result<Vec<Seconds>> {
    body()?;
    (0..repeats.max(1)).map(|_| body()).collect()
}

/// Seconds that `body` takes, until `device` has done what it was given.
fn clock<T>(device: &Device, body: impl FnOnce() -> Result<T>) -> Result<Seconds> {
    let (start, before) = (Instant::now(), processor_seconds());
    body()?;
    device.synchronize().map_err(model::Error::from)?;
    let clock = start.elapsed().as_secs_f64();
    let processor = before.and_then(|before| Some(processor_seconds()? - before));
    Ok(Seconds { clock, processor })
}

fn sizes(arguments: &Bench, default: &[usize]) -> Vec<usize> {
    let sizes = if arguments.sizes.is_empty() {
        default
    } else {
        &arguments.sizes
    };
    sizes.iter().map(|&size| size.max(1)).collect()
}

/// Ids that a model of any vocabulary has, the same for every call.
fn ids(vocabulary: usize, count: usize, seed: usize) -> Vec<u32> {
    let id = |at: usize| ((at + seed * 131) * 7919 + 13) % vocabulary;
    (0..count).map(|at| id(at) as u32).collect()
}

struct Loaded {
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
}

fn load(arguments: &Bench, device: &Device) -> Result<Loaded> {
    let source = resolve(&arguments.model)?;
    let load = if arguments.work == Work::Train {
        Decoder::load
    } else {
        Decoder::load_for_inference
    };
    Ok(Loaded {
        decoder: load(&source, arguments.dtype.into(), device)?,
        tokenizer: Arc::new(Tokenizer::load(&source)?),
    })
}

fn matmul(arguments: &Bench, device: &Device, show: Show<'_>) -> Result<()> {
    if !kernels::fuses(device) {
        return Err(Error::Request {
            what: "bench matmul: packed products are the CPU's alone".into(),
            hint: "prefill, decode, train and step run on every device".into(),
        });
    }
    let config = load(arguments, device)?.decoder.config;
    let (inputs, outputs) = (config.hidden, config.intermediate);
    let failed = |error: candle_core::Error| Error::Model(error.into());
    let weight_n_k = Tensor::rand(-1f32, 1., (outputs, inputs), device).map_err(failed)?;
    let packed = Packed::new(&weight_n_k, arguments.dtype.into()).map_err(failed)?;
    for rows in sizes(arguments, &[1, 32, 2048]) {
        let x_t_k = Tensor::rand(-1f32, 1., (rows, inputs), device).map_err(failed)?;
        // Small products in a row, or the clock is what is timed.
        let count = (4096 / rows).max(1);
        let times = time(arguments.repeats, || {
            let seconds = clock(device, || {
                (0..count)
                    .try_for_each(|_| kernels::product_packed(&x_t_k, &packed).map(drop).map_err(failed))
            })?;
            Ok(Seconds {
                clock: seconds.clock / count as f64,
                processor: seconds.processor.map(|processor| processor / count as f64),
            })
        })?;
        let task = Task {
            size: format!("{rows}x{inputs}x{outputs}"),
            tokens: 0.0,
            operations: 2.0 * (rows * inputs * outputs) as f64,
            bytes: packed.bytes() as f64,
        };
        show(task, times)?;
    }
    Ok(())
}

fn prefill(arguments: &Bench, device: &Device, show: Show<'_>) -> Result<()> {
    let Loaded { decoder, .. } = load(arguments, device)?;
    for tokens in sizes(arguments, &[512]) {
        let ids = ids(decoder.config.vocabulary, tokens, 0);
        let segments = [Segment {
            start: 0,
            len: tokens,
            prefix: None,
        }];
        let times = time(arguments.repeats, || {
            clock(device, || {
                let hidden_t_d = decoder.hidden(&ids, &segments)?;
                let last_1_d = hidden_t_d.narrow(0, tokens - 1, 1).map_err(model::Error::from)?;
                Ok(decoder.logits(&last_1_d)?)
            })
        })?;
        let head = decoder.config.vocabulary * decoder.config.hidden;
        let task = Task {
            size: format!("{tokens} tokens"),
            tokens: tokens as f64,
            operations: 2.0 * (tokens * (decoder.matrix_numbers() - head) + head) as f64,
            bytes: 0.0,
        };
        show(task, times)?;
    }
    Ok(())
}

fn decode(arguments: &Bench, device: &Device, show: Show<'_>) -> Result<()> {
    let Loaded { decoder, tokenizer } = load(arguments, device)?;
    let messages = [Message::user(
        "Write a long story about a lighthouse and its keeper.",
    )];
    let mut prompt = tokenizer.prompt(&messages, Mode::NoThink)?;
    if let Some(tokens) = arguments.context {
        prompt.ids = ids(decoder.config.vocabulary, tokens.max(1), 0);
    }
    let sampling = Sampling {
        max_new_tokens: NEW_TOKENS,
        temperature: 0.6,
        ..Sampling::default()
    };
    for batch in sizes(arguments, &[1, 8, 32]) {
        let room = prompt.ids.len() + batch * (NEW_TOKENS + 32) + 64;
        let mut engine = Engine::new(decoder.clone(), Arc::clone(&tokenizer), room)?;
        let mut tokens = 0;
        let times = time(arguments.repeats, || {
            engine.submit(&prompt, batch, &sampling)?;
            // The prompt is read, and the first tokens are drawn, before the clock starts.
            let before = engine.metrics().tokens;
            while engine.metrics().tokens == before {
                engine.step()?;
            }
            let first = engine.metrics().tokens;
            let seconds = clock(device, || {
                while !engine.is_idle() {
                    engine.step()?;
                }
                Ok(())
            })?;
            tokens = engine.metrics().tokens - first;
            Ok(seconds)
        })?;
        let after = arguments.context.map(|tokens| format!(" after {tokens} tokens"));
        let task = Task {
            size: format!("batch {batch}{}", after.unwrap_or_default()),
            tokens: tokens as f64,
            operations: 2.0 * (tokens * decoder.matrix_numbers()) as f64,
            bytes: decoder.matrix_bytes() as f64 * tokens as f64 / batch as f64,
        };
        show(task, times)?;
    }
    Ok(())
}

fn train(arguments: &Bench, device: &Device, show: Show<'_>) -> Result<()> {
    let Loaded { mut decoder, .. } = load(arguments, device)?;
    let mut optimizer = Optimizer::new(decoder.make_trainable()?)?;
    let recipe = OptimizerRecipe::default();
    let mut pack = Pack::default();
    let (sequences, length) = TRAINED;
    for sequence in 0..sequences {
        let start = sequence * length;
        let ids = ids(decoder.config.vocabulary, length, sequence);
        pack.segments.push(Segment {
            start,
            len: length,
            prefix: None,
        });
        pack.rows
            .extend((start..start + length - 1).map(|row| row as u32));
        pack.targets.extend(&ids[1..]);
        pack.ids.extend(ids);
        pack.lengths.push(length - 1);
        pack.advantages.push(1.0);
    }
    let mut updates = 0;
    let activations = Activations::checkpointed(arguments.gradient_checkpointing);
    let times = time(arguments.repeats, || {
        clock(device, || {
            updates += 1;
            kernels::in_pool(|| {
                let mut gradients = Gradients::new(optimizer.parameters());
                let loss = |log_probability_n: &Tensor| Ok(log_probability_n.mean_all()?.neg()?);
                backpropagate(&decoder, &pack, None, 1.0, activations, loss, &mut gradients)?;
                let sums = gradients.into_sums();
                Ok(optimizer.update(&recipe, &sums, updates, 1e-6, 1.0)?)
            })
        })
    })?;
    let tokens = (sequences * length) as f64;
    let task = Task {
        size: format!("{sequences} x {length} tokens"),
        tokens,
        operations: 6.0 * tokens * decoder.matrix_numbers() as f64,
        bytes: 0.0,
    };
    show(task, times)
}

fn step(arguments: &Bench, device: &Device, show: Show<'_>) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("saferl-bench-{}", std::process::id()));
    for completions in sizes(arguments, &[8]) {
        let timed = steps(arguments, device, completions, &folder);
        // Written for nobody, and in the way of nobody if it stays.
        std::fs::remove_dir_all(&folder).ok();
        let (task, times) = timed?;
        show(task, times)?;
    }
    Ok(())
}

/// Steps of a run in `folder` with so many completions of each prompt.
fn steps(
    arguments: &Bench,
    device: &Device,
    completions: usize,
    folder: &Path,
) -> Result<(Task, Vec<Seconds>)> {
    let lora = match arguments.lora {
        Some(rank) => format!("[lora]\nrank = {rank}\nalpha = {}\n", 2.0 * rank as f64),
        None => String::new(),
    };
    let text = format!(
        "run = \"step\"\nruns_dir = {:?}\nmodel = {:?}\ndtype = {:?}\nsteps = {}\nmodes = [\"no-think\"]\n\
         [rollout]\nprompts = {PROMPTS}\ncompletions = {completions}\nmax_new_tokens = {NEW_TOKENS}\n\
         [judge]\nguard = \"toy\"\nhelpfulness = \"toy\"\n[loss]\nkl = 0.0\n[update]\nminibatches = 1\ngradient_checkpointing = {}\n\
         [optimizer]\nlearning_rate = 1e-6\n{lora}",
        folder.display().to_string(),
        arguments.model,
        arguments.dtype.name(),
        arguments.repeats + 1,
        arguments.gradient_checkpointing,
    );
    let recipe = Recipe::parse(&text, "saferl bench step", &[])?;
    let source = resolve(&recipe.model)?;
    let mut judge = train::judges::open(&recipe.judge, device)?;
    let mut trainer = Trainer::new(&recipe, &source, device, false, &mut tell)?;
    let mut tokens = 0;
    let times = time(arguments.repeats, || {
        clock(device, || {
            let (metrics, _) = trainer.take_step(&mut judge)?;
            tokens += metrics.tokens;
            Ok(())
        })
    })?;
    let tokens = tokens as f64 / (times.len() + 1) as f64;
    // Each sampled token is computed once to draw it and three times over to learn from it: forward, and backward to its
    // inputs and to the weights, of which adapters need the first alone.
    let passes = if arguments.lora.is_some() { 3.0 } else { 4.0 };
    let task = Task {
        size: format!("{PROMPTS} prompts x {completions} x {NEW_TOKENS} tokens"),
        tokens,
        operations: 2.0 * passes * tokens * trainer.decoder().matrix_numbers() as f64,
        bytes: 0.0,
    };
    Ok((task, times))
}
