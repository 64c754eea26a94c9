//! Labelled conversations for training and measuring heads: loading, splitting by prompt, and dropping repeats.
//!
//! A row keeps the labels its source has and leaves the others open; a pair says which of two replies is better. The
//! split goes by the *normalised prompt*, never by row, over all sources at once: whatever prompt one source sets aside
//! for testing is set aside in every other source too.

pub mod degenerate;
pub mod formats;
pub mod record;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use model::chat::{Message, Role};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::judge::Conversation;
use crate::verdict::{Category, Safety};
use crate::{Error, Result};
pub use formats::Format;

/// What a row may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To fit the heads.
    Train,
    /// To stop the fit, and to set temperatures and thresholds.
    Validation,
    /// To measure, once.
    Test,
}

/// A prompt, perhaps a reply, and the labels that are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The source's name in the recipe.
    pub source: String,
    /// The normalised prompt that decides the split.
    pub key: String,
    /// The split that the source itself asks for, until [`divide`] has given every row one.
    pub split: Option<Split>,
    /// How much the row counts in training.
    pub weight: f32,
    /// The prompt's side.
    pub messages: Vec<Message>,
    /// The reply.
    pub response: Option<String>,
    /// How safe the prompt is.
    pub prompt_safety: Option<Safety>,
    /// The prompt's kinds of harm.
    pub prompt_categories: Vec<Category>,
    /// How safe the reply is.
    pub safety: Option<Safety>,
    /// The reply's kinds of harm.
    pub categories: Vec<Category>,
    /// Whether the reply refuses.
    pub refusal: Option<bool>,
    /// How helpful the reply is, from 0 to 4.
    pub helpfulness: Option<f32>,
}

/// Two replies to one prompt, of which the first is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The source's name in the recipe, or the kind of degenerate reply.
    pub source: String,
    /// The normalised prompt that decides the split.
    pub key: String,
    /// As in [`Row::split`].
    pub split: Option<Split>,
    /// How much the pair counts in training.
    pub weight: f32,
    /// The prompt's side.
    pub messages: Vec<Message>,
    /// The better reply.
    pub better: String,
    /// The worse reply.
    pub worse: String,
}

/// What sources hold.
#[derive(Debug, Clone, Default)]
pub struct Labelled {
    /// Rows with labels.
    pub rows: Vec<Row>,
    /// Preferences.
    pub pairs: Vec<Pair>,
}

/// One labelled file or folder in a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The name in reports.
    pub name: String,
    /// How the files are written.
    pub format: Format,
    /// The file or folder, below the data folder that is given at the command line. Either this or `path`.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// The file or folder, beside the recipe.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// For rows that name their prompt by id: the file that holds the prompts, in the same folder tree as the rows.
    #[serde(default)]
    pub prompts: Option<PathBuf>,
    /// How much each row counts in training.
    #[serde(default = "one")]
    pub weight: f32,
    /// At most so many rows (and pairs), chosen by hash.
    #[serde(default)]
    pub take: Option<usize>,
    /// Sets the whole source aside; by default the prompt's hash decides.
    #[serde(default)]
    pub split: Option<Split>,
}

fn one() -> f32 {
    1.0
}

impl Row {
    /// A row of a prompt alone, without labels.
    pub fn new(source: &str, prompt: &str) -> Self {
        Self {
            source: source.into(),
            key: normalise(prompt),
            split: None,
            weight: 1.0,
            messages: vec![Message::user(prompt)],
            response: None,
            prompt_safety: None,
            prompt_categories: Vec::new(),
            safety: None,
            categories: Vec::new(),
            refusal: None,
            helpfulness: None,
        }
    }

    /// The conversation to compute features of.
    pub fn conversation(&self) -> Conversation {
        Conversation {
            messages: self.messages.clone(),
            reply: self.response.clone(),
        }
    }
}

/// Lower case, letters and digits only, one space between words: prompts alike in this are one prompt.
pub fn normalise(prompt: &str) -> String {
    let letters = prompt
        .chars()
        .map(|letter| if letter.is_alphanumeric() { letter } else { ' ' });
    let lower: String = letters.flat_map(char::to_lowercase).collect();
    lower.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The last words of the user in a conversation.
pub(crate) fn prompt_text(messages: &[Message]) -> &str {
    let last = messages.iter().rev().find(|message| message.role == Role::User);
    last.map_or("", |message| message.content.as_str())
}

/// The split of a prompt: what its sources ask for, the most careful first, else 70, 15 and 15 in a hundred by hash.
///
/// A source that asks for training leaves 15 in a hundred of its prompts to validation.
pub fn split_of(key: &str, asked: Option<Split>) -> Split {
    let share = number_of(key) % 100;
    match asked {
        Some(Split::Test) => Split::Test,
        Some(Split::Train) if share >= 15 => Split::Train,
        Some(Split::Train | Split::Validation) => Split::Validation,
        None if share < 15 => Split::Validation,
        None if share < 30 => Split::Test,
        None => Split::Train,
    }
}

/// A number that depends on the text alone.
pub(crate) fn number_of(text: &str) -> u64 {
    let hash = Sha256::digest(text);
    hash.iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Loads the sources of a recipe, takes from each what it asks for, drops repeats, and gives every row its split.
///
/// # Errors
/// A file that is missing or not in its format, named with its line.
pub fn load(sources: &[Source], data_folder: &Path, recipe_folder: &Path) -> Result<Labelled> {
    let mut all = Labelled::default();
    for source in sources {
        let (folder, path) = match (&source.data, &source.path) {
            (Some(path), None) => (data_folder, path),
            (None, Some(path)) => (recipe_folder, path),
            _ => {
                let what = format!("source `{}`: expected one of `data` and `path`", source.name);
                return Err(Error::Recipe {
                    path: recipe_folder.into(),
                    what,
                });
            }
        };
        let prompts = source.prompts.as_ref().map(|path| folder.join(path));
        let mut labelled = formats::load(
            source.format,
            &source.name,
            &folder.join(path),
            prompts.as_deref(),
        )?;
        for row in &mut labelled.rows {
            row.weight *= source.weight;
            row.split = source.split.or(row.split);
        }
        for pair in &mut labelled.pairs {
            pair.weight *= source.weight;
            pair.split = source.split.or(pair.split);
        }
        take(&mut labelled.rows, source.take, |row| {
            format!("{}\n{:?}", row.key, row.response)
        });
        take(&mut labelled.pairs, source.take, |pair| {
            format!("{}\n{}\n{}", pair.key, pair.better, pair.worse)
        });
        all.rows.append(&mut labelled.rows);
        all.pairs.append(&mut labelled.pairs);
    }
    drop_repeats(&mut all);
    divide(&mut all);
    Ok(all)
}

/// Keeps `count` items, those with the smallest hashes, in their order.
fn take<T>(items: &mut Vec<T>, count: Option<usize>, text: impl Fn(&T) -> String) {
    let Some(count) = count.filter(|count| *count < items.len()) else {
        return;
    };
    let mut numbers: Vec<u64> = items.iter().map(|item| number_of(&text(item))).collect();
    let of_items = numbers.clone();
    numbers.sort_unstable();
    let limit = numbers[count];
    let mut of_items = of_items.into_iter();
    items.retain(|_| of_items.next().is_some_and(|number| number < limit));
}

/// Drops rows and pairs that an earlier source already holds: same normalised prompt, same replies.
fn drop_repeats(all: &mut Labelled) {
    let mut seen = HashSet::new();
    all.rows
        .retain(|row| seen.insert((row.key.clone(), row.response.as_deref().map(normalise))));
    let mut seen = HashSet::new();
    all.pairs
        .retain(|pair| seen.insert((pair.key.clone(), normalise(&pair.better), normalise(&pair.worse))));
}

/// Gives every row and pair its split: one for each normalised prompt, whichever sources it stands in.
pub fn divide(all: &mut Labelled) {
    let mut asked: HashMap<String, Option<Split>> = HashMap::new();
    let rows = all.rows.iter().map(|row| (&row.key, row.split));
    for (key, split) in rows.chain(all.pairs.iter().map(|pair| (&pair.key, pair.split))) {
        let entry = asked.entry(key.clone()).or_default();
        *entry = (*entry).max(split);
    }
    let of = |key: &str| Some(split_of(key, asked.get(key).copied().flatten()));
    all.rows.iter_mut().for_each(|row| row.split = of(&row.key));
    all.pairs.iter_mut().for_each(|pair| pair.split = of(&pair.key));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_alike_are_one_prompt() {
        assert_eq!(
            normalise("  How do I\nKILL a Python-process?! "),
            "how do i kill a python process"
        );
        assert_eq!(normalise("Où  est-ce?"), "où est ce");
    }

    #[test]
    fn the_split_goes_by_prompt_and_the_most_careful_source_wins() {
        let mut all = Labelled::default();
        for index in 0..400 {
            for source in ["a", "b"] {
                let mut row = Row::new(source, &format!("Prompt number {index}!"));
                row.response = Some(source.into());
                // Source b sets the first hundred aside.
                row.split = (source == "b" && index < 100).then_some(Split::Test);
                all.rows.push(row);
            }
        }
        divide(&mut all);
        let mut splits: HashMap<String, HashSet<Option<Split>>> = HashMap::new();
        for row in &all.rows {
            splits.entry(row.key.clone()).or_default().insert(row.split);
        }
        assert!(
            splits.values().all(|splits| splits.len() == 1),
            "a prompt stands in two splits"
        );
        for row in &all.rows[..200] {
            assert_eq!(row.split, Some(Split::Test), "{}", row.key);
        }
        let share = |wanted| {
            all.rows[200..]
                .iter()
                .filter(|row| row.split == Some(wanted))
                .count() as f32
                / all.rows[200..].len() as f32
        };
        assert!(
            (share(Split::Train) - 0.7).abs() < 0.08,
            "train {}",
            share(Split::Train)
        );
        assert!(
            (share(Split::Test) - 0.15).abs() < 0.06,
            "test {}",
            share(Split::Test)
        );
    }

    #[test]
    fn a_source_for_training_never_reaches_the_test() {
        let splits: HashSet<_> = (0..200)
            .map(|n| split_of(&n.to_string(), Some(Split::Train)))
            .collect();
        assert_eq!(splits, HashSet::from([Split::Train, Split::Validation]));
    }

    #[test]
    fn take_keeps_the_same_rows_whatever_the_order() {
        let rows: Vec<_> = (0..50).map(|n| Row::new("s", &n.to_string())).collect();
        let mut some = rows.clone();
        take(&mut some, Some(7), |row| row.key.clone());
        let mut reversed: Vec<_> = rows.into_iter().rev().collect();
        take(&mut reversed, Some(7), |row| row.key.clone());
        reversed.reverse();
        assert_eq!(some.len(), 7);
        assert_eq!(some, reversed);
    }

    #[test]
    fn repeats_are_dropped_and_a_source_without_a_place_is_refused() {
        let mut all = Labelled::default();
        for (prompt, response) in [("A?", "x"), ("a", "X!"), ("a", "y")] {
            let mut row = Row::new("s", prompt);
            row.response = Some(response.into());
            all.rows.push(row);
        }
        drop_repeats(&mut all);
        assert_eq!(all.rows.len(), 2);
        let source: Source =
            serde_json::from_value(serde_json::json!({"name": "s", "format": "own"})).unwrap();
        let error = load(&[source], Path::new("d"), Path::new("r"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`data` and `path`"), "{error}");
    }
}
