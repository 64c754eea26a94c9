//! The judges that a recipe names.

use std::collections::BTreeMap;

use judge::Panel;

use crate::error::{Error, Result};
use crate::recipe::Judges;
use crate::toy;

/// Loads the guard and the helpfulness score of a recipe.
///
/// # Errors
/// A name that is none of those known.
pub fn open(recipe: &Judges) -> Result<Panel> {
    for (key, name) in [("judge.guard", &recipe.guard), ("judge.helpfulness", &recipe.helpfulness)] {
        if name != "toy" {
            let expected = "`toy`".into();
            return Err(Error::Key { key: key.into(), expected, found: format!("`{name}`") });
        }
    }
    Ok(toy::panel())
}

/// What the judges are, for a run's manifest.
pub(crate) fn fingerprint(recipe: &Judges) -> BTreeMap<&'static str, String> {
    let named = |name: &str, model: &str| {
        if name.starts_with("http") { format!("{model} at {name}") } else { name.to_owned() }
    };
    BTreeMap::from([
        ("guard", named(&recipe.guard, &recipe.guard_model)),
        ("helpfulness", named(&recipe.helpfulness, &recipe.helpfulness_model)),
    ])
}
