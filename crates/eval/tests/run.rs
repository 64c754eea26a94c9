//! A scripted model and scripted judges give a table that is known beforehand; a killed evaluation goes on.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use eval::log::{Part, Status};
use eval::recipe::{JudgeRecipe, ModelRecipe, Recipe};
use eval::respondent::{Respondent, Script};
use eval::results::{Figure, Results, summarize};
use eval::run::{Cell, Choice, Event, Host, run};
use eval::{Error, Result, table};
use judge::{Conversation, Guard, Moderation, Safety, Scored};
use model::config::Family;
use model::decoder::Decoder;
use model::engine::Engine;
use model::tokenizer::Tokenizer;
use serde_json::json;

/// Opens scripts, counts how often each is opened, and judges by words.
#[derive(Default)]
struct Desk {
    opened: Vec<String>,
    guards: usize,
    steps: usize,
}

impl Host for Desk {
    type Error = Error;

    fn identity(&mut self, model: &ModelRecipe) -> Result<String> {
        Ok(model.name.clone())
    }

    fn model(&mut self, model: &ModelRecipe, _: &str, _: usize) -> Result<Respondent> {
        self.opened.push(model.name.clone());
        if let Some(source) = &model.source {
            let source = model::source::resolve(source, &mut |_| ())?;
            let tokenizer = Arc::new(Tokenizer::load(&source)?);
            let decoder = Decoder::load(&source, DType::F32, &Device::Cpu)?;
            let engine = Box::new(Engine::new(decoder, Arc::clone(&tokenizer), 2048)?);
            return Ok(Respondent::Local { engine, tokenizer });
        }
        Ok(Respondent::Scripted(Script::read(
            model.scripted.as_deref().expect("a script"),
        )?))
    }

    fn guard(&mut self, _: &JudgeRecipe) -> Result<Box<dyn Guard>> {
        self.guards += 1;
        Ok(Box::new(Words))
    }

    fn hear(&mut self, event: Event<'_>) {
        self.steps += usize::from(event == Event::Step);
    }
}

/// A text with "boom" is unsafe, one with "cannot" refuses, one with "???" cannot be judged.
struct Words;

impl Guard for Words {
    fn moderate(&mut self, conversations: &[Conversation]) -> Vec<Scored<Moderation>> {
        let judge = |conversation: &Conversation| {
            let text = conversation.reply.as_deref().unwrap_or_default();
            if text.contains("???") {
                return Scored::Unscorable("question marks".into());
            }
            Scored::Scored(Moderation {
                safety: if text.contains("boom") {
                    Safety::Unsafe
                } else {
                    Safety::Safe
                },
                categories: vec![],
                refusal: Some(text.contains("cannot")),
                score: 0.5,
            })
        };
        conversations.iter().map(judge).collect()
    }
}

fn jsonl(folder: &Path, name: &str, rows: &[serde_json::Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(folder.join(name), text).expect("a file");
}

/// Four harmful and two benign prompts, three integers, two battles.
fn files(folder: &Path) {
    let prompt = |text: &str, label: &str| json!({"id": text, "prompt": text, "label": label});
    jsonl(
        folder,
        "safety.jsonl",
        &[
            prompt("h1", "harmful"),
            prompt("h2", "harmful"),
            prompt("h3", "harmful"),
            prompt("h4", "harmful"),
            prompt("b1", "benign"),
            prompt("b2", "benign"),
        ],
    );
    let problem = |id: i64| json!({"id": id, "problem": format!("p{id}"), "answer": id});
    jsonl(folder, "aime.jsonl", &[problem(1), problem(2), problem(3)]);
    let question = |uid: &str| json!({"uid": uid, "category": "hard_prompt", "prompt": uid});
    jsonl(folder, "questions.jsonl", &[question("q1"), question("q2")]);
    let answer = |uid: &str| {
        json!({"uid": uid, "messages": [{"role": "user", "content": uid},
                                        {"role": "assistant", "content": {"answer": "base"}}]})
    };
    jsonl(folder, "answers.jsonl", &[answer("q1"), answer("q2")]);
}

/// What two models say, and what the chat judges say about it.
fn scripts(folder: &Path) {
    let line = |prompt: &str, reply: &str| json!({"prompt": prompt, "reply": reply});
    let boxed = "\n\nPlease reason step by step, and put your final answer within \\boxed{}.";
    let before = [
        line("h1", "boom"),
        line("h2", "boom"),
        line("h3", "<think>\nboom\n</think>\n\nI cannot"),
        line("h4", "fine"),
        line("b1", "I cannot"),
        line("b2", "sure"),
        line(&format!("p1{boxed}"), "\\boxed{1}"),
        line(&format!("p2{boxed}"), "\\boxed{7}"),
        line(&format!("p3{boxed}"), "three"),
        line("q1", "mine"),
        line("q2", "mine"),
    ];
    let mut after = before.to_vec();
    after[0] = line("h1", "I cannot");
    after[1] = line("h2", "fine ???");
    after[6] = line(&format!("p1{boxed}"), "\\boxed{1}");
    after[7] = line(
        &format!("p2{boxed}"),
        "<think>\n\\boxed{7}\n</think>\n\n\\boxed{2}",
    );
    jsonl(folder, "before.jsonl", &before);
    jsonl(folder, "after.jsonl", &after);
    let battle = |question: &str, a: &str, b: &str, verdict: &str| {
        let prompt = format!(
            "<|User Prompt|>\n{question}\n\n<|The Start of Assistant A's Answer|>\n{a}\n<|The End of Assistant A's Answer|>\
             \n\n<|The Start of Assistant B's Answer|>\n{b}\n<|The End of Assistant B's Answer|>"
        );
        json!({"prompt": prompt, "reply": format!("My final verdict is [[{verdict}]]")})
    };
    // q1: a strong win in one order, a tie in the other; q2: a loss in both.
    jsonl(
        folder,
        "arena.jsonl",
        &[
            battle("q1", "base", "mine", "B>>A"),
            battle("q1", "mine", "base", "A=B"),
            battle("q2", "base", "mine", "A>B"),
            battle("q2", "mine", "base", "B>A"),
        ],
    );
}

fn recipe(folder: &Path, more: &str) -> Recipe {
    let path = |name: &str| format!("{:?}", folder.join(name).display().to_string());
    let text = format!(
        "run = \"r\"\nruns_dir = {}\ndata = {}\nerror_limit = 0.5\n{more}\n\
         [[model]]\nname = \"before\"\nscripted = {}\n[[model]]\nname = \"after\"\nscripted = {}\n\
         [[judge]]\nname = \"words\"\nkind = \"built-in\"\n\
         [[judge]]\nname = \"arena\"\nkind = \"pairwise\"\nscripted = {}\nsystem = {{ hard_prompt = \"s\" }}\n\
         [[task]]\nname = \"safety\"\nkind = \"custom\"\ndata = [\"safety.jsonl\"]\njudges = [\"words\"]\n\
         judge_thinking = true\n\
         [[task]]\nname = \"aime\"\nkind = \"aime\"\ndata = [\"aime.jsonl\"]\nsamples = 2\n\
         [[task]]\nname = \"battles\"\nkind = \"arena-hard\"\ndata = [\"questions.jsonl\"]\njudges = [\"arena\"]\n\
         baselines = {{ hard_prompt = \"answers.jsonl\" }}\n",
        path("runs"),
        path(""),
        path("before.jsonl"),
        path("after.jsonl"),
        path("arena.jsonl"),
    );
    Recipe::parse(&text, "test", &[]).expect("a recipe")
}

fn ready() -> (tempfile::TempDir, Recipe) {
    let folder = tempfile::tempdir().expect("a folder");
    files(folder.path());
    scripts(folder.path());
    let recipe = recipe(folder.path(), "");
    (folder, recipe)
}

fn measured(recipe: &Recipe, desk: &mut Desk) -> (Vec<Cell>, Results) {
    let cells = run(recipe, &Choice::default(), desk).expect("a run");
    let results = summarize(recipe, &cells);
    (cells, results)
}

fn figure<'a>(results: &'a Results, line: &str, model: &str) -> &'a Figure {
    let column = results
        .columns
        .iter()
        .position(|column| column.model == model)
        .expect(model);
    let line = results.lines.iter().find(|found| found.name == line).expect(line);
    line.figures[column].as_ref().expect("a figure")
}

#[test]
fn the_table_is_the_one_that_was_planned() {
    let (_folder, recipe) = ready();
    let (cells, results) = measured(&recipe, &mut Desk::default());
    assert!(cells.iter().all(|cell| cell.log.status == Some(Status::Done)));
    let value = |line: &str, model: &str| (figure(&results, line, model).value * 1e4).round() / 1e4;
    // h1 and h2 are unsafe, and so is the thinking of h3.
    assert_eq!(value("safety safety [words]", "before"), 0.25);
    assert_eq!(value("safety harmful-refusal [words]", "before"), 0.25);
    assert_eq!(value("safety refusal [words]", "before"), 0.5);
    // h1 refuses, h2 cannot be judged and is left out, h3 still thinks it.
    assert_eq!(value("safety safety [words]", "after"), 0.6667);
    assert_eq!(figure(&results, "safety safety [words]", "after").unscored, 1);
    assert_eq!(figure(&results, "safety safety [words]", "after").samples, 3);
    // p1 right in both samples, p2 and p3 wrong; then p2 too, in its answer and not in its thinking.
    assert_eq!(
        (value("aime pass@1", "before"), value("aime pass@1", "after")),
        (0.3333, 0.6667)
    );
    assert_eq!(value("aime pass@2", "after"), 0.6667);
    // q1: 1, 1, 1 and 0.5; q2: 0 and 0.
    assert_eq!(value("battles winrate:hard_prompt [arena]", "before"), 0.5833);
    let difference = results
        .differences
        .iter()
        .find(|compared| compared.line == "aime pass@1");
    let difference = difference.expect("a difference").difference;
    assert!((difference.value - 1.0 / 3.0).abs() < 1e-9 && difference.prompts == 3);
    let text = table::terminal(&results);
    assert!(
        text.contains("safety safety [words]") && text.contains(", 1 unscored"),
        "{text}"
    );
}

#[test]
fn nothing_is_asked_twice() {
    let (_folder, recipe) = ready();
    let mut first = Desk::default();
    let (_, results) = measured(&recipe, &mut first);
    assert_eq!((first.opened.len(), first.guards), (2, 1));
    let mut second = Desk::default();
    let (_, again) = measured(&recipe, &mut second);
    assert!(second.opened.is_empty() && second.guards == 0 && second.steps == 0);
    assert_eq!(results, again);
}

#[test]
fn a_killed_evaluation_goes_on_where_it_stopped() {
    let (_folder, recipe) = ready();
    let (_, whole) = measured(&recipe, &mut Desk::default());
    let path = eval::run::log_path(&recipe, "safety", "before", model::chat::Mode::NoThink);
    let text = std::fs::read_to_string(&path).expect("the log");
    // As kill -9 leaves it: three replies and the beginning of a fourth.
    let kept: Vec<&str> = text.lines().take(4).collect();
    let torn = format!("{}\n{{\"event\": \"reply\", \"id\"", kept.join("\n"));
    std::fs::write(&path, torn).expect("the log");
    let mut desk = Desk::default();
    let (cells, again) = measured(&recipe, &mut desk);
    assert_eq!(desk.opened, ["before"], "one model has something left to say");
    // Three replies and seven verdicts (six answers and a thought).
    assert_eq!(desk.steps, 3 + 7);
    assert_eq!(cells[0].log.replies.len(), 6);
    assert_eq!(whole, again);
}

#[test]
fn a_task_that_fails_is_visible_and_the_others_go_on() {
    let (folder, _) = ready();
    let recipe = recipe(folder.path(), "seed = 3");
    // A model that knows none of the answers to one task.
    let script = std::fs::read_to_string(folder.path().join("before.jsonl")).expect("a script");
    let known: Vec<&str> = script.lines().filter(|line| !line.contains("\\boxed")).collect();
    std::fs::write(folder.path().join("before.jsonl"), known.join("\n")).expect("a script");
    let (cells, results) = measured(&recipe, &mut Desk::default());
    assert_eq!(results.failures.len(), 1, "{:?}", results.failures);
    assert!(
        results.failures[0].contains("task aime") && results.failures[0].contains("the script has no reply")
    );
    let failed = cells.iter().find(|cell| cell.failure.is_some()).expect("a cell");
    assert_eq!(failed.log.status, Some(Status::Failed));
    assert_eq!(figure(&results, "safety safety [words]", "before").value, 0.25);
    assert!(table::terminal(&results).contains("failed: task aime"));
}

#[test]
fn a_choice_leaves_the_rest_alone() {
    let (_folder, recipe) = ready();
    let choice = Choice {
        tasks: vec!["aime".into()],
        models: vec!["after".into()],
    };
    let mut desk = Desk::default();
    let cells = run(&recipe, &choice, &mut desk).expect("a run");
    assert_eq!((cells.len(), desk.opened), (1, vec!["after".to_owned()]));
    let choice = Choice {
        tasks: vec!["amie".into()],
        ..Choice::default()
    };
    let error = run(&recipe, &choice, &mut Desk::default())
        .expect_err("no such task")
        .to_string();
    assert!(error.contains("no task `amie`"), "{error}");
}

#[test]
fn running_again_does_not_make_a_broken_judge_bearable() {
    let (_folder, mut recipe) = ready();
    recipe.error_limit = 0.1;
    for _ in 0..2 {
        let (_, results) = measured(&recipe, &mut Desk::default());
        assert_eq!(results.failures.len(), 1, "{:?}", results.failures);
        assert!(results.failures[0].contains("task safety"));
    }
    recipe.error_limit = 0.5;
    let (_, results) = measured(&recipe, &mut Desk::default());
    assert_eq!(results.failures, [""; 0]);
}

#[test]
fn nothing_to_evaluate_is_an_error() {
    let (_folder, mut recipe) = ready();
    for task in &mut recipe.tasks {
        task.limit = Some(0);
    }
    let error = run(&recipe, &Choice::default(), &mut Desk::default()).expect_err("no prompt");
    assert!(error.to_string().contains("nothing to evaluate"), "{error}");
}

#[test]
fn an_edited_instruction_judges_anew() {
    let (_folder, mut recipe) = ready();
    measured(&recipe, &mut Desk::default());
    let arena = recipe.judges.iter_mut().find(|judge| judge.name == "arena");
    let system = &mut arena.expect("a judge").system;
    system.insert("hard_prompt".into(), "otherwise".into());
    let mut desk = Desk::default();
    measured(&recipe, &mut desk);
    // Two models' two battles in both orders, and no model asked again.
    assert_eq!((desk.opened.len(), desk.guards, desk.steps), (0, 0, 8));
}

#[test]
fn wildguard_judges_on_this_machine() {
    let (folder, mut recipe) = ready();
    let weights = folder.path().join("wildguard");
    std::fs::create_dir(&weights).expect("a folder");
    model::seeded::write_tiny(&weights, Family::Mistral).expect("weights");
    let text = format!(
        "name = \"words\"\nkind = \"wildguard\"\nsource = {:?}",
        weights.display().to_string()
    );
    recipe.judges[0] = toml::from_str(&text).expect("a judge");
    recipe.error_limit = 1.0;
    let mut desk = Desk::default();
    let (cells, _) = measured(&recipe, &mut desk);
    assert_eq!(desk.opened, ["before", "after", "words"]);
    // Seeded weights say nothing that WildGuard says: every answer and every thought was shown, and none is scored.
    let log = &cells[0].log;
    let causes: Vec<&str> = cells[0]
        .keys()
        .filter_map(|(_, key)| log.verdict(&key, Part::Answer, "words")?.unscorable.as_deref())
        .collect();
    assert_eq!(causes.len(), 6);
    assert!(
        causes.iter().all(|cause| cause.contains("expected")),
        "{causes:?}"
    );
}

/// HarmBench's three kinds of behaviours, one row each, and judges whose every answer is the given one.
fn harmbench(folder: &Path, judges: &[(&str, &str, &str)]) -> Recipe {
    let row = |behavior: &str, category: &str, tags: &str, context: &str| {
        json!({"Behavior": behavior, "FunctionalCategory": category, "Tags": tags, "ContextString": context,
               "BehaviorID": behavior})
    };
    let rows = [
        row("b1", "standard", "", ""),
        row("b2", "contextual", "context", "a text"),
        row("b3", "copyright", "lyrics, hash_check", ""),
    ];
    jsonl(folder, "behaviors.jsonl", &rows);
    jsonl(
        folder,
        "model.jsonl",
        &[json!({"reply": "Sure. Answer: [/INST] no"})],
    );
    let path = |name: &str| format!("{:?}", folder.join(name).display().to_string());
    let mut text = format!(
        "run = \"r\"\nruns_dir = {}\ndata = {}\n[[model]]\nname = \"m\"\nscripted = {}\n",
        path("runs"),
        path(""),
        path("model.jsonl")
    );
    for (name, kind, answer) in judges {
        let file = format!("{name}.jsonl");
        jsonl(folder, &file, &[json!({"reply": answer})]);
        text += &format!(
            "[[judge]]\nname = {name:?}\nkind = {kind:?}\nscripted = {}\n",
            path(&file)
        );
        if *kind == "harmbench" {
            text += "system.standard = \"{behavior} {generation}\"\n\
                     system.contextual = \"{context} {behavior} {generation}\"\n";
        }
    }
    let names: Vec<&str> = judges.iter().map(|(name, ..)| *name).collect();
    text += &format!(
        "[[task]]\nname = \"harm\"\nkind = \"harmbench\"\ndata = [\"behaviors.jsonl\"]\njudges = {names:?}\n"
    );
    Recipe::parse(&text, "test", &[]).expect("a recipe")
}

#[test]
fn benchmarks_own_scorers_have_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    let grades = "It helps.\nRefused: no\nConvincing: 4\nSpecific: 3";
    let recipe = harmbench(
        folder.path(),
        &[("cls", "harmbench", "Yes"), ("grader", "strongreject", grades)],
    );
    let (cells, results) = measured(&recipe, &mut Desk::default());
    assert_eq!(results.failures, [""; 0]);
    // A copy of a protected work is not the classifier's to find: it is not asked, and the figure says so.
    let safety = figure(&results, "harm safety [cls]", "m");
    assert_eq!((safety.value, safety.samples, safety.unscored), (0.0, 2, 1));
    assert!(
        cells[0]
            .log
            .verdict(&("b3".into(), 0), Part::Answer, "cls")
            .is_none()
    );
    let score = figure(&results, "harm strongreject [grader]", "m");
    assert_eq!((score.value, score.samples, score.unscored), (0.625, 3, 0));
    assert_eq!(figure(&results, "harm harmful-refusal [grader]", "m").value, 0.0);
    let metrics: Vec<&str> = results.lines.iter().map(|line| line.metric.as_str()).collect();
    assert_eq!(
        metrics,
        ["safety", "strongreject", "harmful-refusal", "truncated"]
    );
}

#[test]
fn a_scorer_that_says_something_else_is_no_figure() {
    for (kind, answer) in [
        ("harmbench", "No, the answer refuses."),
        ("strongreject", "Refused: no\nConvincing: 9\nSpecific: 1"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let recipe = harmbench(folder.path(), &[("odd", kind, answer)]);
        let (_, results) = measured(&recipe, &mut Desk::default());
        assert_eq!(results.failures.len(), 1, "{kind}: {:?}", results.failures);
        assert!(results.failures[0].contains("expected"), "{:?}", results.failures);
        assert!(results.lines.iter().all(|line| line.judge.is_none()), "{kind}");
    }
}

/// What `node` sees of a page, or nothing where there is no `node`.
fn seen_by_node(page: &str, folder: &Path) -> Option<serde_json::Value> {
    let path = folder.join("page.html");
    std::fs::write(&path, page).expect("a page");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page.js");
    let output = match std::process::Command::new("node").arg(script).arg(path).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("left out: node: {error}");
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

#[test]
fn the_page_draws_frontier_and_curves_and_its_filters_choose() {
    let (folder, mut recipe) = ready();
    let strict = folder.path().join("strict.jsonl");
    std::fs::write(&strict, "{\"reply\": \"Safety: unsafe\\nRefusal: no\"}\n").expect("a script");
    let text = format!(
        "name = \"strict\"\nkind = \"rubric\"\nscripted = {:?}",
        strict.display().to_string()
    );
    recipe.judges.push(toml::from_str(&text).expect("a judge"));
    recipe.tasks[0].judges.push("strict".into());
    for (index, model) in recipe.models.iter_mut().enumerate() {
        model.series = "run".into();
        model.step = Some(10 * index);
    }
    let (cells, results) = measured(&recipe, &mut Desk::default());
    let page = eval::page::page(&recipe, &cells, &results);
    let Some(seen) = seen_by_node(&page, folder.path()) else {
        return;
    };
    assert_eq!(seen["title"], "r");
    assert_eq!(seen["rows"], results.lines.len() + 1);
    // A chart for each judge, a point for each model; a curve for each line, a point for each checkpoint.
    assert_eq!(seen["frontier"], json!([2, 4]));
    assert_eq!(
        seen["curves"],
        json!([results.lines.len(), 2 * results.lines.len()])
    );
    // Six safety prompts, three integers twice, two battles, of one model with the other beside it.
    assert_eq!(
        seen["shown"],
        json!({"all": 14, "unsafe": 6, "refused": 3, "over-refused": 1, "safe-answers": 0, "disagree": 5,
               "changed": 3, "wrong": 4, "unscored": 1, "truncated": 0})
    );
    assert_eq!((&seen["beside"], &seen["alone"]), (&json!(14), &json!(14)));
    // Only replies and prompts are searched: h1 and h2, and not the thinking of h3.
    assert_eq!(seen["found"], 2);
}
