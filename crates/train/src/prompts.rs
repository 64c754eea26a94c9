//! Where prompts come from, and the deck that deals them.
//!
//! Sources: the program's own prompts, JSONL, CSV, TSV and Parquet with named columns, and the published WildJailbreak
//! format. A [`Deck`] deals them in the recipe's mix of kinds, in an order that follows from the seed alone, so that a
//! [`Cursor`] of four counts is all that a checkpoint needs to continue.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::recipe::{Format, Kind, Prompts};

/// The program's own prompts; `split` is `train` or `test`.
pub(crate) const BUILT_IN: &str = include_str!("../data/prompts.jsonl");

/// What a recipe calls them.
pub(crate) const BUILT_IN_NAME: &str = "built-in";

/// A prompt to train on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptRow {
    /// Unique in its source.
    pub id: String,
    /// What it asks for.
    pub kind: Kind,
    /// The kind of harm, where the source names it.
    pub category: Option<String>,
    /// What the user says.
    pub prompt: String,
}

/// Reads the prompts that a recipe names.
///
/// # Errors
/// A file that cannot be read, a missing column, a kind that is none of the four, or no prompt at all; each with the
/// file and line.
pub fn load(recipe: &Prompts) -> Result<Vec<PromptRow>> {
    let path = Path::new(&recipe.source);
    let format = resolve(recipe.format, path);
    let records = match (recipe.source.as_str(), format) {
        (BUILT_IN_NAME, _) => jsonl(path, BUILT_IN)?,
        (_, Format::Csv) => separated(path, b',')?,
        (_, Format::Tsv) => separated(path, b'\t')?,
        (_, Format::Parquet) => parquet(path)?,
        (_, _) => jsonl(
            path,
            &std::fs::read_to_string(path).map_err(|source| Error::file(path, source))?,
        )?,
    };
    let mut rows = Vec::with_capacity(records.len());
    for (line, record) in records {
        let row = if recipe.format == Format::Wildjailbreak {
            wildjailbreak(&record, line)
        } else {
            named_columns(&record, line, recipe)
        };
        let row = row.map_err(|what| Error::Format {
            path: path.into(),
            line: Some(line),
            what,
        })?;
        rows.extend(row.filter(|row| !row.prompt.trim().is_empty()));
    }
    if rows.is_empty() {
        let what = format!(
            "expected at least one prompt of split `{}`, found none",
            recipe.split
        );
        return Err(Error::Format {
            path: path.into(),
            line: None,
            what,
        });
    }
    Ok(rows)
}

/// The format that a file has by its extension; WildJailbreak is published as TSV.
fn resolve(format: Format, path: &Path) -> Format {
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_lowercase());
    match (format, extension.as_deref()) {
        (Format::Auto | Format::Wildjailbreak, Some("csv")) => Format::Csv,
        (Format::Auto | Format::Wildjailbreak, Some("tsv")) | (Format::Wildjailbreak, None) => Format::Tsv,
        (Format::Auto | Format::Wildjailbreak, Some("parquet")) => Format::Parquet,
        (Format::Auto | Format::Wildjailbreak, _) => Format::Jsonl,
        (format, _) => format,
    }
}

/// A row by the recipe's column names; `None` where it belongs to another split.
fn named_columns(
    record: &Map<String, Value>,
    line: usize,
    recipe: &Prompts,
) -> std::result::Result<Option<PromptRow>, String> {
    let text = |column: &str| {
        record
            .get(column)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if !recipe.split.is_empty() && text("split").is_some_and(|split| split != recipe.split) {
        return Ok(None);
    }
    let prompt = record
        .get(&recipe.prompt_column)
        .and_then(Value::as_str)
        .ok_or_else(|| {
            let columns: Vec<&str> = record.keys().map(String::as_str).collect();
            format!(
                "expected text in column `{}`, found the columns {}",
                recipe.prompt_column,
                columns.join(", ")
            )
        })?;
    let kind = match text(&recipe.kind_column) {
        None => Kind::Harmful,
        Some(name) => serde_json::from_value(Value::from(name)).map_err(|_| {
            format!(
                "expected harmful, adversarial, borderline or ordinary in `{}`, found `{name}`",
                recipe.kind_column
            )
        })?,
    };
    Ok(Some(PromptRow {
        id: record.get("id").map_or_else(|| format!("row-{line}"), plain),
        kind,
        category: text("category").map(String::from),
        prompt: prompt.into(),
    }))
}

/// A row of WildJailbreak: an adversarial type takes the `adversarial` column, a vanilla type the `vanilla` one.
fn wildjailbreak(record: &Map<String, Value>, line: usize) -> std::result::Result<Option<PromptRow>, String> {
    let text = |column: &str| {
        record.get(column).and_then(Value::as_str).ok_or_else(|| {
            format!("expected the columns vanilla, adversarial and data_type, found no `{column}`")
        })
    };
    let (column, kind) = match text("data_type")? {
        "vanilla_harmful" => ("vanilla", Kind::Harmful),
        "adversarial_harmful" => ("adversarial", Kind::Adversarial),
        // Benign rows sound harmful on purpose: they are contrasts, plain and in the same wrappers.
        "vanilla_benign" => ("vanilla", Kind::Borderline),
        "adversarial_benign" => ("adversarial", Kind::Borderline),
        other => {
            return Err(format!(
                "expected a data_type of vanilla_ or adversarial_ harmful or benign, found `{other}`"
            ));
        }
    };
    let prompt = text(column)?.to_string();
    Ok(Some(PromptRow {
        id: format!("row-{line}"),
        kind,
        category: None,
        prompt,
    }))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Records with their line or row, counted from 1.
type Records = Vec<(usize, Map<String, Value>)>;

fn jsonl(path: &Path, text: &str) -> Result<Records> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let record = serde_json::from_str(line).map_err(|error| Error::Format {
                path: path.into(),
                line: Some(index + 1),
                what: format!("expected a JSON object: {error}"),
            })?;
            Ok((index + 1, record))
        })
        .collect()
}

fn separated(path: &Path, delimiter: u8) -> Result<Records> {
    let file = File::open(path).map_err(|source| Error::file(path, source))?;
    let broken = |line: Option<u64>, what: String| Error::Format {
        path: path.into(),
        line: line.map(|line| line as usize),
        what,
    };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let names = reader
        .headers()
        .map_err(|error| broken(Some(1), error.to_string()))?
        .clone();
    reader
        .records()
        .map(|record| {
            let record = record
                .map_err(|error| broken(error.position().map(csv::Position::line), error.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line) as usize;
            let values = names
                .iter()
                .zip(&record)
                .map(|(name, value)| (name.into(), Value::from(value)));
            Ok((line, values.collect()))
        })
        .collect()
}

fn parquet(path: &Path) -> Result<Records> {
    let rows = model::parquet_file::rows(path)?.into_iter().enumerate();
    let present = |(name, value): (String, Value)| (!value.is_null()).then_some((name, value));
    Ok(rows
        .map(|(index, row)| (index + 1, row.into_iter().filter_map(present).collect()))
        .collect())
}

/// How many prompts of each kind have been dealt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Counts by kind.
    pub dealt: BTreeMap<Kind, usize>,
}

/// Deals prompts in the recipe's mix, each kind through its own shuffled pile, reshuffled when it is through.
#[derive(Debug)]
pub struct Deck {
    rows: Vec<PromptRow>,
    piles: BTreeMap<Kind, Vec<usize>>,
    shares: BTreeMap<Kind, f64>,
    seed: u64,
}

impl Deck {
    /// A deck of `rows` in the shares of `mix`; an empty mix takes every kind by its share of the rows.
    ///
    /// # Errors
    /// A kind with a share and no rows.
    pub fn new(rows: Vec<PromptRow>, mix: &BTreeMap<Kind, f64>, seed: u64) -> Result<Self> {
        let mut piles: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            piles.entry(row.kind).or_default().push(index);
        }
        let shares: BTreeMap<Kind, f64> = if mix.is_empty() {
            piles
                .iter()
                .map(|(&kind, pile)| (kind, pile.len() as f64))
                .collect()
        } else {
            mix.iter()
                .filter(|&(_, &share)| share > 0.0)
                .map(|(&kind, &share)| (kind, share))
                .collect()
        };
        let kinds: BTreeSet<Kind> = piles.keys().copied().collect();
        if let Some(kind) = shares.keys().find(|kind| !kinds.contains(kind)) {
            return Err(Error::Key {
                key: "prompts.mix".into(),
                expected: format!("kinds that the source has: {kinds:?}"),
                found: format!("{kind:?}"),
            });
        }
        let total: f64 = shares.values().sum();
        let shares = shares
            .into_iter()
            .map(|(kind, share)| (kind, share / total))
            .collect();
        Ok(Self {
            rows,
            piles,
            shares,
            seed,
        })
    }

    /// All prompts.
    pub fn rows(&self) -> &[PromptRow] {
        &self.rows
    }

    /// Deals `count` prompts and moves the cursor. The shares hold to within one prompt at any time.
    pub fn deal(&self, cursor: &mut Cursor, count: usize) -> Vec<&PromptRow> {
        (0..count).map(|_| self.deal_one(cursor)).collect()
    }

    fn deal_one(&self, cursor: &mut Cursor) -> &PromptRow {
        let total = cursor.dealt.values().sum::<usize>() + 1;
        let owed = |kind: &Kind, share: f64| {
            share * total as f64 - cursor.dealt.get(kind).copied().unwrap_or_default() as f64
        };
        let (&kind, _) = self
            .shares
            .iter()
            .max_by(|a, b| owed(a.0, *a.1).total_cmp(&owed(b.0, *b.1)))
            .expect("a deck has a kind: load() refuses an empty source");
        let dealt = cursor.dealt.entry(kind).or_default();
        let pile = &self.piles[&kind];
        let (round, place) = (*dealt / pile.len(), *dealt % pile.len());
        *dealt += 1;
        &self.rows[self.shuffled(kind, round)[place]]
    }

    /// The order of one kind's pile in one round.
    fn shuffled(&self, kind: Kind, round: usize) -> Vec<usize> {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(((kind as u64) << 32) | round as u64);
        let mut pile = self.piles[&kind].clone();
        pile.shuffle(&mut generator);
        pile
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, Prompts) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        (
            folder,
            Prompts {
                source: path.display().to_string(),
                ..Prompts::default()
            },
        )
    }

    #[test]
    fn the_built_in_prompts_have_both_splits_and_all_kinds() {
        let ids = |split: &str| -> BTreeSet<String> {
            let rows = load(&Prompts {
                split: split.into(),
                ..Prompts::default()
            })
            .unwrap();
            assert!(
                Kind::ALL
                    .iter()
                    .all(|kind| rows.iter().any(|row| row.kind == *kind)),
                "{split}"
            );
            rows.into_iter().map(|row| row.id).collect()
        };
        let (train, test) = (ids("train"), ids("test"));
        assert!(train.is_disjoint(&test) && train.len() > test.len());
        assert_eq!(ids("").len(), train.len() + test.len());
    }

    #[test]
    fn csv_tsv_and_jsonl_agree() {
        let csv = "id,question,kind\n7,\"Hello, you\",ordinary\n8,Bye,harmful\n";
        let tsv = "id\tquestion\tkind\n7\tHello, you\tordinary\n8\tBye\tharmful\n";
        let jsonl = "{\"id\": 7, \"question\": \"Hello, you\", \"kind\": \"ordinary\"}\n\n{\"id\": \"8\", \"question\": \"Bye\"}\n";
        let read = |name: &str, text: &str| {
            let (_folder, recipe) = file(name, text);
            load(&Prompts {
                prompt_column: "question".into(),
                ..recipe
            })
            .unwrap()
        };
        let rows = read("a.csv", csv);
        assert_eq!(rows, read("a.tsv", tsv));
        assert_eq!(rows, read("a.jsonl", jsonl));
        assert_eq!(
            (rows[0].id.as_str(), rows[0].prompt.as_str(), rows[0].kind),
            ("7", "Hello, you", Kind::Ordinary)
        );
    }

    #[test]
    fn wildjailbreak_takes_the_column_of_its_type() {
        let text = "vanilla\tadversarial\tcompletion\tdata_type\nplain\t\tx\tvanilla_harmful\nplain\twrapped\tx\tadversarial_harmful\nmild\t\tx\tvanilla_benign\nmild\tmild wrapped\tx\tadversarial_benign\n";
        let (_folder, recipe) = file("train.tsv", text);
        let rows = load(&Prompts {
            format: Format::Wildjailbreak,
            ..recipe
        })
        .unwrap();
        let texts: Vec<(&str, Kind)> = rows.iter().map(|row| (row.prompt.as_str(), row.kind)).collect();
        assert_eq!(
            texts,
            [
                ("plain", Kind::Harmful),
                ("wrapped", Kind::Adversarial),
                ("mild", Kind::Borderline),
                ("mild wrapped", Kind::Borderline)
            ]
        );
    }

    #[test]
    fn parquet_is_read_by_column() {
        use parquet::data_type::{ByteArray, ByteArrayType};
        use parquet::file::writer::SerializedFileWriter;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = "message m { required binary prompt (utf8); optional binary kind (utf8); }";
        let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), schema, std::sync::Arc::default())
                .unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (values, levels) in [
            (vec!["one", "two"], None),
            (vec!["ordinary"], Some([1, 0].as_slice())),
        ] {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = values.into_iter().map(ByteArray::from).collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, levels, None)
                .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let rows = load(&Prompts {
            source: path.display().to_string(),
            ..Prompts::default()
        })
        .unwrap();
        let rows: Vec<(&str, Kind)> = rows.iter().map(|row| (row.prompt.as_str(), row.kind)).collect();
        assert_eq!(rows, [("one", Kind::Ordinary), ("two", Kind::Harmful)]);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/parquet/zstd.parquet");
        let rows = load(&Prompts {
            source: source.into(),
            ..Prompts::default()
        })
        .unwrap();
        assert_eq!(rows[7].prompt, "Question 7: what is 7 times 7?");
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let message = |name: &str, text: &str| load(&file(name, text).1).unwrap_err().to_string();
        let (_folder, recipe) = file("a.jsonl", "{\"prompt\": \"x\"}\n{\"text\": \"y\"}\n");
        let error = load(&recipe).unwrap_err().to_string();
        assert!(
            error.contains("a.jsonl, line 2") && error.contains("`prompt`") && error.contains("text"),
            "{error}"
        );
        let (_folder, recipe) = file("a.csv", "prompt,kind\nx,odd\n");
        assert!(load(&recipe).unwrap_err().to_string().contains("found `odd`"));
        assert!(message("gone.jsonl", "").contains("gone.jsonl"));
        let (_folder, recipe) = file("a.jsonl", "{\"prompt\": \"x\", \"split\": \"test\"}\n");
        assert!(load(&recipe).unwrap_err().to_string().contains("split `train`"));
    }

    fn rows(counts: &[(Kind, usize)]) -> Vec<PromptRow> {
        let row = |kind, index| PromptRow {
            id: format!("{kind:?}-{index}"),
            kind,
            category: None,
            prompt: format!("{index}"),
        };
        counts
            .iter()
            .flat_map(|&(kind, count)| (0..count).map(move |index| row(kind, index)))
            .collect()
    }

    #[test]
    fn the_deck_keeps_its_mix_and_deals_each_prompt_once_a_round() {
        let mix = BTreeMap::from([(Kind::Harmful, 3.0), (Kind::Ordinary, 1.0)]);
        let deck = Deck::new(
            rows(&[(Kind::Harmful, 9), (Kind::Ordinary, 5), (Kind::Borderline, 4)]),
            &mix,
            7,
        )
        .unwrap();
        let mut cursor = Cursor::default();
        let dealt: Vec<&str> = deck
            .deal(&mut cursor, 12)
            .into_iter()
            .map(|row| row.id.as_str())
            .collect();
        assert_eq!(dealt.iter().filter(|id| id.starts_with("Harmful")).count(), 9);
        assert_eq!(dealt.iter().collect::<BTreeSet<_>>().len(), 12);
        assert!(dealt.iter().all(|id| !id.starts_with("Borderline")));
    }

    #[test]
    fn a_saved_cursor_continues_the_same_order() {
        let deck = |seed| {
            Deck::new(
                rows(&[(Kind::Harmful, 5), (Kind::Ordinary, 3)]),
                &BTreeMap::new(),
                seed,
            )
            .unwrap()
        };
        let ids =
            |rows: Vec<&PromptRow>| -> Vec<String> { rows.into_iter().map(|row| row.id.clone()).collect() };
        let first = deck(1);
        let whole = ids(first.deal(&mut Cursor::default(), 20));
        let mut cursor = Cursor::default();
        let start = ids(first.deal(&mut cursor, 7));
        let saved = serde_json::to_string(&cursor).unwrap();
        let mut cursor: Cursor = serde_json::from_str(&saved).unwrap();
        let rest = ids(deck(1).deal(&mut cursor, 13));
        assert_eq!([start, rest].concat(), whole);
        assert_ne!(whole, ids(deck(2).deal(&mut Cursor::default(), 20)));
        assert!(
            Deck::new(
                rows(&[(Kind::Harmful, 1)]),
                &BTreeMap::from([(Kind::Ordinary, 1.0)]),
                1
            )
            .is_err()
        );
    }
}
