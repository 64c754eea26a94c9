//! Who judges: a guard in this process, or a chat model asked in a form and read strictly.
//!
//! A verdict keeps the judge's own words. What cannot be read is no verdict: it stays unscored, with its cause.

mod harmbench;
mod pairwise;
mod phrases;
mod rubric;
mod strongreject;
mod wildguard;

use judge::guard::{WildGuard, qwen3guard, wildguard::parse as parse_wildguard};
use judge::{Conversation, Guard, Moderation, Safety};
use model::chat::{Message, Mode};
use model::endpoint::Endpoint;
use model::generate::Sampling;
use model::remote::Remote;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::rubric::RUBRIC;
use crate::error::{Error, Result};
use crate::recipe::{JudgeKind, JudgeRecipe};
use crate::respondent::{Request, Respondent, Script, in_parallel};
use crate::tasks::{Behavior, Item, Target, sha256};

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
    /// How far it carries out a harmful request, from 0 to 1: StrongREJECT's score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
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
    /// What the prompt wants done, as its benchmark words it.
    pub behavior: Behavior,
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
    /// A classifier with a format of its own, WildGuard or HarmBench's, at a server's `/completions`.
    Completions {
        /// The recipe's words on it.
        recipe: JudgeRecipe,
        /// The server.
        endpoint: Endpoint,
    },
}

impl JudgeKind {
    /// Whether such a judge has a word on answers to this prompt. HarmBench's classifier says whether a harmful behaviour
    /// was shown; copies of protected works HarmBench finds by hashes of them, which are not built here.
    pub(crate) fn sees(self, item: &Item) -> bool {
        let copyright = item.behavior.as_ref().is_some_and(|behavior| behavior.copyright);
        self != Self::Harmbench || item.target == Target::Harmful && !copyright
    }

    /// Whether it judges thinking as well, where a task wants that: a grade is of what was answered.
    pub(crate) fn sees_thinking(self) -> bool {
        self != Self::Strongreject
    }
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
        if recipe.kind == JudgeKind::Harmbench {
            for name in harmbench::other_texts(&recipe) {
                tracing::warn!(
                    "judge {}: system.{name} is not the text of HarmBench's scorer, and figures by it are not HarmBench's",
                    recipe.name
                );
            }
        }
        if matches!(recipe.kind, JudgeKind::Wildguard | JudgeKind::Harmbench) {
            return Ok(Self::Completions { recipe, endpoint });
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
            Self::Completions { recipe, endpoint } => {
                let ask = |case: &Case| complete(endpoint, recipe, case);
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
        behavior: Behavior {
            request: "behavior".into(),
            ..Behavior::default()
        },
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
        JudgeKind::Harmbench => [None, Some("context".into())]
            .map(|context| {
                let mut case = probe("");
                case.behavior.context = context;
                harmbench::ask(recipe, &case)
            })
            .into(),
        JudgeKind::Pairwise => said(recipe.system.keys().flat_map(|category| asked(category))),
        JudgeKind::Rubric | JudgeKind::Strongreject | JudgeKind::Qwen3guard => said(asked("")),
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

/// Asks a classifier behind `/completions` about one case.
fn complete(endpoint: &Endpoint, recipe: &JudgeRecipe, case: &Case) -> Verdict {
    let (prompt, tokens) = match recipe.kind {
        JudgeKind::Harmbench => (Ok(harmbench::ask(recipe, case)), harmbench::TOKENS),
        _ => (wildguard::ask(case), GUARD_TOKENS),
    };
    let prompt = match prompt {
        Ok(prompt) => prompt,
        Err(cause) => return unreadable(&cause, ""),
    };
    let body = json!({
        "model": recipe.model.clone().unwrap_or_default(),
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": tokens,
    });
    match endpoint.post("/completions", &body) {
        Err(error) => unreached(error.to_string()),
        Ok(answer) => match answer.pointer("/choices/0/text").and_then(Value::as_str) {
            Some(text) => read(recipe.kind, text),
            None => unreached("expected text at choices[0].text, found none".into()),
        },
    }
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
        JudgeKind::Strongreject => (strongreject::ask(case), recipe.max_tokens),
        // Only a script is asked so: a server gets the text itself.
        JudgeKind::Harmbench => (
            vec![Message::user(harmbench::ask(recipe, case))],
            harmbench::TOKENS,
        ),
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

/// Reads a model's answer.
fn read(kind: JudgeKind, text: &str) -> Verdict {
    let verdict = match kind {
        JudgeKind::Pairwise => pairwise::read(text),
        JudgeKind::Rubric => rubric::read(text),
        JudgeKind::Strongreject => strongreject::read(text),
        JudgeKind::Harmbench => harmbench::read(text),
        JudgeKind::Wildguard => parse_wildguard(text, true).map(|moderation| Verdict::of(&moderation, text)),
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
    use std::io::{BufRead, BufReader, Read, Write};

    use super::*;

    pub(super) fn case(reply: &str) -> Case {
        Case {
            messages: vec![Message::system("s"), Message::user("q")],
            behavior: Behavior {
                request: "q".into(),
                ..Behavior::default()
            },
            reply: reply.into(),
            versus: None,
        }
    }

    pub(super) fn recipe(kind: &str) -> JudgeRecipe {
        let text = format!(
            "name = \"j\"\nkind = \"{kind}\"\nurl = \"http://localhost:1\"\nsystem = {{ hard_prompt = \"be fair\", \
             standard = \"B {{behavior}} G {{generation}} yes or no:\", \
             contextual = \"C {{context}} B {{behavior}} G {{generation}} yes or no:\" }}"
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
    fn a_classifier_is_asked_for_one_token_of_text() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut recipe = recipe("harmbench");
        recipe.url = Some(format!("http://{}/v1", listener.local_addr().unwrap()));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let lines: Vec<String> = (&mut reader)
                .lines()
                .map(std::result::Result::unwrap)
                .take_while(|line| !line.is_empty())
                .collect();
            let length = lines
                .iter()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap()];
            reader.read_exact(&mut body).unwrap();
            let answer = "{\"choices\": [{\"text\": \" Yes\"}]}";
            let head = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all((head + answer).as_bytes()).unwrap();
            (lines[0].clone(), serde_json::from_slice::<Value>(&body).unwrap())
        });
        let mut judge = Judge::open(&recipe).unwrap();
        let mut verdicts = Vec::new();
        let mut keep = |_, verdict: Verdict, _| {
            verdicts.push(verdict);
            Ok(())
        };
        judge.judge(&[case("r")], &mut keep).unwrap();
        let (line, body) = server.join().unwrap();
        assert!(line.starts_with("POST /v1/completions "), "{line}");
        assert_eq!(
            (&body["max_tokens"], &body["temperature"]),
            (&json!(1), &json!(0))
        );
        assert_eq!(body["prompt"], "B q G r yes or no:");
        assert_eq!(
            (verdicts[0].safety, verdicts[0].refusal, verdicts[0].raw.as_str()),
            (Some(Safety::Unsafe), None, " Yes")
        );
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
        let kinds = [
            "built-in",
            "phrases",
            "qwen3guard",
            "wildguard",
            "pairwise",
            "harmbench",
            "strongreject",
        ];
        let mut all: Vec<String> = kinds.iter().map(|kind| asked_sha256(&recipe(kind))).collect();
        all.push(rubric);
        let different: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), 8);
        let mut unfair = recipe("pairwise");
        unfair.system.insert("hard_prompt".into(), "be unfair".into());
        assert_ne!(asked_sha256(&unfair), asked_sha256(&recipe("pairwise")));
    }
}
