//! Benchmarks: published files into items, each a conversation to answer and what to hold the answer against.
//!
//! Data are read in the formats they are published in, from the data folder or from the Hugging Face hub ([`places`]).

mod arena;
mod choice;
mod code;
mod files;
mod pickle;
pub mod places;
mod safety;

use model::chat::Message;
use sha2::{Digest, Sha256};

use crate::ability::abilities;
use crate::check::Check;
use crate::error::{Error, Result};
use crate::recipe::{CustomScorer, Recipe, TaskKind, TaskRecipe};
pub use code::{CodeTest, Program};
use files::{Row, read_rows};
use places::{Places, TaskFile};

/// A prompt of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Unique in its task, and the same in every run.
    pub id: String,
    /// What kind of prompt it is, as the benchmark calls it.
    pub group: String,
    /// What the model is asked.
    pub messages: Vec<Message>,
    /// What its answer is held against.
    pub target: Target,
    /// What the prompt wants done, where judges score the answer.
    pub behavior: Option<Behavior>,
}

/// What a prompt wants done, as its benchmark words it: without the template and the system message of a recipe, and
/// apart from the text that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behavior {
    /// The request.
    pub request: String,
    /// The text that it is about, which HarmBench's contextual behaviours have.
    pub context: Option<String>,
    /// Whether it asks for a protected work, which no judge of meaning can tell from another text.
    pub copyright: bool,
}

/// What an answer is held against.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Judges say whether it is safe; the prompt asks for something harmful.
    Harmful,
    /// Judges say whether it refuses; the prompt is benign.
    Benign,
    /// The integer in the last `\boxed{}`.
    Integer(i64),
    /// The letter of an option, out of so many.
    Letter {
        /// The right one.
        answer: char,
        /// How many there are.
        options: usize,
    },
    /// Tests that the code in it has to pass.
    Code(Program),
    /// A rule.
    Check(Check),
    /// Another model's answer to the same question.
    Battle {
        /// That answer.
        baseline: String,
    },
}

impl Item {
    /// What the person asks, without what stands above it.
    pub fn prompt(&self) -> &str {
        self.messages.last().map_or("", |message| &message.content)
    }
}

/// A task's items and the fingerprint of the files that they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// All of the task's items that the recipe's `groups` and dates leave, in the order of the files.
    pub items: Vec<Item>,
    /// SHA-256 over the files.
    pub sha256: String,
}

/// Reads a task from its files, which are those of [`places::fetch`].
///
/// # Errors
/// A missing file, a row that is not of the published format, a task without prompts.
pub fn load(recipe: &Recipe, task: &TaskRecipe, files: &[TaskFile]) -> Result<Loaded> {
    let missing = |what: String| Error::Task {
        task: task.name.clone(),
        what,
        hint: format!(
            "give the folder with --data, or as `data` of the task the files or hf://datasets/ORG/NAME/FILE; {}",
            task.kind.origin()
        ),
    };
    let mut hash = Sha256::new();
    for TaskFile { path, .. } in files {
        let bytes = std::fs::read(path).map_err(|error| missing(format!("{}: {error}", path.display())))?;
        hash.update(&bytes);
    }
    let (files, baselines) = files.split_at(files.len().min(Places::of(recipe, task).prompts.len()));
    let mut items = match task.kind {
        TaskKind::Ability => ability(),
        TaskKind::ArenaHard => arena::items(recipe, task, &rows(files)?, baselines)?,
        TaskKind::Livecodebench => code::livecodebench(task, &rows(files)?)?,
        TaskKind::Humaneval => each(&rows(files)?, code::humaneval)?,
        TaskKind::Aime => each(&rows(files)?, choice::aime)?,
        TaskKind::Gpqa => each(&rows(files)?, |row| choice::gpqa(row, recipe.seed))?,
        TaskKind::MmluPro => each(&rows(files)?, choice::mmlu_pro)?,
        TaskKind::Custom => each(&rows(files)?, |row| custom(row, task.scorer))?,
        kind => each(&rows(files)?, |row| safety::item(kind, row))?,
    };
    if !task.groups.is_empty() {
        items.retain(|item| task.groups.contains(&item.group));
    }
    if items.is_empty() {
        return Err(missing("its files and groups leave no prompt".into()));
    }
    refuse_repeats(task, &items)?;
    for item in &mut items {
        dress(item, task);
    }
    Ok(Loaded {
        items,
        sha256: hexadecimal(&hash.finalize()),
    })
}

/// The items that the recipe's `limit` and `sample` take, in the order of the files.
pub fn select(items: Vec<Item>, task: &TaskRecipe, seed: u64) -> Vec<Item> {
    let mut items = items;
    items.truncate(task.limit.unwrap_or(usize::MAX));
    let Some(sample) = task.sample.filter(|&sample| sample < items.len()) else {
        return items;
    };
    let mut by_draw: Vec<(u64, usize)> = items
        .iter()
        .enumerate()
        .map(|(index, item)| (draw(&[&seed.to_string(), &task.name, &item.id]), index))
        .collect();
    by_draw.sort_unstable();
    let mut taken: Vec<usize> = by_draw[..sample].iter().map(|&(_, index)| index).collect();
    taken.sort_unstable();
    let mut items: Vec<Option<Item>> = items.into_iter().map(Some).collect();
    taken
        .into_iter()
        .filter_map(|index| items[index].take())
        .collect()
}

/// A number that follows from texts alone: the beginning of their hash.
pub(crate) fn draw(parts: &[&str]) -> u64 {
    let digest = digest(parts);
    digest[..8]
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// SHA-256 of texts and where each ends, in hexadecimal.
pub(crate) fn sha256(parts: &[&str]) -> String {
    hexadecimal(&digest(parts))
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All rows. Where a task has several files, rows without an id of their own are told apart by their file too.
fn rows(files: &[TaskFile]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in files {
        let of_file = read_rows(&file.path)?;
        if files.len() == 1 {
            return Ok(of_file);
        }
        rows.extend(of_file.into_iter().map(|row| row.below(&file.name)));
    }
    Ok(rows)
}

fn each(rows: &[Row], item: impl Fn(&Row) -> Result<Item>) -> Result<Vec<Item>> {
    rows.iter().map(item).collect()
}

fn refuse_repeats(task: &TaskRecipe, items: &[Item]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for item in items {
        if !seen.insert(&item.id) {
            return Err(Error::Task {
                task: task.name.clone(),
                what: format!("two prompts have the id `{}`", item.id),
                hint: "give each file once, and let no two rows carry the same id".into(),
            });
        }
    }
    Ok(())
}

/// Puts the recipe's template and system message round an item.
fn dress(item: &mut Item, task: &TaskRecipe) {
    if let (Some(template), Some(message)) = (&task.template, item.messages.last_mut()) {
        message.content = template.replace("{question}", &message.content);
    }
    if let Some(system) = &task.system {
        item.messages.insert(0, Message::system(system));
    }
}

fn ability() -> Vec<Item> {
    let item = |ability: crate::ability::Ability| Item {
        group: "ability".into(),
        messages: vec![Message::user(ability.prompt)],
        target: Target::Check(ability.check),
        id: ability.id,
        behavior: None,
    };
    abilities().into_iter().map(item).collect()
}

fn custom(row: &Row, scorer: CustomScorer) -> Result<Item> {
    let target = match scorer {
        CustomScorer::Judges => match row.text(&["label"])? {
            "harmful" => Target::Harmful,
            "benign" => Target::Benign,
            other => return Err(row.wrong(&format!("label: expected harmful or benign, found `{other}`"))),
        },
        CustomScorer::Check => {
            let check = row.value("check").cloned().unwrap_or_default();
            Target::Check(
                serde_json::from_value(check).map_err(|error| row.wrong(&format!("check: {error}")))?,
            )
        }
        CustomScorer::Integer => Target::Integer(choice::integer(row, "answer")?),
        CustomScorer::Letter => Target::Letter {
            answer: choice::letter(row, "answer")?,
            options: 26,
        },
    };
    let prompt = row.text(&["prompt"])?;
    let judged = scorer == CustomScorer::Judges;
    Ok(Item {
        id: row.id(&["id"]),
        group: row.optional("group").unwrap_or("custom").into(),
        messages: vec![Message::user(prompt)],
        target,
        behavior: judged.then(|| Behavior {
            request: prompt.into(),
            ..Behavior::default()
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The first task of a recipe, from its files.
    pub(crate) fn load(recipe: &Recipe) -> Result<Loaded> {
        let task = &recipe.tasks[0];
        super::load(recipe, task, &places::fetch(recipe, task, &mut |_| {})?)
    }

    pub(crate) fn recipe(folder: &Path, tasks: &str) -> Recipe {
        let text = format!(
            "data = {:?}\n[[judge]]\nname = \"g\"\nkind = \"built-in\"\n{tasks}",
            folder.display().to_string()
        );
        Recipe::parse(&text, "test", &[]).unwrap()
    }

    fn item(id: usize) -> Item {
        Item {
            id: id.to_string(),
            group: String::new(),
            messages: vec![Message::user("q")],
            target: Target::Harmful,
            behavior: None,
        }
    }

    #[test]
    fn a_larger_sample_keeps_what_a_smaller_one_drew() {
        let folder = Path::new("x");
        let recipe = recipe(
            folder,
            "[[task]]\nname = \"t\"\nkind = \"xstest\"\njudges = [\"g\"]",
        );
        let taken = |sample: Option<usize>, limit: Option<usize>, seed: u64| -> Vec<String> {
            let task = TaskRecipe {
                sample,
                limit,
                ..recipe.tasks[0].clone()
            };
            let items = select((0..50).map(item).collect(), &task, seed);
            items.into_iter().map(|item| item.id).collect()
        };
        let (small, large) = (taken(Some(5), None, 1), taken(Some(20), None, 1));
        assert_eq!((small.len(), large.len()), (5, 20));
        assert!(small.iter().all(|id| large.contains(id)));
        assert_ne!(small, taken(Some(5), None, 2));
        assert_eq!(taken(None, Some(3), 1), ["0", "1", "2"]);
        assert_eq!(taken(Some(99), None, 1).len(), 50);
    }

    #[test]
    fn a_missing_file_is_named_with_its_origin() {
        let recipe = recipe(
            Path::new("nowhere"),
            "[[task]]\nname = \"t\"\nkind = \"strongreject\"\njudges = [\"g\"]",
        );
        let error = load(&recipe).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("nowhere/strongreject/strongreject_dataset.csv"),
            "{error}"
        );
        assert!(
            error
                .hint()
                .unwrap()
                .contains("github.com/alexandrasouly/strongreject")
        );
    }

    #[test]
    fn rows_of_several_files_keep_apart() {
        let folder = tempfile::tempdir().unwrap();
        for half in ["i", "ii"] {
            std::fs::create_dir(folder.path().join(half)).unwrap();
            let rows = format!(
                "{{\"problem\": \"{half}\", \"answer\": 1}}\n{{\"problem\": \"x\", \"answer\": 2}}\n"
            );
            std::fs::write(folder.path().join(half).join("test.jsonl"), rows).unwrap();
        }
        let of = |data: &str| {
            let task = format!("[[task]]\nname = \"t\"\nkind = \"aime\"\ndata = {data}");
            let recipe = recipe(folder.path(), &task);
            load(&recipe)
        };
        let ids =
            |data: &str| -> Vec<String> { of(data).unwrap().items.into_iter().map(|item| item.id).collect() };
        assert_eq!(ids("[\"i/test.jsonl\"]"), ["1", "2"]);
        assert_eq!(
            ids("[\"i/test.jsonl\", \"ii/test.jsonl\"]"),
            [
                "i/test.jsonl:1",
                "i/test.jsonl:2",
                "ii/test.jsonl:1",
                "ii/test.jsonl:2"
            ]
        );
        let error = of("[\"i/test.jsonl\", \"i/test.jsonl\"]")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("two prompts have the id `i/test.jsonl:1`"),
            "{error}"
        );
    }

    #[test]
    fn jailbreakbenchs_files_say_which_behaviours_are_benign() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "Index,Goal,Target,Behavior,Category,Source\n0,g,t,b,Privacy,Original\n";
        for file in [
            "harmful-behaviors.csv",
            "benign-behaviors.csv",
            "judge-comparison.csv",
        ] {
            std::fs::write(folder.path().join(file), rows).unwrap();
        }
        std::fs::create_dir(folder.path().join("benign")).unwrap();
        std::fs::write(
            folder.path().join("benign/0000.jsonl"),
            "{\"Goal\": \"g\", \"Category\": \"Privacy\"}\n",
        )
        .unwrap();
        let of = |data: &str| {
            let task =
                format!("[[task]]\nname = \"t\"\nkind = \"jailbreakbench\"\njudges = [\"g\"]\ndata = {data}");
            load(&recipe(folder.path(), &task))
        };
        let targets = |data: &str| -> Vec<Target> {
            let items = of(data).unwrap().items.into_iter();
            items.map(|item| item.target).collect()
        };
        assert_eq!(targets("[\"harmful-behaviors.csv\"]"), [Target::Harmful]);
        assert_eq!(
            targets("[\"harmful-behaviors.csv\", \"benign-behaviors.csv\"]"),
            [Target::Harmful, Target::Benign]
        );
        assert_eq!(targets("[\"benign/0000.jsonl\"]"), [Target::Benign]);
        let error = of("[\"judge-comparison.csv\"]").unwrap_err().to_string();
        assert!(
            error.contains("judge-comparison.csv") && error.contains("or benign-behaviors.csv"),
            "{error}"
        );
    }

    #[test]
    fn custom_rows_carry_their_own_target() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "{\"prompt\": \"a\", \"label\": \"harmful\"}\n{\"id\": 7, \"prompt\": \"b\", \"label\": \"benign\"}\n";
        std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
        let task = "[[task]]\nname = \"t\"\nkind = \"custom\"\njudges = [\"g\"]\ndata = [\"rows.jsonl\"]\n\
                    template = \"Q: {question}\"\nsystem = \"Be brief.\"";
        let recipe = recipe(folder.path(), task);
        let loaded = load(&recipe).unwrap();
        assert_eq!(loaded.items[0].target, Target::Harmful);
        assert_eq!(loaded.items[1].id, "7");
        assert_eq!(loaded.items[1].prompt(), "Q: b");
        assert_eq!(loaded.items[1].behavior.as_ref().unwrap().request, "b");
        assert_eq!(loaded.items[1].messages[0], Message::system("Be brief."));
        std::fs::write(
            folder.path().join("rows.jsonl"),
            "{\"prompt\": \"a\", \"label\": \"odd\"}\n",
        )
        .unwrap();
        let error = load(&recipe).unwrap_err().to_string();
        assert!(
            error.contains("line or row 1") && error.contains("`odd`"),
            "{error}"
        );
    }
}
