//! Bars and log lines on standard error; standard output is for data.

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

/// All bars of the program, so that a log line can step aside for them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Sends the log to standard error: warnings, or what `SAFERL_LOG` asks for (`info`, `train=debug`, ...).
pub(crate) fn start_log() {
    let filter = EnvFilter::try_from_env("SAFERL_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| BesideBars)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}

/// Writes to standard error while the bars are out of the way.
struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Prints a line on standard error, above the bars.
pub(crate) fn say(line: &str) {
    BARS.suspend(|| eprintln!("{line}"));
}

/// Whether a person may be watching the bars.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = BARS.add(bar);
    bar.set_style(style.progress_chars("━╸─"));
    bar
}

/// A bar over `total` things that says what is done and how long it will take.
pub(crate) fn bar(what: &str, total: usize) -> ProgressBar {
    let bar = styled(
        ProgressBar::new(total as u64),
        "{prefix} {bar:28} {pos}/{len}  {msg}  {eta} left",
    );
    bar.set_prefix(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// A line that moves while something of unknown length goes on.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = styled(ProgressBar::new_spinner(), "{spinner} {msg}");
    bar.set_message(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar in bytes that follows what [`model::source::resolve`] reports; it appears with the first report.
#[derive(Default)]
pub(crate) struct Transfer {
    bar: Option<ProgressBar>,
}

impl Transfer {
    /// Shows how far it has come.
    pub(crate) fn update(&mut self, progress: model::source::Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            styled(
                ProgressBar::new(0),
                "{msg} {bar:28} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left",
            )
        });
        if bar.message() != progress.step {
            if !watched() {
                say(&progress.step);
            }
            bar.set_message(progress.step);
        }
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
