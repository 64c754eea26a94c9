//! Where a benchmark's files are: in the data folder, or on the Hugging Face hub.
//!
//! A path is below the recipe's data folder; `hf://datasets/ORG/NAME[@REVISION]/FILE` is on the hub. A benchmark whose
//! recipe names no files has usual ones: each is looked for in the data folder, and where it is not there, on the hub,
//! if its authors published it there. The copies that others put on the hub are taken only where a recipe names them.

use std::path::{Path, PathBuf};

use model::dataset::{DatasetFile, SCHEME, has_token};
use model::source::Progress;

use crate::error::{Error, Result};
use crate::recipe::{Recipe, TaskKind, TaskRecipe};

/// Datasets that give their files only to accounts that accepted their terms.
const GATED: [&str; 2] = ["allenai/wildjailbreak", "Idavidrein/gpqa"];

/// Where a file of a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this machine's file system, there or not.
    Disk {
        /// The path.
        path: PathBuf,
        /// The path as the recipe has it.
        name: String,
    },
    /// On the hub.
    Hub(DatasetFile),
}

/// A file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFile {
    /// What tells its rows from those of the task's other files, on every machine alike.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// The places of a task's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The prompts.
    pub prompts: Vec<Place>,
    /// Arena-Hard: the baseline's answers, by category.
    pub baselines: Vec<(String, Place)>,
}

impl Places {
    /// The places of a task.
    pub fn of(recipe: &Recipe, task: &TaskRecipe) -> Self {
        let usual = |&(file, hub): &(&str, &str)| Place::usual(recipe, file, hub);
        let prompts = if task.data.is_empty() {
            task.kind.usual_files().iter().map(usual).collect()
        } else {
            task.data.iter().map(|file| Place::named(recipe, file)).collect()
        };
        let wanted =
            |category: &str| task.groups.is_empty() || task.groups.iter().any(|group| group == category);
        let baselines = if task.kind == TaskKind::ArenaHard && task.baselines.is_empty() {
            let usual = USUAL_BASELINES.iter().filter(|(category, ..)| wanted(category));
            usual
                .map(|(category, file, hub)| ((*category).to_owned(), Place::usual(recipe, file, hub)))
                .collect()
        } else {
            let named = task.baselines.iter();
            named
                .map(|(category, file)| (category.clone(), Place::named(recipe, file)))
                .collect()
        };
        Self { prompts, baselines }
    }

    /// All of them: the prompts, then the baselines.
    pub fn all(&self) -> impl Iterator<Item = &Place> {
        self.prompts
            .iter()
            .chain(self.baselines.iter().map(|(_, place)| place))
    }
}

impl Place {
    /// What a recipe names.
    fn named(recipe: &Recipe, file: &Path) -> Self {
        let hub = file.to_str().and_then(|name| DatasetFile::parse(name).ok());
        hub.map_or_else(|| Self::disk(recipe, file), Self::Hub)
    }

    /// A benchmark's usual file: in the data folder, else at its place on the hub, if it has one.
    fn usual(recipe: &Recipe, file: &str, hub: &str) -> Self {
        let disk = Self::disk(recipe, Path::new(file));
        let hub = DatasetFile::parse(&format!("{SCHEME}{hub}")).ok();
        match hub {
            Some(hub) if disk.at_hand().is_none() => Self::Hub(hub),
            _ => disk,
        }
    }

    fn disk(recipe: &Recipe, file: &Path) -> Self {
        let path = recipe.data.join(file);
        let name = path.strip_prefix(&recipe.data).unwrap_or(&path);
        Self::Disk {
            name: name.display().to_string(),
            path,
        }
    }

    /// The file, where it is on this machine: in its folder, or in the hub's cache.
    pub fn at_hand(&self) -> Option<TaskFile> {
        match self {
            Self::Disk { path, .. } => path.is_file().then(|| self.file(path.clone())),
            Self::Hub(file) => file.cached().map(|path| self.file(path)),
        }
    }

    /// The file, fetched where it has to be.
    fn fetch(&self, progress: &mut dyn FnMut(Progress)) -> model::Result<TaskFile> {
        let path = match self {
            Self::Disk { path, .. } => path.clone(),
            Self::Hub(file) => file.fetch(progress)?,
        };
        Ok(self.file(path))
    }

    fn file(&self, path: PathBuf) -> TaskFile {
        let name = match self {
            Self::Disk { name, .. } => name.clone(),
            Self::Hub(file) => format!("{}/{}", file.repository, file.path),
        };
        TaskFile { name, path }
    }

    /// The dataset that is gated and for which the environment has no token; it would be refused.
    pub(crate) fn locked(&self) -> Option<String> {
        match self {
            Self::Hub(file) if is_gated(file) && !has_token() => file.page().ok(),
            _ => None,
        }
    }

    /// Where the file is, and how it comes here, for a plan.
    pub(crate) fn whereabouts(&self) -> String {
        let file = match self {
            Self::Disk { path, .. } => return path.display().to_string(),
            Self::Hub(file) => file,
        };
        if let Some(path) = file.cached() {
            return format!("{file}, fetched before: {}", path.display());
        }
        let page = file.page().unwrap_or_default();
        let terms = if is_gated(file) {
            ", whose terms have to be accepted there"
        } else {
            ""
        };
        format!("{file}, to be fetched from {page}{terms}")
    }
}

fn is_gated(file: &DatasetFile) -> bool {
    GATED.contains(&file.repository.as_str())
}

/// A task's files on this machine, those on the hub fetched: the prompts, then the baselines.
///
/// # Errors
/// A file that the hub does not give. That one of the data folder is missing shows when it is read.
pub fn fetch(
    recipe: &Recipe,
    task: &TaskRecipe,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TaskFile>> {
    let refused = |error: model::Error| {
        let other = || {
            let folder = recipe.data.display();
            format!(
                "or give a file of your own below {folder} as `data` of the task; {}",
                task.kind.origin()
            )
        };
        Error::Task {
            task: task.name.clone(),
            what: error.to_string(),
            hint: error.hint().map_or_else(other, str::to_owned),
        }
    };
    let places = Places::of(recipe, task);
    let files = places.all().map(|place| place.fetch(progress).map_err(refused));
    files.collect()
}

/// Arena-Hard v2's baselines by category, where they usually are in the data folder, and on the hub.
const USUAL_BASELINES: [(&str, &str, &str); 2] = [
    (
        "hard_prompt",
        "arena_hard_v2/model_answer_o3-mini-2025-01-31.jsonl",
        "lmarena-ai/arena-hard-auto/data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl",
    ),
    (
        "creative_writing",
        "arena_hard_v2/model_answer_gemini-2.0-flash-001.jsonl",
        "lmarena-ai/arena-hard-auto/data/arena-hard-v2.0/model_answer/gemini-2.0-flash-001.jsonl",
    ),
];

impl TaskKind {
    /// A benchmark's files: where the project's own data folder keeps them, and where the hub has them; nothing where
    /// their authors did not put them on the hub.
    fn usual_files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Xstest => &[("xstest/xstest_prompts.csv", "Paul/XSTest/xstest_prompts.csv")],
            Self::OrBench => &[(
                "or_bench/orbench_hard.json",
                "bench-llm/or-bench/or-bench-hard-1k.csv",
            )],
            Self::Harmbench => &[("harmbench/harmbench_behaviors_text_test.csv", "")],
            Self::Jailbreakbench => &[(
                "jailbreakbench/harmful-behaviors.csv",
                "JailbreakBench/JBB-Behaviors/data/harmful-behaviors.csv",
            )],
            Self::Advbench => &[("advbench/harmful_behaviors.csv", "")],
            Self::Strongreject => &[("strongreject/strongreject_dataset.csv", "")],
            Self::SimpleSafetyTests => &[(
                "simple_safety_tests/simple_safety_tests.csv",
                "Bertievidgen/SimpleSafetyTests/sst_test_cases.csv",
            )],
            Self::Wildjailbreak => &[("wildjailbreak/eval.tsv", "allenai/wildjailbreak/eval/eval.tsv")],
            Self::Humaneval => &[(
                "humaneval/HumanEval.jsonl.gz",
                "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet",
            )],
            Self::Livecodebench => &[
                (
                    "livecodebench/test.jsonl",
                    "livecodebench/code_generation_lite/test.jsonl",
                ),
                (
                    "livecodebench/test2.jsonl",
                    "livecodebench/code_generation_lite/test2.jsonl",
                ),
                (
                    "livecodebench/test3.jsonl",
                    "livecodebench/code_generation_lite/test3.jsonl",
                ),
                (
                    "livecodebench/test4.jsonl",
                    "livecodebench/code_generation_lite/test4.jsonl",
                ),
                (
                    "livecodebench/test5.jsonl",
                    "livecodebench/code_generation_lite/test5.jsonl",
                ),
                (
                    "livecodebench/test6.jsonl",
                    "livecodebench/code_generation_lite/test6.jsonl",
                ),
            ],
            Self::Aime => &[("aime25/test.jsonl", "math-ai/aime25/test.jsonl")],
            Self::Gpqa => &[("gpqa/gpqa_diamond.csv", "Idavidrein/gpqa/gpqa_diamond.csv")],
            Self::MmluPro => &[(
                "mmlu_pro/test.parquet",
                "TIGER-Lab/MMLU-Pro/data/test-00000-of-00001.parquet",
            )],
            Self::ArenaHard => &[(
                "arena_hard_v2/question.jsonl",
                "lmarena-ai/arena-hard-auto/data/arena-hard-v2.0/question.jsonl",
            )],
            Self::Ability | Self::Custom => &[],
        }
    }

    /// How many prompts a benchmark is published with, to plan without its files; LiveCodeBench's depend on the dates.
    pub(crate) fn published_prompts(self) -> Option<usize> {
        match self {
            Self::Xstest => Some(450),
            Self::OrBench => Some(1319),
            Self::Harmbench => Some(320),
            Self::Jailbreakbench | Self::SimpleSafetyTests => Some(100),
            Self::Advbench => Some(520),
            Self::Strongreject => Some(313),
            Self::Wildjailbreak => Some(2210),
            Self::Humaneval => Some(164),
            Self::Aime => Some(30),
            Self::Gpqa => Some(198),
            Self::MmluPro => Some(12_032),
            Self::ArenaHard => Some(750),
            Self::Livecodebench | Self::Ability | Self::Custom => None,
        }
    }

    /// Where a benchmark is published.
    pub fn origin(self) -> &'static str {
        match self {
            Self::Xstest => {
                "XSTest: dataset Paul/XSTest, or github.com/paul-rottger/xstest, xstest_prompts.csv"
            }
            Self::OrBench => "OR-Bench: dataset bench-llm/or-bench, or-bench-hard-1k",
            Self::Harmbench => {
                "HarmBench: github.com/centerforaisafety/HarmBench, harmbench_behaviors_text_test.csv; others copied \
                 all behaviours to walledai/HarmBench"
            }
            Self::Jailbreakbench => {
                "JailbreakBench: dataset JailbreakBench/JBB-Behaviors, harmful-behaviors.csv; their benign twins are in \
                 benign-behaviors.csv"
            }
            Self::Advbench => {
                "AdvBench: github.com/llm-attacks/llm-attacks, harmful_behaviors.csv; others copied it to \
                 walledai/AdvBench"
            }
            Self::Strongreject => {
                "StrongREJECT: github.com/alexandrasouly/strongreject, strongreject_dataset.csv; others copied it to \
                 walledai/StrongREJECT"
            }
            Self::SimpleSafetyTests => "SimpleSafetyTests: dataset Bertievidgen/SimpleSafetyTests",
            Self::Wildjailbreak => {
                "WildJailbreak: dataset allenai/wildjailbreak, eval.tsv; accept its terms first"
            }
            Self::Humaneval => {
                "HumanEval: github.com/openai/human-eval, HumanEval.jsonl.gz, or dataset openai/openai_humaneval"
            }
            Self::Livecodebench => "LiveCodeBench: dataset livecodebench/code_generation_lite, test*.jsonl",
            Self::Aime => "AIME 2025: dataset math-ai/aime25 or opencompass/AIME2025, JSONL",
            Self::Gpqa => "GPQA: dataset Idavidrein/gpqa, gpqa_diamond.csv; accept its terms first",
            Self::MmluPro => "MMLU-Pro: dataset TIGER-Lab/MMLU-Pro, test split",
            Self::ArenaHard => {
                "Arena-Hard v2: github.com/lmarena/arena-hard-auto or dataset lmarena-ai/arena-hard-auto, \
                 data/arena-hard-v2.0"
            }
            Self::Ability => "it is part of the program",
            Self::Custom => "a custom task names its own JSONL file",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::recipe;
    use super::*;

    const ARENA: &str = "[[judge]]\nname = \"p\"\nkind = \"pairwise\"\nurl = \"http://localhost:1\"\n\
        system = { hard_prompt = \"s\" }\n[[task]]\nname = \"arena\"\nkind = \"arena-hard\"\njudges = [\"p\"]\n";

    #[test]
    fn a_usual_file_is_the_folders_or_else_the_hubs() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe(folder.path(), ARENA);
        let prompts = |hub: bool| {
            let places = Places::of(&recipe, &recipe.tasks[0]);
            assert_eq!(matches!(places.prompts[0], Place::Hub(_)), hub, "{places:?}");
            places
        };
        let places = prompts(true);
        let names: Vec<String> = places
            .baselines
            .iter()
            .map(|(category, place)| format!("{category} {}", place.whereabouts()))
            .collect();
        assert_eq!(names.len(), 2);
        assert!(
            names[0].contains(
                "hard_prompt hf://datasets/lmarena-ai/arena-hard-auto/data/arena-hard-v2.0/model_answer/o3"
            ),
            "{names:?}"
        );
        std::fs::create_dir(folder.path().join("arena_hard_v2")).unwrap();
        std::fs::write(folder.path().join("arena_hard_v2/question.jsonl"), "").unwrap();
        prompts(false);
    }

    #[test]
    fn all_usual_places_on_the_hub_are_names_of_files() {
        let kinds = [
            TaskKind::Xstest,
            TaskKind::OrBench,
            TaskKind::Jailbreakbench,
            TaskKind::SimpleSafetyTests,
            TaskKind::Wildjailbreak,
            TaskKind::Humaneval,
            TaskKind::Livecodebench,
            TaskKind::Aime,
            TaskKind::Gpqa,
            TaskKind::MmluPro,
            TaskKind::ArenaHard,
        ];
        let usual = kinds
            .iter()
            .flat_map(|kind| kind.usual_files())
            .map(|(_, hub)| *hub);
        for hub in usual.chain(USUAL_BASELINES.iter().map(|(.., hub)| *hub)) {
            DatasetFile::parse(&format!("{SCHEME}{hub}")).unwrap();
        }
    }

    #[test]
    fn only_the_baselines_of_the_groups_are_wanted() {
        let text = format!("{ARENA}groups = [\"creative_writing\"]\n");
        let recipe = recipe(Path::new("nowhere"), &text);
        let places = Places::of(&recipe, &recipe.tasks[0]);
        let categories: Vec<&str> = places
            .baselines
            .iter()
            .map(|(category, _)| category.as_str())
            .collect();
        assert_eq!(categories, ["creative_writing"]);
    }

    #[test]
    fn a_file_on_the_hub_is_named_without_its_place_on_this_machine() {
        let task =
            "[[task]]\nname = \"t\"\nkind = \"aime\"\ndata = [\"hf://datasets/no/such@v1/a/test.jsonl\"]";
        let recipe = recipe(Path::new("nowhere"), task);
        let places = Places::of(&recipe, &recipe.tasks[0]);
        let place = &places.prompts[0];
        assert_eq!(place.at_hand(), None);
        assert_eq!(place.file("/cache/x".into()).name, "no/such/a/test.jsonl");
        let said = place.whereabouts();
        assert!(
            said.contains("hf://datasets/no/such@v1/a/test.jsonl, to be fetched from")
                && said.contains("/datasets/no/such"),
            "{said}"
        );
    }
}
