//! `saferl chat`: a conversation in the terminal, thinking dimmed.

use std::io::{BufRead, IsTerminal, Write};

use model::chat::Message;
use model::engine::Piece;

use crate::arguments::Chat;
use crate::error::{Error, Result};
use crate::local::Local;
use crate::output::{print_line, print_text};
use crate::progress::say;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Reads a line, streams the reply, and so on until the input ends. `/new` starts over.
pub(crate) fn run(arguments: &Chat) -> Result<()> {
    let local = Local::drawing(&arguments.model, &arguments.drawing)?;
    let system: Vec<Message> = arguments.system.iter().map(Message::system).collect();
    let mut messages = system.clone();
    if std::io::stdin().is_terminal() {
        say("Ctrl-D ends, /new starts over.");
    }
    ask();
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|source| Error::file("standard input".as_ref(), source))?;
        match line.trim() {
            "" => {}
            "/new" => messages.clone_from(&system),
            text => {
                messages.push(Message::user(text));
                let content = reply(&local, &messages, arguments)?;
                messages.push(Message::assistant(content));
            }
        }
        ask();
    }
    Ok(())
}

fn ask() {
    if std::io::stdin().is_terminal() {
        eprint!("\n> ");
        // A prompt that cannot be shown is no reason to end the conversation.
        let _ = std::io::stderr().flush();
    }
}

/// Streams one reply and returns its content. Thinking is shown, dimmed, only to a terminal.
fn reply(local: &Local, messages: &[Message], arguments: &Chat) -> Result<String> {
    let sampling = arguments.drawing.sampling();
    let prompt = local.tokenizer.prompt(messages, arguments.drawing.mode())?;
    let mut engine = local.engine_for(&prompt, sampling.max_new_tokens)?;
    let terminal = std::io::stdout().is_terminal();
    let mut dimmed = false;
    let mut shown = Ok(());
    let completion = engine.generate_streaming(&prompt, &sampling, &mut |piece| {
        let text = match piece {
            Piece::Thinking(_) if !terminal => return,
            Piece::Thinking(text) if dimmed => text,
            Piece::Thinking(text) => {
                dimmed = true;
                format!("{DIM}{text}")
            }
            Piece::Content(text) if dimmed => {
                dimmed = false;
                format!("{PLAIN}\n{text}")
            }
            Piece::Content(text) => text,
        };
        if shown.is_ok() {
            shown = print_text(&text);
        }
    })?;
    shown?;
    print_line(if dimmed { PLAIN } else { "" })?;
    Ok(completion.content)
}
