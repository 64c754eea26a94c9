//! Hostile files and requests, those of fuzz/corpus: none may panic, take long, or have more memory than its size
//! justifies; and what each is answered stands in a snapshot, so that somebody reads whether it names the place.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

#[allow(unreachable_pub)]
#[path = "../../../fuzz/src/lib.rs"]
mod targets;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What is measured is the process, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What reading anything may take, in bytes, and how many times its size beyond that. A list of bytes in a GGUF header
/// becomes 32 times its size, as each is a value that says what it is.
const MOST: usize = 4 << 20;
const MOST_TIMES: usize = 64;
/// What a template may, also one in a GGUF file: its fuel lets it write half of this, and copies of it are made.
const MOST_OF_TEMPLATES: usize = 64 << 20;
/// What the library of regular expressions lets a pattern take.
const MOST_OF_PATTERNS: usize = 32 << 20;
/// Far more than any takes.
const SLOW: Duration = Duration::from_secs(20);

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(folder).expect("a corpus");
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(path).expect("a file"))
    };
    files.map(read).collect()
}

/// The first words of a message, and the last.
fn short(message: &str) -> String {
    let letters: Vec<char> = message.chars().collect();
    if letters.len() <= 300 {
        return message.to_owned();
    }
    let ends = [&letters[..200], &letters[letters.len() - 80..]];
    ends.map(|end| end.iter().collect::<String>()).join(" … ")
}

#[test]
fn attacks_are_answered_in_their_place() {
    let _alone = ALONE.lock();
    // A panic's backtrace takes more memory than most of what is measured here.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let mut answers = String::new();
    let mut faults = Vec::new();
    for (target, read) in targets::TARGETS {
        let attacks = corpus(target);
        // What is made once and kept.
        let _ = read(b"");
        for (name, bytes) in attacks {
            // With --nocapture, the last one is what ended the process.
            eprintln!("{target}/{name}");
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            let start = Instant::now();
            let outcome = std::panic::catch_unwind(|| read(&bytes));
            let (taken, seconds) = (MEMORY.peak_usage().saturating_sub(before), start.elapsed());
            let base = match target {
                "template" | "gguf" => MOST_OF_TEMPLATES,
                "tokenizer" => MOST_OF_PATTERNS,
                _ => MOST,
            };
            if taken > base + MOST_TIMES * bytes.len() {
                faults.push(format!("{target}/{name}: {} bytes took {taken}", bytes.len()));
            }
            if seconds > SLOW {
                faults.push(format!("{target}/{name}: took {seconds:?}"));
            }
            let answer = match outcome {
                Ok(Ok(())) => "fine".to_owned(),
                Ok(Err(message)) => short(&message),
                Err(_) => {
                    faults.push(format!("{target}/{name}: panicked"));
                    continue;
                }
            };
            answers += &format!("{target}/{name}: {answer}\n");
        }
    }
    std::panic::set_hook(hook);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    insta::assert_snapshot!("attacks", answers);
}

/// A file that ends early, and one of which a byte is another, at every place of those that are whole.
#[test]
fn what_is_cut_or_changed_anywhere_does_not_panic() {
    let _alone = ALONE.lock();
    for (target, read) in targets::TARGETS {
        let Some(whole) = corpus(target).remove("whole") else {
            continue;
        };
        for at in 0..whole.len() {
            let _ = read(&whole[..at]);
            for byte in [0x00, 0x22, 0x7F, 0xFF] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = read(&changed);
            }
        }
    }
}
