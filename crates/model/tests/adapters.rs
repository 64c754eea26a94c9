//! One engine for a model and LoRA adapters on it: each replies as it would alone, whatever the others do.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use model::chat::{Message, Mode, Prompt};
use model::config::Family;
use model::decoder::Decoder;
use model::engine::{Adapted, Engine, Extras, News, Ticket};
use model::generate::{Completion, Sampling};
use model::lora::Lora;
use model::seeded;
use model::tokenizer::Tokenizer;

type Outcome = Result<(), Box<dyn Error>>;

const TEXTS: [&str; 3] = [
    "Hi",
    "A prompt that is a good deal longer than the others, so that there are whole blocks of it to share, and so that it \
     takes more than one pass to read it: a pass reads some two hundred and fifty tokens, and a letter is a token here, \
     for the tokenizer of this model knows nothing but bytes.",
    "one two three",
];

/// Adapters of different widths on different layers.
const SHAPES: [(usize, f64, &[&str], &[usize]); 3] = [
    (4, 6.0, &["q_proj", "v_proj", "down_proj"], &[]),
    (2, 8.0, &["o_proj", "gate_proj"], &[1]),
    (
        8,
        8.0,
        &[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        &[],
    ),
];

fn tokenizer() -> Result<Arc<Tokenizer>, Box<dyn Error>> {
    Ok(Arc::new(seeded::tokenizer()?))
}

/// The tiny model with the adapters of a shape, all their numbers seeded.
fn adapted(
    (rank, alpha, targets, layers): (usize, f64, &[&str], &[usize]),
) -> Result<Decoder, Box<dyn Error>> {
    let mut decoder = seeded::tiny_decoder(Family::Qwen3, true)?;
    let lora = Lora {
        rank,
        alpha,
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        layers: layers.to_vec(),
    };
    for (name, variable) in decoder.add_adapters(&lora, 7)? {
        variable.set(&seeded::tensor(&format!("{rank}.{name}"), variable.dims())?)?;
    }
    Ok(decoder)
}

/// An engine, and which adapters its requests are for.
type Shared = (Engine, Vec<Option<Adapted>>);

/// An engine of the tiny model and all adapters, and the names of what it serves, the model's own first.
fn shared(room: usize) -> Result<Shared, Box<dyn Error>> {
    let mut engine = Engine::new(seeded::tiny_decoder(Family::Qwen3, true)?, tokenizer()?, room)?;
    let mut names = vec![None];
    for shape in SHAPES {
        let folder = tempfile::tempdir()?;
        adapted(shape)?.save_adapters(folder.path(), "tiny-qwen3")?;
        names.push(Some(engine.add_adapters(folder.path())?));
    }
    Ok((engine, names))
}

fn prompts(engine: &Engine) -> Result<Vec<Prompt>, Box<dyn Error>> {
    let prompt = |text: &&str| engine.tokenizer().prompt(&[Message::user(*text)], Mode::NoThink);
    Ok(TEXTS.iter().map(prompt).collect::<Result<_, _>>()?)
}

/// `count` completions of every prompt by each of the served, all at once: by served, prompt and completion.
fn replies(
    engine: &mut Engine,
    served: &[Option<Adapted>],
    count: usize,
    sampling: &Sampling,
) -> Result<Vec<Vec<Completion>>, Box<dyn Error>> {
    let prompts = prompts(engine)?;
    let mut tickets: BTreeMap<Ticket, usize> = BTreeMap::new();
    // Prompt by prompt, so that those who ask for different adapters stand side by side in the queue.
    for prompt in &prompts {
        for (place, &adapted) in served.iter().enumerate() {
            let extras = Extras {
                adapted,
                ..Extras::default()
            };
            tickets.insert(engine.submit_with(prompt, count, sampling, extras)?, place);
        }
    }
    let mut found = vec![Vec::new(); served.len()];
    while !engine.is_idle() {
        for event in engine.step()? {
            if let News::Finished(completion) = event.news {
                found[tickets[&event.ticket]].push((event.ticket, event.index, completion));
            }
        }
    }
    let in_order = |mut all: Vec<(Ticket, usize, Completion)>| {
        all.sort_by_key(|&(ticket, index, _)| (ticket, index));
        all.into_iter().map(|(_, _, completion)| completion).collect()
    };
    Ok(found.into_iter().map(in_order).collect())
}

#[test]
fn each_replies_as_it_would_alone() -> Outcome {
    let sampling = Sampling {
        max_new_tokens: 40,
        temperature: 0.8,
        seed: 3,
        ..Sampling::default()
    };
    let mut alone = Vec::new();
    for decoder in std::iter::once(seeded::tiny_decoder(Family::Qwen3, true))
        .map(|base| Ok(base?))
        .chain(SHAPES.map(adapted))
    {
        let mut engine = Engine::new(decoder?.frozen()?, tokenizer()?, 4096)?;
        alone.push(replies(&mut engine, &[None], 2, &sampling)?.remove(0));
    }
    assert!(
        (1..4).all(|place| alone[place] != alone[0]),
        "adapters that change nothing show nothing"
    );
    // The second has no room for all at once: sequences are paused and read again.
    for room in [1 << 14, 640] {
        let (mut engine, served) = shared(room)?;
        assert!(
            replies(&mut engine, &served, 2, &sampling)? == alone,
            "room for {room} tokens"
        );
        assert_eq!(engine.metrics().pauses > 0, room == 640);
        // And the model itself, when nobody asks for adapters.
        assert!(replies(&mut engine, &[None], 2, &sampling)?[0] == alone[0]);
    }
    Ok(())
}

#[test]
fn greedy_replies_are_those_of_the_merged_model() -> Outcome {
    let sampling = Sampling {
        max_new_tokens: 24,
        temperature: 0.0,
        ..Sampling::default()
    };
    let (mut engine, served) = shared(1 << 14)?;
    let together = replies(&mut engine, &served, 1, &sampling)?;
    for (shape, found) in SHAPES.into_iter().zip(&together[1..]) {
        let mut merged = Engine::new(adapted(shape)?.merge_adapters()?, tokenizer()?, 4096)?;
        let expected = replies(&mut merged, &[None], 1, &sampling)?.remove(0);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.ids, expected.ids);
        }
    }
    Ok(())
}

#[test]
fn a_beginning_is_shared_only_by_those_with_the_same_adapters() -> Outcome {
    let (mut engine, served) = shared(1 << 14)?;
    let prompt = prompts(&engine)?.remove(1);
    let sampling = Sampling {
        max_new_tokens: 3,
        ..Sampling::default()
    };
    for _ in 0..2 {
        for &adapted in &served[..2] {
            let extras = Extras {
                adapted,
                ..Extras::default()
            };
            engine.submit_with(&prompt, 1, &sampling, extras)?;
        }
    }
    while !engine.is_idle() {
        engine.step()?;
    }
    let length = prompt.ids.len();
    let read = engine.metrics().read_tokens;
    // Each reads it once, and of the second of its kind no more than the last block: 8 tokens.
    assert!(
        (2 * length + 2..=2 * (length + 8)).contains(&read),
        "{read} of {length}"
    );
    Ok(())
}

#[test]
fn what_does_not_belong_to_the_engine_is_refused() -> Outcome {
    let (_, served) = shared(256)?;
    let mut other = Engine::new(seeded::tiny_decoder(Family::Llama, true)?, tokenizer()?, 256)?;
    let extras = Extras {
        adapted: served[1],
        ..Extras::default()
    };
    let prompt = prompts(&other)?.remove(0);
    let error = other
        .submit_with(&prompt, 1, &Sampling::default(), extras)
        .unwrap_err();
    assert_eq!(error.to_string(), "adapters 0: this engine has loaded 0");

    // The other family's heads are narrower.
    let folder = tempfile::tempdir()?;
    adapted(SHAPES[0])?.save_adapters(folder.path(), "tiny-qwen3")?;
    let error = other.add_adapters(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("q_proj.lora_B.weight: expected shape [32, 4], found shape [64, 4]"),
        "{error}"
    );
    assert!(other.add_adapters(Path::new("nowhere")).is_err());

    let mut own = Engine::new(adapted(SHAPES[0])?.frozen()?, tokenizer()?, 256)?;
    let error = own.add_adapters(folder.path()).unwrap_err().to_string();
    assert!(error.contains("has adapters already"), "{error}");
    Ok(())
}
