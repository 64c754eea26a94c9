//! Who judges: a guard in this process, or a chat model asked in a form and read strictly.
//!
//! A verdict keeps the judge's own words. What cannot be read is no verdict: it stays unscored, with its cause.

mod pairwise;
mod phrases;
mod rubric;
mod wildguard;

use judge::guard::{WildGuard, qwen3guard};
use judge::{Conversation, Guard, Moderation, Safety};
use model::chat::{Message, Mode};
use model::endpoint::Endpoint;
use model::generate::Sampling;
use model::remote::Remote;
use serde::{Deserialize, Serialize};

use self::rubric::RUBRIC;
use crate::error::{Error, Result};
use crate::recipe::{JudgeKind, JudgeRecipe};
use crate::respondent::{Request, Respondent, Script, in_parallel};
use crate::tasks::sha256;

/// Conversations that the built-in guard judges at once.
const BATCH: usize = 32;
/// Tokens that a guard's verdict takes at most.
const GUARD_TOKENS: usize = 128;

/// What a judge says about one text.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// How safe the text is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<Safety>,
    /// Whether it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<bool>,
    /// A pairwise judge's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The judge's own words, or a guard's probability of harm where it runs in this process.
    #[serde(default)]
    pub raw: String,
    /// Why there is no verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unscorable: Option<String>,
    /// Whether the judge was not reached, so that asking again may help.
    #[serde(default)]
    pub unreached: bool,
}

impl Verdict {
    /// What a guard said, with its own words.
    fn of(moderation: &Moderation, raw: impl Into<String>) -> Self {
        Self {
            safety: Some(moderation.safety),
            refusal: moderation.refusal,
            raw: raw.into(),
            ..Self::default()
        }
    }
}

/// A text to judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// What it answers; a system message is no part of what is judged.
    pub messages: Vec<Message>,
    /// The text: an answer, or the thinking before it.
    pub reply: String,
    /// For a pairwise judge: the other answer, whether it stands first, and the question's category.
    pub versus: Option<Versus>,
}

impl Case {
    /// The same for a guard.
    fn conversation(&self) -> Conversation {
        Conversation {
            messages: self.messages.clone(),
            reply: Some(self.reply.clone()),
        }
    }
}

/// What a pairwise judge compares with.
#[derive(Debug, Clone, PartialEq)]
pub struct Versus {
    /// The other answer.
    pub baseline: String,
    /// Whether the baseline is assistant A.
    pub baseline_first: bool,
    /// Whose instructions the judge gets.
    pub category: String,
}

/// A judge that is open for cases.
pub enum Judge {
    /// A guard in this process.
    Guard(Box<dyn Guard>),
    /// A chat model and how it is asked.
    Chat {
        /// The recipe's words on it.
        recipe: JudgeRecipe,
        /// The model.
        respondent: Respondent,
    },
    /// The phrases that refusals begin with.
    Phrases,
    /// WildGuard at a server's `/completions`.
    WildGuard {
        /// The recipe's words on it.
        recipe: JudgeRecipe,
        /// The server.
        endpoint: Endpoint,
    },
}

impl Judge {
    /// Opens any judge that needs no weights on this machine.
    ///
    /// # Errors
    /// A key that is not in the environment, or a script that cannot be read.
    pub fn open(recipe: &JudgeRecipe) -> Result<Self> {
        let recipe = recipe.clone();
        if recipe.kind == JudgeKind::Phrases {
            return Ok(Self::Phrases);
        }
        if let Some(path) = &recipe.scripted {
            let respondent = Respondent::Scripted(Script::read(path)?);
            return Ok(Self::Chat { recipe, respondent });
        }
        let url = recipe.url.clone().unwrap_or_default();
        let endpoint = endpoint(&recipe.name, &url, recipe.api_key_env.as_deref())?;
        if recipe.kind == JudgeKind::Wildguard {
            return Ok(Self::WildGuard { recipe, endpoint });
        }
        let remote = Remote {
            concurrency: recipe.parallel,
            ..Remote::new(endpoint, recipe.model.clone().unwrap_or_default())
        };
        Ok(Self::Chat {
            recipe,
            respondent: Respondent::Remote(remote),
        })
    }

    /// WildGuard in this process.
    ///
    /// # Errors
    /// A respondent without weights.
    pub fn wildguard(respondent: Respondent) -> Result<Self> {
        match respondent {
            Respondent::Local { engine, tokenizer } => Ok(Self::Guard(Box::new(WildGuard {
                generate: *engine,
                tokenizer,
            }))),
            other => Err(Error::Recipe {
                origin: "wildguard".into(),
                what: format!("expected weights on this machine, found {other:?}"),
            }),
        }
    }

    /// Judges every case and hands over each verdict as it comes, with the case's index and the seconds it took.
    ///
    /// # Errors
    /// What `done` returns, which stops the rest.
    pub fn judge(
        &mut self,
        cases: &[Case],
        done: &mut dyn FnMut(usize, Verdict, f64) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Guard(guard) => judge_by_guard(guard.as_mut(), cases, done),
            Self::Chat { recipe, respondent } => {
                let requests: Vec<Request> = cases.iter().map(|case| request(recipe, case)).collect();
                let kind = recipe.kind;
                respondent.answer(&requests, &mut |index, (answer, seconds)| {
                    let verdict = match answer {
                        Ok(completion) => read(kind, &completion.content),
                        Err(cause) => unreached(cause),
                    };
                    done(index, verdict, seconds)
                })
            }
            Self::Phrases => {
                for (index, case) in cases.iter().enumerate() {
                    done(index, phrases::judge(&case.reply), 0.0)?;
                }
                Ok(())
            }
            Self::WildGuard { recipe, endpoint } => {
                let ask = |case: &Case| wildguard::judge(endpoint, recipe, case);
                in_parallel(cases, recipe.parallel, ask, &mut |index, (verdict, seconds)| {
                    done(index, verdict, seconds)
                })
            }
        }
    }
}

/// SHA-256 of what a judge is asked: its instructions, and how a case is put to it. Whoever edits either has another
/// judge, whose verdicts are not those that are in the log.
pub(crate) fn asked_sha256(recipe: &JudgeRecipe) -> String {
    let probe = |category: &str| Case {
        messages: vec![Message::user("request")],
        reply: "answer".into(),
        versus: Some(Versus {
            baseline: "baseline".into(),
            baseline_first: true,
            category: category.into(),
        }),
    };
    let asked = |category: &str| request(recipe, &probe(category)).messages;
    let texts: Vec<String> = match recipe.kind {
        // Its heads are all there is to it.
        JudgeKind::BuiltIn => Vec::new(),
        JudgeKind::Phrases => phrases::PHRASES.map(String::from).into(),
        JudgeKind::Wildguard => wildguard::ask(&probe("")).into_iter().collect(),
        JudgeKind::Pairwise => said(recipe.system.keys().flat_map(|category| asked(category))),
        JudgeKind::Rubric | JudgeKind::Qwen3guard => said(asked("")),
    };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    sha256(&texts)
}

/// Messages as texts.
fn said(messages: impl IntoIterator<Item = Message>) -> Vec<String> {
    let texts = messages.into_iter();
    texts
        .map(|message| format!("{:?}: {}", message.role, message.content))
        .collect()
}

/// A server by its recipe.
///
/// # Errors
/// A key that the environment does not have.
pub fn endpoint(name: &str, url: &str, key_env: Option<&str>) -> Result<Endpoint> {
    let key = key_env.map(|variable| {
        std::env::var(variable).map_err(|error| Error::Recipe {
            origin: name.into(),
            what: format!("api_key_env `{variable}`: {error}"),
        })
    });
    Ok(Endpoint {
        key: key.transpose()?,
        ..Endpoint::new(url)
    })
}

fn judge_by_guard(
    guard: &mut dyn Guard,
    cases: &[Case],
    done: &mut dyn FnMut(usize, Verdict, f64) -> Result<()>,
) -> Result<()> {
    for (batch, part) in cases.chunks(BATCH).enumerate() {
        let start = std::time::Instant::now();
        let conversations: Vec<Conversation> = part.iter().map(Case::conversation).collect();
        let moderations = guard.moderate(&conversations);
        let seconds = start.elapsed().as_secs_f64() / part.len() as f64;
        for index in 0..part.len() {
            let moderation = moderations.get(index).map(judge::Scored::as_result);
            let verdict = match moderation {
                Some(Ok(moderation)) => Verdict::of(moderation, format!("{:.4}", moderation.score)),
                Some(Err(cause)) => unreadable(cause, ""),
                None => unreadable("the guard lost this case", ""),
            };
            done(batch * BATCH + index, verdict, seconds)?;
        }
    }
    Ok(())
}

fn unreached(cause: String) -> Verdict {
    Verdict {
        unscorable: Some(cause),
        unreached: true,
        ..Verdict::default()
    }
}

fn unreadable(cause: &str, raw: &str) -> Verdict {
    Verdict {
        unscorable: Some(cause.into()),
        raw: raw.into(),
        ..Verdict::default()
    }
}

/// What a chat model is asked about a case.
fn request(recipe: &JudgeRecipe, case: &Case) -> Request {
    let (messages, tokens) = match recipe.kind {
        JudgeKind::Pairwise => (pairwise::ask(recipe, case), recipe.max_tokens),
        JudgeKind::Rubric => (rubric::ask(RUBRIC, case), recipe.max_tokens),
        _ => (qwen3guard::turns(&case.conversation()), GUARD_TOKENS),
    };
    Request {
        messages,
        // Whether a judge behind a server thinks is the server's affair: its thinking is cut off before it is read.
        mode: if recipe.source.is_some() {
            Mode::NoThink
        } else {
            Mode::Think
        },
        sampling: Sampling {
            max_new_tokens: tokens,
            temperature: 0.0,
            ..Sampling::default()
        },
    }
}

/// Reads a chat model's answer.
fn read(kind: JudgeKind, text: &str) -> Verdict {
    let verdict = match kind {
        JudgeKind::Pairwise => pairwise::read(text),
        JudgeKind::Rubric => rubric::read(text),
        _ => qwen3guard::parse(text, true).map(|moderation| Verdict::of(&moderation, text)),
    };
    match verdict {
        Ok(verdict) => Verdict {
            raw: text.into(),
            ..verdict
        },
        Err(cause) => unreadable(&cause, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn case(reply: &str) -> Case {
        Case {
            messages: vec![Message::system("s"), Message::user("q")],
            reply: reply.into(),
            versus: None,
        }
    }

    pub(super) fn recipe(kind: &str) -> JudgeRecipe {
        let text = format!(
            "name = \"j\"\nkind = \"{kind}\"\nurl = \"http://localhost:1\"\nsystem = {{ hard_prompt = \"be fair\" }}"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn qwen3guard_sees_the_spoken_turns_only() {
        let request = request(&recipe("qwen3guard"), &case("r"));
        assert_eq!(request.messages, [Message::user("q"), Message::assistant("r")]);
        assert_eq!(
            (request.sampling.temperature, request.sampling.max_new_tokens),
            (0.0, 128)
        );
        let verdict = read(
            JudgeKind::Qwen3guard,
            "Safety: Controversial\nCategories: PII\nRefusal: No",
        );
        assert_eq!(
            (verdict.safety, verdict.refusal),
            (Some(Safety::Controversial), Some(false))
        );
        let verdict = read(JudgeKind::Qwen3guard, "I think it is fine.");
        assert!(verdict.unscorable.is_some() && !verdict.unreached && verdict.raw == "I think it is fine.");
    }

    #[test]
    fn a_judge_that_is_asked_otherwise_is_another_judge() {
        let rubric = asked_sha256(&recipe("rubric"));
        let of = |instructions: &str| {
            let case = Case {
                messages: vec![Message::user("request")],
                ..case("answer")
            };
            let texts = said(rubric::ask(instructions, &case));
            sha256(&texts.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(rubric, of(RUBRIC));
        assert_ne!(rubric, of(&RUBRIC.replacen("is safe", "is unsafe", 1)));
        let kinds = ["built-in", "phrases", "qwen3guard", "wildguard", "pairwise"];
        let mut all: Vec<String> = kinds.iter().map(|kind| asked_sha256(&recipe(kind))).collect();
        all.push(rubric);
        let different: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), 6);
        let mut unfair = recipe("pairwise");
        unfair.system.insert("hard_prompt".into(), "be unfair".into());
        assert_ne!(asked_sha256(&unfair), asked_sha256(&recipe("pairwise")));
    }
}
