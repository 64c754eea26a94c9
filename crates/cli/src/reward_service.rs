//! The reward service of a recipe: its judges opened, its settings carried over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use judge::endpoint::is_address;
use serve::Metrics;
use serve::reward::{Names, Service, Settings};
use train::judges;
use train::recipe::Recipe;

use crate::error::Result;

/// Batches that remote judges are asked about at once; judges of this process share its cores and work one by one.
const REMOTE_PANELS: usize = 4;

/// The environment variable that holds the key which every request must bring.
const KEY: &str = "SAFERL_API_KEY";

/// The service's key, where one is set.
pub(crate) fn key() -> Option<String> {
    std::env::var(KEY).ok().filter(|key| !key.is_empty())
}

/// Starts the service that a recipe's `[judge]`, `[reward]` and `[service]` tables describe.
pub(crate) fn start(
    recipe: &Path,
    overrides: &[String],
    device: &Device,
    metrics: Arc<Metrics>,
) -> Result<Arc<Service>> {
    let recipe = Recipe::load(recipe, overrides)?;
    let remote = [&recipe.judge.guard, &recipe.judge.helpfulness]
        .iter()
        .all(|name| is_address(name));
    let count = if remote { REMOTE_PANELS } else { 1 };
    let panels = (0..count).map(|_| judges::open(&recipe.judge, device));
    let panels = panels.collect::<train::Result<Vec<_>>>()?;
    let names = judges::fingerprint(&recipe.judge)?;
    let names = names
        .into_iter()
        .map(|(who, name)| (who.to_owned(), name))
        .collect();
    Ok(Arc::new(Service::start(
        panels,
        names,
        settings(&recipe),
        metrics,
    )?))
}

fn settings(recipe: &Recipe) -> Settings {
    let service = &recipe.service;
    Settings {
        kind: recipe.reward.kind,
        controversial: recipe.reward.controversial,
        names: Names {
            reward: service.reward_name.clone(),
            helpfulness: service.helpfulness_name.clone(),
            guard: service.guard_name.clone(),
        },
        items: service.items,
        queue: service.queue,
        batch: service.batch,
        batch_wait: Duration::from_millis(service.batch_wait_ms),
        cache: service.cache,
        deadline: Duration::from_secs_f64(service.deadline_s),
        audit: (!service.audit.as_os_str().is_empty()).then(|| service.audit.clone()),
    }
}
