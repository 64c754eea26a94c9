//! What an engine keeps of requests that are done: read once, whoever asks next, and never in the way.

use std::error::Error;
use std::sync::Arc;

use model::chat::{Mode, Prompt};
use model::config::Family;
use model::engine::{Engine, News};
use model::generate::{Completion, Generate, Sampling};
use model::seeded;

type Outcome = Result<(), Box<dyn Error>>;

fn engine(room: usize, memory: usize) -> Result<Engine, Box<dyn Error>> {
    let tokenizer = Arc::new(seeded::tokenizer()?);
    let mut engine = Engine::new(seeded::tiny_decoder(Family::Qwen3, true)?, tokenizer, room)?;
    engine.set_memory(memory);
    Ok(engine)
}

fn prompt(ids: Vec<u32>) -> Prompt {
    Prompt {
        ids,
        messages: vec![],
        mode: Mode::NoThink,
    }
}

/// Text of this many tokens that no other number has.
fn text(number: u32, length: u32) -> Vec<u32> {
    (0..length)
        .map(|at| (number * 37 + at * at * (number + 3)) % 250)
        .collect()
}

fn sampling(max_new_tokens: usize) -> Sampling {
    Sampling {
        max_new_tokens,
        seed: 5,
        // The ends of a turn, so that every reply has all its tokens.
        logit_bias: [(256, -100.0), (258, -100.0)].into(),
        ..Sampling::default()
    }
}

#[test]
fn the_next_turn_reads_only_what_is_new() -> Outcome {
    let mut engine = engine(1024, 512)?;
    let mut without = self::engine(1024, 0)?;
    let mut ids = text(1, 50);
    let mut known = 0;
    for turn in 2..6 {
        let read = engine.metrics().read_tokens;
        let prompts = [prompt(ids.clone())];
        let reply = engine.generate(&prompts, 1, &sampling(20))?;
        assert!(
            reply == without.generate(&prompts, 1, &sampling(20))?,
            "turn {turn}"
        );
        assert_eq!(
            engine.metrics().read_tokens - read,
            ids.len() - known,
            "turn {turn}"
        );
        ids.extend(&reply[0][0].ids);
        // The last token that was drawn has been read by nobody.
        known = ids.len() - 1;
        ids.extend(text(turn, 13));
    }
    // The same prompt again: its last token is read, for its logits.
    let prompts = [prompt(ids)];
    engine.generate(&prompts, 3, &sampling(4))?;
    let read = engine.metrics().read_tokens;
    engine.generate(&prompts, 3, &sampling(4))?;
    assert_eq!(engine.metrics().read_tokens - read, 1);
    // Other weights have other keys and values.
    engine.set_decoder(seeded::tiny_decoder(Family::Qwen3, true)?)?;
    let read = engine.metrics().read_tokens;
    engine.generate(&prompts, 1, &sampling(4))?;
    assert_eq!(engine.metrics().read_tokens - read, prompts[0].ids.len());
    Ok(())
}

/// Conversations of several turns, some at once, in a pool that is too small for all.
#[test]
fn what_is_kept_changes_no_reply_and_gives_way() -> Outcome {
    let mut pauses = 0;
    for room in [200, 232, 304, 480, 4096] {
        for memory in [room / 4, room] {
            let mut engine = engine(room, memory)?;
            let mut without = self::engine(4096, 0)?;
            let mut talks: Vec<Vec<u32>> = (0..5).map(|number| text(number % 3, 11 + 5 * number)).collect();
            for turn in 0..4 {
                let prompts: Vec<Prompt> = talks.iter().map(|ids| prompt(ids.clone())).collect();
                let replies = at_once(&mut engine, &prompts)?;
                assert!(
                    replies == without.generate(&prompts, 2, &sampling(25))?,
                    "room {room}, turn {turn}"
                );
                for (talk, replies) in talks.iter_mut().zip(&replies) {
                    talk.extend(&replies[turn % 2].ids);
                    talk.extend(text(turn as u32, 3 + turn as u32));
                }
            }
            // The longest that the pool takes, when all else is forgotten for it.
            let longest = [prompt(text(9, (room as u32 - 32).min(2000)))];
            assert!(at_once(&mut engine, &longest)? == without.generate(&longest, 2, &sampling(25))?);
            pauses += engine.metrics().pauses;
        }
    }
    assert!(pauses > 0);
    Ok(())
}

/// Two completions of every prompt, by steps of which there cannot be more without a standstill.
fn at_once(engine: &mut Engine, prompts: &[Prompt]) -> Result<Vec<Vec<Completion>>, Box<dyn Error>> {
    let mut tickets = Vec::new();
    for prompt in prompts {
        tickets.push(engine.submit(prompt, 2, &sampling(25))?);
    }
    let mut found = vec![Vec::new(); prompts.len()];
    for _ in 0..5000 {
        for event in engine.step()? {
            if let News::Finished(completion) = event.news {
                let place = tickets.iter().position(|&ticket| ticket == event.ticket);
                found[place.ok_or("a ticket")?].push((event.index, completion));
            }
        }
        if engine.is_idle() {
            let in_order = |mut group: Vec<(usize, Completion)>| {
                group.sort_by_key(|&(index, _)| index);
                group.into_iter().map(|(_, completion)| completion).collect()
            };
            return Ok(found.into_iter().map(in_order).collect());
        }
    }
    Err("the engine stands still".into())
}
