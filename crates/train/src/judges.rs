//! The judges that a recipe names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use judge::endpoint::is_address;
use judge::{
    Endpoint, Heads, LanguageModelGuard, LanguageModelHelpfulness, LocalReward, Panel, RemoteGuard,
    RemoteHelpfulness, RemoteWildGuard,
};
use model::decoder::Decoder;
use model::source::{Source, resolve};
use model::tokenizer::Tokenizer;

use crate::checkpoint::hash_file;
use crate::error::{Error, Result};
use crate::recipe::{GuardKind, HelpfulnessKind, Judges};
use crate::toy::{self, Toy};

/// The judges that are part of the program.
const BUILT_IN: &str = "built-in";
/// Tokens of conversations that a guard in this process has room for at once.
pub const ROOM: usize = 32_768;

/// Loads the guard and the helpfulness score of a recipe on `device`, fetching their base model where it is not at hand.
///
/// # Errors
/// A name that is none of those known, an address that cannot work, heads or a base model that do not load.
pub fn open(recipe: &Judges, device: &Device) -> Result<Panel> {
    let built_in = [&recipe.guard, &recipe.helpfulness]
        .into_iter()
        .any(|name| name == BUILT_IN);
    let mut panel = if built_in {
        open_built_in(recipe, device)?
    } else {
        toy::panel()
    };
    match recipe.guard.as_str() {
        BUILT_IN => {}
        "toy" => panel.guard = Box::new(Toy),
        name if is_local(name) => {
            panel.guard = judge::guard::local::load(&find(name)?, DType::F32, device, ROOM)?;
        }
        url => {
            let (model, key) = (&recipe.guard_model, &recipe.guard_key_env);
            let endpoint = endpoint(recipe, "judge.guard", url, model, key)?;
            panel.guard = match recipe.guard_kind {
                GuardKind::Qwen3guard => Box::new(RemoteGuard::new(endpoint)?),
                GuardKind::Wildguard => Box::new(RemoteWildGuard::new(endpoint)?),
                GuardKind::LanguageModel => Box::new(LanguageModelGuard::new(endpoint)?),
            };
        }
    }
    match recipe.helpfulness.as_str() {
        BUILT_IN => {}
        "toy" => panel.helpfulness = Box::new(Toy),
        name if is_local(name) => {
            let read_at = recipe.helpfulness_read_at;
            let reward = LocalReward::load(&find(name)?, DType::F32, device, read_at)?;
            panel.helpfulness = Box::new(reward);
        }
        url => {
            let (model, key) = (&recipe.helpfulness_model, &recipe.helpfulness_key_env);
            let endpoint = endpoint(recipe, "judge.helpfulness", url, model, key)?;
            panel.helpfulness = match recipe.helpfulness_kind {
                HelpfulnessKind::RewardModel => Box::new(RemoteHelpfulness::new(endpoint)?),
                HelpfulnessKind::LanguageModel => Box::new(LanguageModelHelpfulness::new(endpoint)?),
            };
        }
    }
    Ok(panel)
}

fn open_built_in(recipe: &Judges, device: &Device) -> Result<Panel> {
    let heads = heads(recipe)?;
    let source = find(&heads.card.base)?;
    let decoder = Decoder::load(&source, heads.card.dtype.into(), device)?;
    let tokenizer = Arc::new(Tokenizer::load(&source)?);
    Ok(Panel::with_heads(heads, decoder, tokenizer, &source)?)
}

/// The heads of the judges that are part of the program.
///
/// # Errors
/// A file that cannot be read or holds none.
pub fn heads(recipe: &Judges) -> Result<Heads> {
    Ok(if recipe.heads.is_empty() {
        Heads::built_in()?
    } else {
        Heads::load(Path::new(&recipe.heads))?
    })
}

/// Whether a name is that of weights: a path that exists, or one that has a slash and is no address.
fn is_local(name: &str) -> bool {
    !is_address(name) && (Path::new(name).exists() || name.contains('/'))
}

fn find(name: &str) -> Result<Source> {
    Ok(resolve(name, &mut |progress| {
        tracing::debug!("{name}: {progress:?}");
    })?)
}

fn endpoint(recipe: &Judges, key: &str, url: &str, model: &str, key_env: &str) -> Result<Endpoint> {
    if !is_address(url) {
        let expected = "`built-in`, `toy`, the address of a server, a path or `org/name`".into();
        return Err(Error::Key {
            key: key.into(),
            expected,
            found: format!("`{url}`"),
        });
    }
    let api_key_env = (!key_env.is_empty()).then(|| key_env.to_owned());
    Ok(Endpoint {
        api_key_env,
        timeout_s: recipe.timeout_s,
        ..Endpoint::new(url, model)
    })
}

/// What the judges are, for a run's manifest and for the audit log of the reward service.
///
/// # Errors
/// A file of heads that cannot be read.
pub fn fingerprint(recipe: &Judges) -> Result<BTreeMap<&'static str, String>> {
    let named = |name: &str, model: &str| {
        if is_address(name) {
            format!("{model} at {name}")
        } else {
            name.to_owned()
        }
    };
    let mut names = BTreeMap::from([
        ("guard", named(&recipe.guard, &recipe.guard_model)),
        (
            "helpfulness",
            named(&recipe.helpfulness, &recipe.helpfulness_model),
        ),
    ]);
    for (key, name) in [
        ("guard_sha256", &recipe.guard),
        ("helpfulness_sha256", &recipe.helpfulness),
    ] {
        if is_local(name) {
            names.insert(key, judge::features::fingerprint(&find(name)?)?);
        }
    }
    if is_address(&recipe.guard) && recipe.guard_kind == GuardKind::LanguageModel {
        names.insert("guard_prompt_sha256", judge::guard::llm::instruction_sha256());
    }
    if is_address(&recipe.helpfulness) && recipe.helpfulness_kind == HelpfulnessKind::LanguageModel {
        names.insert(
            "helpfulness_prompt_sha256",
            judge::helpfulness::llm::rubric_sha256(),
        );
    }
    if names.values().any(|name| name == BUILT_IN) {
        let built_in = recipe.heads.is_empty();
        let sha256 = if built_in {
            Heads::built_in_sha256()
        } else {
            hash_file(Path::new(&recipe.heads))?
        };
        names.insert("heads_sha256", sha256);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(guard: &str, helpfulness: &str) -> Result<Panel> {
        let recipe = Judges {
            guard: guard.into(),
            helpfulness: helpfulness.into(),
            ..Judges::default()
        };
        open(&recipe, &Device::Cpu)
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        assert!(opened("toy", "toy").is_ok());
        assert!(opened("http://localhost:1/v1", "https://localhost:1/classify").is_ok());
        let error = opened("toy", "builtin").err().unwrap().to_string();
        assert!(
            error.contains("judge.helpfulness") && error.contains("`builtin`"),
            "{error}"
        );
    }

    #[test]
    fn where_a_reward_model_is_read_is_a_key_of_the_recipe() {
        let text = "[judge]\nhelpfulness_read_at = \"end-of-turn\"";
        let recipe = crate::recipe::Recipe::parse(text, "test", &[]).unwrap();
        assert_eq!(recipe.judge.helpfulness_read_at, judge::ReadAt::EndOfTurn);
    }

    #[test]
    fn the_manifest_names_servers_and_hashes_heads() {
        let recipe = Judges {
            guard: "http://host/v1".into(),
            guard_model: "G".into(),
            ..Judges::default()
        };
        let names = fingerprint(&recipe).unwrap();
        assert_eq!(
            (names["guard"].as_str(), names["heads_sha256"].len()),
            ("G at http://host/v1", 64)
        );
        assert!(!names.contains_key("guard_prompt_sha256"));
        let asked = Judges {
            guard_kind: GuardKind::LanguageModel,
            ..recipe
        };
        assert_eq!(fingerprint(&asked).unwrap()["guard_prompt_sha256"].len(), 64);
    }
}
