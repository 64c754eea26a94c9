//! `saferl launch`: a recipe on an engine for many machines, rewarded by a service of this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};

use candle_core::Device;
use model::tokenizer::Tokenizer;
use serve::{Door, Metrics};
use train::launch::{Plan, Target, plan};
use train::recipe::Recipe;

use crate::arguments::{Engine, Launch};
use crate::error::{Error, Result};
use crate::local::resolve;
use crate::output::print_line;
use crate::progress::say;
use crate::reward_service;

/// Writes the engine's configuration, starts the reward service and the engine, and waits for it; with `--print`, only
/// shows what it would do.
pub(crate) fn run(arguments: &Launch) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    let (target, name) = match arguments.on {
        Engine::Trl => (Target::Trl, "trl"),
        Engine::Verl => (Target::Verl, "verl"),
    };
    let folder = recipe.runs_dir.join(format!("{}-{name}", recipe.run));
    let tokenizer = match recipe.modes.len() {
        1 => None,
        _ => Some(Tokenizer::load(&resolve(&recipe.model)?)?),
    };
    let planned = |url: &str| -> Result<Plan> {
        let mut plan = plan(
            &recipe,
            target,
            arguments.processes,
            url,
            &folder,
            tokenizer.as_ref(),
        )?;
        plan.command.extend(arguments.more.iter().cloned());
        Ok(plan)
    };
    if arguments.print {
        return show(&folder, &planned("http://127.0.0.1:PORT")?);
    }
    std::fs::create_dir_all(&folder).map_err(|source| Error::file(&folder, source))?;
    // What is wrong with the recipe is said before the judges are loaded.
    planned("http://127.0.0.1:0")?;
    let address = start_service(arguments)?;
    let plan = planned(&format!("http://{address}"))?;
    for (file, text) in &plan.files {
        let path = folder.join(file);
        std::fs::write(&path, text).map_err(|source| Error::file(&path, source))?;
    }
    say(&format!("{} in {}", plan.command.join(" "), folder.display()));
    let Some((program, words)) = plan.command.split_first() else {
        return Ok(());
    };
    let status = Command::new(program)
        .args(words)
        .current_dir(&folder)
        .envs(
            plan.environment
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        )
        .status()
        .map_err(|error| Error::Request {
            what: format!("`{program}` could not be started: {error}"),
            hint: format!("install {name} in the environment that saferl runs in"),
        })?;
    if !status.success() {
        return Err(Error::Request {
            what: format!("`{program}` ended with {status}"),
            hint: format!(
                "its own messages stand above; its files are in {}",
                folder.display()
            ),
        });
    }
    print_line(&folder.display().to_string())
}

/// Serves the recipe's rewards on a free port of this machine until the process ends.
fn start_service(arguments: &Launch) -> Result<SocketAddr> {
    let metrics = Arc::new(Metrics::default());
    let recipe = &arguments.recipe;
    let service = reward_service::start(
        &recipe.recipe,
        &recipe.overrides,
        &Device::Cpu,
        Arc::clone(&metrics),
    )?;
    let door = Door {
        key: reward_service::key(),
    };
    let app = serve::close(serve::reward::router(service), &door, metrics);
    let (ready, address) = mpsc::channel();
    let (failed, served) = mpsc::channel();
    std::thread::spawn(move || {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let outcome = serve::run(app, &door, any, |address| {
            let _ = ready.send(address);
        });
        let _ = failed.send(outcome);
    });
    match address.recv() {
        Ok(address) => Ok(address),
        Err(_) => Err(match served.recv() {
            Ok(Err(error)) => error.into(),
            _ => Error::Request {
                what: "the reward service ended before it began".into(),
                hint: "try `saferl serve --reward RECIPE` to see why".into(),
            },
        }),
    }
}

fn show(folder: &Path, plan: &Plan) -> Result<()> {
    for (file, text) in &plan.files {
        let path: PathBuf = folder.join(file);
        let mut lines = text.lines();
        let few: Vec<&str> = if file.ends_with(".yaml") {
            lines.collect()
        } else {
            lines.by_ref().take(3).collect()
        };
        print_line(&format!("# {}", path.display()))?;
        print_line(&few.join("\n"))?;
        if few.len() < text.lines().count() {
            print_line(&format!("... ({} lines)", text.lines().count()))?;
        }
        print_line("")?;
    }
    for (name, value) in &plan.environment {
        print_line(&format!("export {name}={value}"))?;
    }
    let quoted: Vec<String> = plan.command.iter().map(|word| quote(word)).collect();
    print_line(&quoted.join(" "))
}

/// A word as a shell takes it.
fn quote(word: &str) -> String {
    let plain = word
        .chars()
        .all(|letter| letter.is_alphanumeric() || "-_=./:,+".contains(letter));
    if plain {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
