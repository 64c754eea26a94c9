//! From a prompt to the pieces of its replies: what chat, completions and responses have in common.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use judge::{Moderation, Scored};
use model::constraint::Constraint;
use model::engine::{Draw, Extras};
use model::generate::FinishReason;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::draft::{Draft, Side};
use crate::error::{Error, Result};
use crate::guardrail::{Action, Asked, Guardrail, verdict};
use crate::openai::Model;
use crate::openai::messages::Rendered;
use crate::openai::sampling::Drawing;
use crate::reply::{Delta, Reading, Reply};
use crate::scheduler::{Job, Place, Running, Update};
use crate::thinking::AfterThinking;

/// What is to be generated.
pub(crate) struct Order {
    pub(crate) rendered: Rendered,
    pub(crate) drawing: Drawing,
    /// Whether tool calls are looked for.
    pub(crate) tools: bool,
    /// How many of the likeliest tokens are told with each.
    pub(crate) likeliest: usize,
    /// Most tokens of thinking.
    pub(crate) thinking_budget: Option<usize>,
    /// What the content must be.
    pub(crate) grammar: Option<Box<dyn Constraint>>,
}

/// What came of a reply since the last step.
pub(crate) struct Step {
    /// Which reply.
    pub(crate) index: usize,
    pub(crate) deltas: Vec<Delta>,
    /// The tokens that came with them, but for one that ends the turn.
    pub(crate) draws: Vec<Draw>,
    /// The end, if this is it.
    pub(crate) end: Option<End>,
}

/// How a reply ended.
pub(crate) struct End {
    /// `finish_reason`.
    pub(crate) reason: &'static str,
    /// The guard's verdicts, where there is a guard.
    pub(crate) safety: Option<Value>,
}

/// Tokens counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) thinking: usize,
}

impl Usage {
    /// As chat and plain completions tell it.
    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens_details": {"reasoning_tokens": self.thinking},
        })
    }
}

/// What the model reads where a reply was rewound, after the part that stays. It is no part of the reply.
const NUDGE: &str =
    " (What came next would have done harm. I go on with what is safe and helps, or say why I decline.)";
/// Most times that a reply is rewound.
const MOST_REWINDS: u64 = 2;

struct Choice {
    draft: Draft,
    /// Which of the running requests draws its tokens, and as which completion.
    source: (usize, usize),
    /// Why its tokens ended, once they have.
    over: Option<&'static str>,
    done: bool,
    /// What the guard is judging.
    asked: Option<(Side, Asked)>,
    rewinds: u64,
}

/// Replies on their way.
pub(crate) struct Generation {
    model: Model,
    place: Place,
    /// What was asked for, for a reply that is rewound.
    job: Job,
    /// The request, and one for each rewind; none where it is over or the prompt was refused.
    running: Vec<Option<Running>>,
    choices: Vec<Choice>,
    guard: Option<Watch>,
    /// Steps that are ready.
    ready: VecDeque<Step>,
}

/// The guard at work on this conversation.
struct Watch {
    guardrail: Guardrail,
    prompt: Scored<Moderation>,
}

impl Watch {
    fn safety(&self, choice: &Choice) -> Value {
        let [thinking, reply] = choice.draft.verdicts(&self.guardrail);
        json!({
            "prompt": verdict(&self.prompt),
            "thinking": thinking,
            "reply": reply,
            "rewinds": choice.rewinds,
        })
    }
}

/// What a generation waits for.
enum News {
    /// Of a running request; none where it is over.
    Update(usize, Option<Update>),
    /// The guard's word on a choice.
    Verdicts(usize, Side, std::result::Result<Vec<Scored<Moderation>>, String>),
}

impl Generation {
    /// Has the prompt judged, if there is a guard, and the replies begun, unless the guard says no. A busy server says so
    /// before the guard has any work.
    ///
    /// # Errors
    /// A server that is busy, or what the engine refuses.
    pub(crate) async fn start(model: &Model, guardrail: Option<&Guardrail>, order: Order) -> Result<Self> {
        let Order {
            rendered,
            drawing,
            tools,
            likeliest,
            thinking_budget,
            grammar,
        } = order;
        let place = model.scheduler.enter()?;
        let reading = Reading {
            parser: model.parser,
            thinks: rendered.thinks,
            stop: drawing.stop,
            tools,
        };
        let choice = |index| Choice {
            draft: Draft::new(Reply::new(Arc::clone(&model.tokenizer), &reading), guardrail),
            source: (0, index),
            over: None,
            done: false,
            asked: None,
            rewinds: 0,
        };
        let extras = Extras {
            likeliest,
            constraint: constraint(&model.tokenizer, rendered.thinks, thinking_budget, grammar)?,
            adapted: model.adapted,
        };
        let mut generation = Self {
            model: model.clone(),
            place,
            job: Job {
                prompt: rendered.prompt,
                count: drawing.count,
                sampling: drawing.sampling,
                extras,
            },
            running: Vec::new(),
            choices: (0..drawing.count).map(choice).collect(),
            guard: None,
            ready: VecDeque::new(),
        };
        if let Some(guardrail) = guardrail {
            let prompt = guardrail.judge_prompt(&generation.job.prompt.messages).await;
            let refused = guardrail.refuses_prompt(&prompt);
            let guardrail = guardrail.clone();
            generation.guard = Some(Watch { guardrail, prompt });
            if refused {
                for index in 0..generation.choices.len() {
                    generation.end(index, "content_filter");
                }
                return Ok(generation);
            }
        }
        generation.submit(generation.job.clone()).await?;
        Ok(generation)
    }

    async fn submit(&mut self, job: Job) -> Result<()> {
        let running = self.model.scheduler.submit(self.place.clone(), job).await?;
        self.running.push(Some(running));
        Ok(())
    }

    /// What the model reads first.
    pub(crate) fn prompt_ids(&self) -> &[u32] {
        &self.job.prompt.ids
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        let drawn = self.choices.iter().map(|choice| choice.draft.drawn());
        let (completion, thinking) = drawn.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        Usage {
            prompt: self.job.prompt.ids.len(),
            completion,
            thinking,
        }
    }

    /// The next step of any reply; none once all are done.
    ///
    /// # Errors
    /// A deadline, or an engine that failed; nothing follows.
    pub(crate) async fn next(&mut self) -> Result<Option<Step>> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Ok(Some(step));
            }
            if self.choices.iter().all(|choice| choice.done) {
                return Ok(None);
            }
            match self.news().await {
                News::Update(source, update) => self.update(source, update).await?,
                News::Verdicts(index, side, verdicts) => {
                    let draft = &mut self.choices[index].draft;
                    match verdicts {
                        Ok(verdicts) => draft.hear(side, verdicts),
                        Err(cause) => draft.give_up(cause),
                    }
                    self.settle(index).await?;
                }
            }
        }
    }

    /// Waits for the guard and for tokens.
    async fn news(&mut self) -> News {
        poll_fn(|context| {
            for (index, choice) in self.choices.iter_mut().enumerate() {
                if let Some((side, asked)) = &mut choice.asked
                    && let Poll::Ready(verdicts) = asked.as_mut().poll(context)
                {
                    let side = *side;
                    choice.asked = None;
                    return Poll::Ready(News::Verdicts(index, side, verdicts));
                }
            }
            for (source, running) in self.running.iter_mut().enumerate() {
                if let Some(running) = running
                    && let Poll::Ready(update) = running.poll_next(context)
                {
                    return Poll::Ready(News::Update(source, update));
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn update(&mut self, source: usize, update: Option<Update>) -> Result<()> {
        match update {
            Some(Update::Token { index, draw }) => {
                if let Some(index) = self.drawing((source, index)) {
                    self.add(index, draw)?;
                    self.settle(index).await?;
                }
            }
            Some(Update::Finished { index, reason }) => {
                let reason = match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                };
                if let Some(index) = self.drawing((source, index)) {
                    self.finish(index, reason)?;
                    self.settle(index).await?;
                }
            }
            Some(Update::Failed(error)) => return Err(error),
            None => {
                self.running[source] = None;
                let waits = |choice: &Choice| choice.source.0 == source && choice.over.is_none();
                if self.choices.iter().any(waits) {
                    return Err(Error::Unavailable("the model's engine has stopped".into()));
                }
            }
        }
        Ok(())
    }

    /// The choice whose tokens come from there, unless they are over.
    fn drawing(&self, source: (usize, usize)) -> Option<usize> {
        let found = |choice: &Choice| choice.source == source && choice.over.is_none();
        self.choices.iter().position(found)
    }

    /// Adds a token to a reply.
    fn add(&mut self, index: usize, draw: Draw) -> Result<()> {
        let ends = self.model.tokenizer.end_ids().contains(&draw.id);
        let draft = &mut self.choices[index].draft;
        draft.push(draw, ends)?;
        if draft.stopped() {
            self.stop(index);
            return self.finish(index, "stop");
        }
        Ok(())
    }

    /// Ends a choice's tokens; the guard may yet have to speak.
    fn finish(&mut self, index: usize, reason: &'static str) -> Result<()> {
        let choice = &mut self.choices[index];
        choice.draft.finish()?;
        let calls = choice.draft.called() && reason == "stop";
        choice.over = Some(if calls { "tool_calls" } else { reason });
        Ok(())
    }

    /// Has the engine draw no more tokens for a choice.
    fn stop(&self, index: usize) {
        let choice = &self.choices[index];
        let running = self.running.get(choice.source.0);
        if let (Some(Some(running)), None) = (running, choice.over) {
            running.stop(choice.source.1);
        }
    }

    /// Delivers of a reply what may be delivered, asks the guard about what is new, and ends the reply or rewinds it
    /// where that is due.
    async fn settle(&mut self, index: usize) -> Result<()> {
        if self.choices[index].done {
            return Ok(());
        }
        let objection = self.weigh(index);
        let all = !self.holds_back();
        let (deltas, draws) = self.choices[index].draft.deliver(all);
        if !deltas.is_empty() {
            self.ready.push_back(Step {
                index,
                deltas,
                draws,
                end: None,
            });
        }
        if let Some(curable) = objection {
            self.stop(index);
            if !curable || !self.rewind(index).await? {
                self.cut(index);
            }
            return Ok(());
        }
        self.ask(index);
        let choice = &self.choices[index];
        if let (Some(reason), None) = (choice.over, &choice.asked) {
            self.end(index, reason);
        }
        Ok(())
    }

    /// Whether text waits for the guard.
    fn holds_back(&self) -> bool {
        let holds = |watch: &Watch| watch.guardrail.action != Action::Annotate;
        self.guard.as_ref().is_some_and(holds)
    }

    /// Whether the guard objects to a reply in a way that matters, and whether a rewind may cure that.
    fn weigh(&mut self, index: usize) -> Option<bool> {
        let guardrail = &self.guard.as_ref()?.guardrail;
        let choice = &mut self.choices[index];
        let verdict = choice.draft.weigh(guardrail)?;
        match guardrail.action {
            Action::Annotate => None,
            Action::Block => Some(false),
            // What the guard could not judge, it will not judge the next time.
            Action::Rewind => Some(verdict.scored().is_some() && choice.rewinds < MOST_REWINDS),
        }
    }

    /// Asks the guard about what is new, unless it is judging this reply already.
    fn ask(&mut self, index: usize) {
        let Some(watch) = &self.guard else {
            return;
        };
        let choice = &mut self.choices[index];
        if choice.asked.is_none()
            && let Some((side, pieces, from)) = choice.draft.question()
        {
            let messages = &self.job.prompt.messages;
            choice.asked = Some((side, watch.guardrail.judge_pieces(messages, pieces, from)));
        }
    }

    /// Ends a reply at its last safe sentence.
    fn cut(&mut self, index: usize) {
        if let Some(watch) = &self.guard {
            self.choices[index].draft.cut(&watch.guardrail);
        }
        self.end(index, "content_filter");
    }

    /// Has a reply go on from its last safe sentence, by a request of its own; false where there is no room for that.
    async fn rewind(&mut self, index: usize) -> Result<bool> {
        let choice = &mut self.choices[index];
        let kept = choice.draft.kept().to_vec();
        let nudge = self.model.tokenizer.encode_plain(NUDGE)?;
        let mut job = self.job.clone();
        job.prompt.ids.extend(kept.iter().chain(&nudge));
        let left = job.sampling.max_new_tokens.saturating_sub(kept.len());
        job.sampling.max_new_tokens = left.min(self.model.context.saturating_sub(job.prompt.ids.len()));
        if job.sampling.max_new_tokens == 0 {
            return Ok(false);
        }
        choice.draft.rewind();
        choice.rewinds += 1;
        choice.over = None;
        choice.source = (self.running.len(), 0);
        job.count = 1;
        // Other numbers than those that led astray, and for each reply its own.
        let turn = (index as u64) * (MOST_REWINDS + 1) + choice.rewinds;
        job.sampling.seed = job.sampling.seed.wrapping_add(turn);
        if let Some(constraint) = &mut job.extras.constraint {
            for id in kept {
                // Some find out only by the mask where they stand.
                constraint.mask();
                constraint.accept(id);
            }
        }
        self.submit(job).await?;
        Ok(true)
    }

    /// Ends a reply: what is still held comes out with the guard's verdicts.
    fn end(&mut self, index: usize, reason: &'static str) {
        let choice = &mut self.choices[index];
        choice.done = true;
        let (deltas, draws) = choice.draft.deliver_rest();
        let safety = self.guard.as_ref().map(|watch| watch.safety(choice));
        self.ready.push_back(Step {
            index,
            deltas,
            draws,
            end: Some(End { reason, safety }),
        });
    }
}

/// What holds the tokens to a thinking budget and to a grammar.
fn constraint(
    tokenizer: &Tokenizer,
    thinks: bool,
    budget: Option<usize>,
    grammar: Option<Box<dyn Constraint>>,
) -> Result<Option<Box<dyn Constraint>>> {
    if !thinks || (budget.is_none() && grammar.is_none()) {
        return Ok(grammar);
    }
    let close = tokenizer.id("</think>").ok_or_else(|| {
        let field = if budget.is_some() {
            "thinking_budget"
        } else {
            "response_format"
        };
        Error::field(
            field,
            "not supported: this model has no token that ends its thinking",
        )
    })?;
    let closing = tokenizer.encode_control("\n</think>\n\n")?;
    Ok(Some(Box::new(AfterThinking::new(
        close,
        tokenizer.id("<tool_call>"),
        budget,
        closing,
        grammar,
    ))))
}

/// A token as OpenAI's `logprobs` tell it.
pub(crate) fn token_json(tokenizer: &Tokenizer, id: u32, log_probability: f32) -> Result<Value> {
    let text = tokenizer.decode(&[id], false)?;
    // A token that is part of a character has no text of its own.
    let bytes = (!text.contains('\u{FFFD}')).then(|| text.as_bytes().to_vec());
    Ok(json!({"token": text, "logprob": log_probability, "bytes": bytes}))
}

/// Tokens with their likeliest alternatives, as `logprobs.content` has them.
pub(crate) fn logprobs_json(tokenizer: &Tokenizer, draws: &[Draw]) -> Result<Vec<Value>> {
    draws
        .iter()
        .map(|draw| {
            let mut token = token_json(tokenizer, draw.id, draw.log_probability)?;
            let likeliest = draw.likeliest.iter();
            token["top_logprobs"] = likeliest
                .map(|&(id, log_probability)| token_json(tokenizer, id, log_probability))
                .collect::<Result<_>>()?;
            Ok(token)
        })
        .collect()
}
