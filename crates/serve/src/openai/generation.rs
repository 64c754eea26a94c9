//! From a prompt to the pieces of its replies: what chat, completions and responses have in common.

use std::collections::VecDeque;
use std::sync::Arc;

use judge::{Moderation, Scored};
use model::constraint::Constraint;
use model::engine::{Draw, Extras};
use model::generate::FinishReason;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::guardrail::{Guardrail, verdict};
use crate::openai::Model;
use crate::openai::messages::Rendered;
use crate::openai::sampling::Drawing;
use crate::reply::{Delta, Reading, Reply};
use crate::scheduler::{Job, Running, Update};
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
#[derive(Default)]
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

struct Choice {
    reply: Reply,
    done: bool,
    /// What was said, for the guard.
    thinking: String,
    content: String,
    /// What the guard has not let pass yet.
    held: Step,
}

/// Replies on their way.
pub(crate) struct Generation {
    /// None where the prompt was blocked.
    running: Option<Running>,
    tokenizer: Arc<Tokenizer>,
    choices: Vec<Choice>,
    guard: Option<Watch>,
    /// Steps that are ready.
    ready: VecDeque<Step>,
    usage: Usage,
}

/// The guard at work on this conversation.
struct Watch {
    guardrail: Guardrail,
    messages: Vec<model::chat::Message>,
    prompt: Scored<Moderation>,
}

impl Watch {
    fn safety(&self, thinking: Option<&Scored<Moderation>>, content: Option<&Scored<Moderation>>) -> Value {
        json!({
            "prompt": verdict(&self.prompt),
            "thinking": thinking.map(verdict),
            "reply": content.map(verdict),
        })
    }
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
        let choice = |_| Choice {
            reply: Reply::new(Arc::clone(&model.tokenizer), &reading),
            done: false,
            thinking: String::new(),
            content: String::new(),
            held: Step::default(),
        };
        let mut generation = Self {
            running: None,
            tokenizer: Arc::clone(&model.tokenizer),
            choices: (0..drawing.count).map(choice).collect(),
            guard: None,
            ready: VecDeque::new(),
            usage: Usage {
                prompt: rendered.prompt.ids.len(),
                ..Usage::default()
            },
        };
        if let Some(guardrail) = guardrail {
            let messages = rendered.prompt.messages.clone();
            let prompt = guardrail.judge_prompt(&messages).await;
            let watch = Watch {
                guardrail: guardrail.clone(),
                messages,
                prompt,
            };
            let blocked = guardrail.blocks(&watch.prompt);
            let safety = watch.safety(None, None);
            generation.guard = Some(watch);
            if blocked {
                generation.block_all(&safety);
                return Ok(generation);
            }
        }
        let extras = Extras {
            likeliest,
            constraint: constraint(&model.tokenizer, rendered.thinks, thinking_budget, grammar)?,
        };
        let job = Job {
            prompt: rendered.prompt,
            count: drawing.count,
            sampling: drawing.sampling,
            extras,
        };
        generation.running = Some(model.scheduler.submit(place, job).await?);
        Ok(generation)
    }

    fn block_all(&mut self, safety: &Value) {
        for (index, choice) in self.choices.iter_mut().enumerate() {
            choice.done = true;
            self.ready.push_back(Step {
                index,
                end: Some(End {
                    reason: "content_filter",
                    safety: Some(safety.clone()),
                }),
                ..Step::default()
            });
        }
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        let sum = |count: fn(&Reply) -> usize| self.choices.iter().map(|choice| count(&choice.reply)).sum();
        Usage {
            prompt: self.usage.prompt,
            completion: sum(Reply::tokens),
            thinking: sum(Reply::thinking_tokens),
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
            let Some(running) = &mut self.running else {
                return Ok(None);
            };
            match running.next().await {
                Some(Update::Token { index, draw }) => self.add(index, draw).await?,
                Some(Update::Finished { index, reason }) => {
                    let reason = match reason {
                        FinishReason::Stop => "stop",
                        FinishReason::Length => "length",
                    };
                    self.end(index, reason).await?;
                }
                Some(Update::Failed(error)) => return Err(error),
                None => return Err(Error::Unavailable("the model's engine has stopped".into())),
            }
        }
    }

    /// Adds a token to a reply.
    async fn add(&mut self, index: usize, draw: Draw) -> Result<()> {
        let ends = self.tokenizer.end_ids().contains(&draw.id);
        let choice = &mut self.choices[index];
        if choice.done {
            return Ok(());
        }
        let deltas = choice.reply.push(draw.id, ends)?;
        choice.hold(deltas, (!ends).then_some(draw));
        if choice.reply.stopped() {
            if let Some(running) = &self.running {
                running.stop(index);
            }
            return self.end(index, "stop").await;
        }
        if !self.holds_back() {
            self.release(index, None);
        }
        Ok(())
    }

    /// Ends a reply: what was held back comes out, and the guard has its say.
    async fn end(&mut self, index: usize, reason: &'static str) -> Result<()> {
        let choice = &mut self.choices[index];
        if choice.done {
            return Ok(());
        }
        choice.done = true;
        let deltas = choice.reply.finish()?;
        choice.hold(deltas, None);
        let mut reason = if choice.reply.called() && reason == "stop" {
            "tool_calls"
        } else {
            reason
        };
        let mut safety = None;
        if let Some(watch) = &self.guard {
            let judged = watch
                .guardrail
                .judge_reply(&watch.messages, &choice.thinking, &choice.content)
                .await;
            safety = Some(watch.safety(judged.thinking.as_ref(), Some(&judged.content)));
            let mut verdicts = judged.thinking.iter().chain([&judged.content]);
            if verdicts.any(|verdict| watch.guardrail.blocks(verdict)) {
                reason = "content_filter";
                choice.held = Step::default();
            }
        }
        self.release(index, Some(End { reason, safety }));
        Ok(())
    }

    /// Whether text waits for the guard.
    fn holds_back(&self) -> bool {
        let block = |watch: &Watch| watch.guardrail.action == crate::guardrail::Action::Block;
        self.guard.as_ref().is_some_and(block)
    }

    /// Makes a step of what a reply holds, if there is anything to tell.
    fn release(&mut self, index: usize, end: Option<End>) {
        let held = &mut self.choices[index].held;
        if end.is_some() || !held.deltas.is_empty() {
            let step = std::mem::take(held);
            self.ready.push_back(Step { index, end, ..step });
        }
    }
}

impl Choice {
    fn hold(&mut self, deltas: Vec<Delta>, draw: Option<Draw>) {
        for delta in &deltas {
            match delta {
                Delta::Thinking(text) => self.thinking.push_str(text),
                Delta::Content(text) => self.content.push_str(text),
                // A call is something that the model says, so the guard reads it too.
                Delta::Call(call) => self.content.push_str(&call.arguments),
            }
        }
        self.held.deltas.extend(deltas);
        self.held.draws.extend(draw);
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
