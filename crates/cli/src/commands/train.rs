//! `saferl train`: the run of a recipe.

use indicatif::ProgressBar;
use judge::Judge;
use train::metrics::Metrics;
use train::recipe::Recipe;
use train::run::{Event, Trainer};

use crate::arguments::Train;
use crate::commands::dry_run;
use crate::error::Result;
use crate::local::{open_device, resolve};
use crate::output::print_line;
use crate::progress::{bar, say, watched};

/// Trains, or with `--dry-run` says what training would need.
pub(crate) fn run(arguments: &Train) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    if arguments.dry_run {
        return dry_run::run(&recipe);
    }
    let device = open_device(&arguments.on)?;
    let source = resolve(&recipe.model)?;
    let mut judge = train::judges::open(&recipe.judge, &device)?;
    let mut trainer = Trainer::new(&recipe, &source, &device, arguments.resume, &mut tell)?;
    let outcome = train_with_bar(&mut trainer, &recipe, &mut judge);
    // The page of a run that stopped shows why; its own trouble must not hide that.
    let page = train::report::write(trainer.folder());
    outcome?;
    let page = page?;
    say(&format!("the run's page: {}", page.display()));
    print_line(&recipe.folder().display().to_string())
}

/// Takes a trainer's steps under a bar that shows reward, safety, refusal, speed and the time left.
pub(crate) fn train_with_bar(trainer: &mut Trainer, recipe: &Recipe, judge: &mut dyn Judge) -> Result<()> {
    let bar = bar("training", recipe.steps);
    bar.set_position(trainer.step() as u64);
    let outcome = trainer.run(judge, &mut |event| show(&bar, recipe, event));
    bar.finish_and_clear();
    Ok(outcome?)
}

/// Tells what happens outside of steps.
pub(crate) fn tell(event: Event<'_>) {
    match event {
        Event::Resumed(step) => say(&format!("going on behind step {step}")),
        Event::Warning(text) => say(&format!("warning: {text}")),
        Event::Alarm(text) => say(&format!("alarm: {text}")),
        Event::Saved(path) => tracing::info!("saved {}", path.display()),
        Event::Step(_) => {}
    }
}

fn show(bar: &ProgressBar, recipe: &Recipe, event: Event<'_>) {
    let Event::Step(metrics) = event else {
        return tell(event);
    };
    let line = line(metrics);
    bar.set_position(metrics.step as u64);
    if watched() {
        bar.set_message(line);
    } else {
        say(&format!("step {}/{}  {line}", metrics.step, recipe.steps));
    }
}

fn line(metrics: &Metrics) -> String {
    let replies = &metrics.replies;
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let percent = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.0}%", value * 100.0));
    format!(
        "reward {}  safe {}  refusal {}  {:.0} tokens/s",
        number(replies.reward_mean),
        percent(replies.safety_rate),
        percent(replies.refusal_rate),
        metrics.tokens_per_s
    )
}

#[cfg(test)]
mod tests {
    use train::metrics::Replies;

    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let replies = Replies {
            reward_mean: Some(-1.234),
            refusal_rate: Some(0.256),
            ..Replies::default()
        };
        let metrics = Metrics {
            replies,
            tokens_per_s: 431.6,
            ..Metrics::default()
        };
        assert_eq!(line(&metrics), "reward -1.23  safe -  refusal 26%  432 tokens/s");
    }
}
