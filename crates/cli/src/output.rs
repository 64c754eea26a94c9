//! Data on standard output.

use std::io::Write;

use serde::Serialize;

use crate::error::{Error, Result};

/// Prints a line of data.
pub(crate) fn print_line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    settle(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Prints text as it is, at once; for a reply that streams.
pub(crate) fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    settle(write!(out, "{text}").and_then(|()| out.flush()))
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| Error::Output(error.into()))?;
    print_line(&text)
}

/// A reader that has seen enough, such as `head`, ends the program without complaint.
fn settle(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Error::Output),
    }
}
