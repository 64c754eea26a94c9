//! Ollama's Modelfile: which weights, the chat template in Go's template language, stop tokens and sampling.
//!
//! Jinja is not translated. What the checkpoint's template prints around each turn is read off a few renderings, and a
//! Go template is made of these parts; then conversations of several forms are put together from the parts and held
//! against the checkpoint's own template. Where they differ, there is no Modelfile but an error.
//! Left out: tools.

use std::fmt::Write;

use crate::chat::{Message, Mode, Role};
use crate::config::Config;
use crate::generate::Sampling;
use crate::template::RenderOptions;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

use super::vocabulary::begins;

/// Texts that stand for a turn's content while the template is being read; no template treats them in any special way.
const SYSTEM: &str = "SystemContent";
const USER: &str = "UserContent";
const REPLY: &str = "ReplyContent";
const AGAIN: &str = "AgainContent";

/// The Modelfile of a model whose GGUF file is called `weights` and lies beside it.
///
/// # Errors
/// A checkpoint without a chat template, or with one that does not print every turn between fixed texts.
pub fn modelfile(
    weights: &str,
    tokenizer: &Tokenizer,
    config: &Config,
    sampling: &Sampling,
) -> Result<String> {
    let parts = Parts::read(tokenizer)?;
    parts.check(tokenizer)?;
    let printed_twice = begins(tokenizer, config)?;
    let mut text = format!("FROM ./{weights}\n");
    let _ = writeln!(
        text,
        "TEMPLATE \"\"\"{}\"\"\"",
        parts.go(tokenizer, printed_twice)
    );
    for id in tokenizer.end_ids() {
        if let Some(token) = tokenizer.full().id_to_token(*id) {
            let _ = writeln!(text, "PARAMETER stop \"{token}\"");
        }
    }
    for (name, number) in [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("top_k", sampling.top_k as f64),
        ("min_p", sampling.min_p),
        ("repeat_penalty", sampling.repetition_penalty),
    ] {
        let _ = writeln!(text, "PARAMETER {name} {number}");
    }
    Ok(text)
}

/// The fixed texts of a chat template.
struct Parts {
    /// Before and after the system's text.
    system: [String; 2],
    /// What stands there where no system message is given.
    no_system: String,
    user: [String; 2],
    reply: [String; 2],
    /// After the last turn, where the model is to speak.
    answer: String,
    /// The same where it is not to think.
    answer_at_once: String,
}

fn unfit(what: &str) -> Error {
    Error::Template(format!(
        "{what}, so Ollama's form of it cannot be written; `saferl export gguf` needs no such form"
    ))
}

fn render(tokenizer: &Tokenizer, messages: &[Message], mode: Option<Mode>) -> Result<String> {
    let options = mode.map(RenderOptions::from).unwrap_or_default();
    Ok(tokenizer.render(messages, &options)?.text)
}

impl Parts {
    fn read(tokenizer: &Tokenizer) -> Result<Self> {
        let (system, user) = (Message::system(SYSTEM), Message::user(USER));
        let (reply, again) = (Message::assistant(REPLY), Message::user(AGAIN));
        let text = render(
            tokenizer,
            &[system.clone(), user.clone(), reply.clone(), again.clone()],
            Some(Mode::Think),
        )?;
        let (before_system, rest) = cut(&text, SYSTEM)?;
        let (before_user, rest) = cut(rest, USER)?;
        let (before_reply, rest) = cut(rest, REPLY)?;
        let (before_again, answer) = cut(rest, AGAIN)?;

        // Each text between two turns ends one and begins the next; shorter conversations tell where.
        let ended = render(tokenizer, &[system.clone(), user.clone(), reply], None)?;
        let (_, after_reply) = cut(&ended, REPLY)?;
        let asked = render(tokenizer, &[system, user.clone()], None)?;
        let (_, after_user) = cut(&asked, USER)?;
        let same = |text: &str, whole: Option<&str>| {
            whole.map(str::to_owned).ok_or_else(|| {
                unfit(&format!(
                    "the chat template prints turns otherwise as a conversation goes on (around {text:?})"
                ))
            })
        };
        let open_user = same(before_again, before_again.strip_prefix(after_reply))?;
        let after_system = same(before_user, before_user.strip_suffix(open_user.as_str()))?;
        let open_reply = same(before_reply, before_reply.strip_prefix(after_user))?;
        let answer = same(answer, answer.strip_prefix(after_user))?;
        let alone = render(tokenizer, std::slice::from_ref(&user), None)?;
        let (start, _) = cut(&alone, USER)?;
        let no_system = same(start, start.strip_suffix(open_user.as_str()))?;
        let at_once = render(tokenizer, &[user], Some(Mode::NoThink))?;
        let (_, at_once) = cut(&at_once, USER)?;
        let answer_at_once = same(at_once, at_once.strip_prefix(after_user))?;
        Ok(Self {
            system: [before_system.to_owned(), after_system],
            no_system,
            user: [open_user, after_user.to_owned()],
            reply: [open_reply, after_reply.to_owned()],
            answer,
            answer_at_once,
        })
    }

    /// Holds conversations made of the parts against the checkpoint's template.
    fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let turns = [
            Message::user("Hello, 1 + 1 = ?"),
            Message::assistant("It is 2."),
            Message::user("Good.\nAnd {{ 2 }}?"),
            Message::assistant("4"),
            Message::user("Thanks"),
        ];
        for system in [None, Some(Message::system("Be brief."))] {
            for length in [1, 3, 5] {
                for mode in [Mode::Think, Mode::NoThink] {
                    let messages: Vec<Message> = system.iter().chain(&turns[..length]).cloned().collect();
                    if render(tokenizer, &messages, Some(mode))? != self.compose(&messages, mode) {
                        return Err(unfit(&format!(
                            "the chat template prints a conversation of {} messages in its own way",
                            messages.len()
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// What the Go template prints for messages that end with a user's.
    fn compose(&self, messages: &[Message], mode: Mode) -> String {
        let mut text = String::new();
        if messages
            .first()
            .is_none_or(|message| message.role != Role::System)
        {
            text += &self.no_system;
        }
        for message in messages {
            let [before, after] = match message.role {
                Role::System => &self.system,
                Role::User => &self.user,
                _ => &self.reply,
            };
            text += before;
            text += &message.content;
            text += after;
        }
        text + match mode {
            Mode::Think => &self.answer,
            Mode::NoThink => &self.answer_at_once,
        }
    }

    /// The template. Fixed texts stand as Go's quoted strings, so that no line end is lost to trimming. A reply that
    /// comes last is one to be continued. Where the runner itself puts the start token before the prompt, `begins`, the
    /// template does not print it again.
    fn go(&self, tokenizer: &Tokenizer, begins: bool) -> String {
        let start = tokenizer
            .chat()
            .and_then(|chat| crate::template::token_text(chat.special_tokens.get("bos_token")))
            .filter(|_| begins)
            .unwrap_or_default();
        let first = |text: &str| quoted(text.strip_prefix(start).unwrap_or(text));
        let [user_before, user_after] = self.user.each_ref().map(|text| quoted(text));
        let [reply_before, reply_after] = self.reply.each_ref().map(|text| quoted(text));
        let thinks = self.answer != self.answer_at_once;
        let thinking = if thinks {
            "\n{{- if and $last .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
        } else {
            ""
        };
        let answer = if thinks {
            format!(
                "{{{{ if and $.IsThinkSet (not $.Think) }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                quoted(&self.answer_at_once),
                quoted(&self.answer)
            )
        } else {
            quoted(&self.answer)
        };
        let lines = [
            format!(
                "{{{{- if .System }}}}{}{{{{ .System }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                first(&self.system[0]),
                quoted(&self.system[1]),
                first(&self.no_system)
            ),
            "{{- range $i, $_ := .Messages }}".to_owned(),
            "{{- $last := eq (len (slice $.Messages $i)) 1 }}".to_owned(),
            format!("{{{{- if eq .Role \"user\" }}}}{user_before}{{{{ .Content }}}}{user_after}"),
            format!("{{{{- else if eq .Role \"assistant\" }}}}{reply_before}{thinking}"),
            format!("{{{{- .Content }}}}{{{{ if not $last }}}}{reply_after}{{{{ end }}}}"),
            "{{- end }}".to_owned(),
            format!("{{{{- if and $last (ne .Role \"assistant\") }}}}{answer}{{{{ end }}}}"),
            "{{- end }}".to_owned(),
        ];
        lines.join("\n")
    }
}

/// The texts before and after the only place that `mark` stands.
fn cut<'a>(text: &'a str, mark: &str) -> Result<(&'a str, &'a str)> {
    text.split_once(mark)
        .filter(|(_, after)| !after.contains(mark))
        .ok_or_else(|| unfit("the chat template does not print every message once"))
}

/// An action that prints `text`; nothing for an empty one. JSON's escapes are Go's too.
fn quoted(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("{{{{ {} }}}}", serde_json::Value::from(text))
}
