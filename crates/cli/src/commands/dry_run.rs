//! `saferl train --dry-run`: the recipe resolved, what is missing, and what the run would take.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::config::Config;
use model::{built_in, source};
use train::recipe::{Judges, Recipe};

use crate::error::Result;
use crate::estimate::{Size, duration, gibibytes, machine_speed, memory, operations_a_step};
use crate::output::print_line;

/// How long an endpoint may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints the plan. That something is missing is the answer, not an error.
pub(crate) fn run(recipe: &Recipe) -> Result<()> {
    print_line("# The recipe as resolved\n")?;
    print_line(recipe.resolved()?.trim_end())?;
    print_line("\n# Warnings\n")?;
    print_list(&recipe.warnings())?;
    print_line("\n# Missing\n")?;
    print_list(&missing(recipe))?;
    print_line("\n# What it takes on this machine\n")?;
    print_list(&needs(recipe))
}

fn print_list(lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return print_line("- nothing");
    }
    lines.iter().try_for_each(|line| print_line(&format!("- {line}")))
}

/// Everything the run would stop at: the model, the prompts, the judges.
fn missing(recipe: &Recipe) -> Vec<String> {
    let mut missing = Vec::new();
    missing.extend(
        config_at_hand(&recipe.model)
            .err()
            .map(|what| format!("model {}: {what}", recipe.model)),
    );
    if let Err(error) = train::prompts::load(&recipe.prompts) {
        missing.push(format!("prompts: {error}"));
    }
    for (key, judge) in [
        ("judge.guard", &recipe.judge.guard),
        ("judge.helpfulness", &recipe.judge.helpfulness),
    ] {
        let why = if judge == "built-in" {
            built_in_missing(&recipe.judge)
        } else {
            unreachable(judge)
        };
        missing.extend(why.map(|what| format!("{key} {judge}: {what}")));
    }
    missing
}

/// The model's shape, without fetching anything; the error says why it is not at hand.
pub(crate) fn config_at_hand(name: &str) -> std::result::Result<Config, String> {
    let absent = || format!("not on this machine; `saferl pull {name}` fetches it");
    if let Some(folder) = hub_snapshots(name) {
        let snapshots = folder.read_dir().map_err(|_| absent())?;
        let configs = snapshots.filter_map(|entry| Some(entry.ok()?.path().join("config.json")));
        let config = configs
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(absent)?;
        return Config::read(&config).map_err(|error| error.to_string());
    }
    let fetched = |folder: PathBuf| {
        folder
            .join(name)
            .read_dir()
            .is_ok_and(|mut files| files.next().is_some())
    };
    if built_in::NAMES.contains(&name) && !source::cache_folder().is_ok_and(fetched) {
        return Err(absent());
    }
    let source = source::resolve(name, &mut |_| {}).map_err(|error| error.to_string())?;
    Config::load(&source).map_err(|error| error.to_string())
}

/// Where the hub's cache keeps `org/name`; `None` for a path and for a name without an organisation.
fn hub_snapshots(name: &str) -> Option<PathBuf> {
    let (organisation, model) = name.split_once('/')?;
    if Path::new(name).exists() || name.starts_with(['.', '/']) || model.contains('/') {
        return None;
    }
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home =
        || variable("HF_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache").join("huggingface")));
    let cache = variable("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub")))?;
    Some(
        cache
            .join(format!("models--{organisation}--{model}"))
            .join("snapshots"),
    )
}

/// Why the judges that are part of the program cannot serve.
fn built_in_missing(judges: &Judges) -> Option<String> {
    let base = match train::judges::heads(judges) {
        Ok(heads) => heads.card.base,
        Err(error) => return Some(error.to_string()),
    };
    config_at_hand(&base)
        .err()
        .map(|what| format!("its base model {base}: {what}"))
}

/// Why a judge's endpoint cannot be reached; `None` for one that can, and for the judges that are part of the program.
pub(crate) fn unreachable(judge: &str) -> Option<String> {
    let (scheme, rest) = judge.split_once("://")?;
    let authority = rest.split('/').next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let default_port = if scheme == "https" { ":443" } else { ":80" };
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port {
        authority.to_string()
    } else {
        format!("{authority}{default_port}")
    };
    let addresses = match address.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return Some(format!("cannot be reached: {error}")),
    };
    let mut cause = "it has no address".to_string();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return None,
            Err(error) => cause = error.to_string(),
        }
    }
    Some(format!("cannot be reached: {cause}"))
}

/// Memory and time, as far as the model's size is known.
fn needs(recipe: &Recipe) -> Vec<String> {
    let known = config_at_hand(&recipe.model)
        .ok()
        .map(|config| Size::Known(Box::new(config)));
    let Some(size) = known.or_else(|| Size::of_name(&recipe.model)) else {
        return vec!["unknown: the model is not at hand, and its name does not tell its size".into()];
    };
    let parts = memory(&size, recipe);
    let total: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let listed: Vec<String> = parts
        .iter()
        .map(|(name, bytes)| format!("{name} {}", gibibytes(*bytes)))
        .collect();
    let source = if matches!(size, Size::Known(_)) {
        "by its configuration"
    } else {
        "by its name"
    };
    let mut lines = vec![
        format!("{:.0} million parameters, {source}", size.parameters() / 1e6),
        format!("memory: about {} ({})", gibibytes(total), listed.join(", ")),
    ];
    if let Some(speed) = machine_speed() {
        let step = operations_a_step(&size, recipe) / speed;
        lines.push(format!(
            "time: about {} a step, {} for {} steps, at {:.0} GFLOP/s in a matrix product and replies of full length; \
             judging comes on top",
            duration(step),
            duration(step * recipe.steps as f64),
            recipe.steps,
            speed / 1e9
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_endpoints_are_asked() {
        assert_eq!(unreachable("built-in"), None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        assert_eq!(unreachable(&url), None);
        drop(listener);
        assert!(unreachable(&url).unwrap().starts_with("cannot be reached"));
        assert!(
            unreachable("http://no-such-host.invalid/v1")
                .unwrap()
                .starts_with("cannot be reached")
        );
    }
}
