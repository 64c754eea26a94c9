//! What the checks see in a reply: words, numbers, sentences, list items, languages.

use crate::check::Language;

/// Words: what stands between blanks and holds a letter or a digit.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
        .filter(|word| word.chars().any(char::is_alphanumeric))
}

/// Whether `phrase` stands in `text` as whole words, case and the kind of blank between them aside.
pub(crate) fn contains_phrase(text: &str, phrase: &str) -> bool {
    let normal = |text: &str| {
        text.to_lowercase()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let (text, phrase) = (normal(text), normal(phrase));
    text.match_indices(&phrase).any(|(at, found)| {
        let before = text[..at].chars().next_back();
        let mut after = text[at + found.len()..].chars();
        let next = after.next();
        // "7" is not in "7.5" nor in "1,7": a point or comma between digits joins them.
        let joined = matches!(next, Some('.' | ',')) && after.next().is_some_and(|c| c.is_ascii_digit());
        let digits = phrase.ends_with(|c: char| c.is_ascii_digit());
        let goes_on = next.is_some_and(char::is_alphanumeric) || (digits && joined);
        !goes_on && !before.is_some_and(char::is_alphanumeric)
    })
}

/// The numbers in `text`, in order: those in digits, or, where there are none, those in English words up to 99.
pub(crate) fn numbers(text: &str) -> Vec<f64> {
    let digits = digit_numbers(text);
    if digits.is_empty() {
        word_numbers(text)
    } else {
        digits
    }
}

fn digit_numbers(text: &str) -> Vec<f64> {
    let characters: Vec<char> = text.chars().collect();
    let digit = |at: usize| characters.get(at).is_some_and(char::is_ascii_digit);
    let mut found = Vec::new();
    let mut at = 0;
    while at < characters.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        // A minus is a sign only where no operand stands before it: "3-4" holds 3 and 4, "= -4" holds -4.
        let sign = at > 0
            && matches!(characters[at - 1], '-' | '\u{2212}')
            && (at < 2 || !characters[at - 2].is_alphanumeric());
        let mut number = String::from(if sign { "-" } else { "" });
        while digit(at) || joins_thousands(&characters, at) {
            if characters[at] != ',' {
                number.push(characters[at]);
            }
            at += 1;
        }
        if characters.get(at) == Some(&'.') && digit(at + 1) {
            number.push('.');
            at += 1;
            while digit(at) {
                number.push(characters[at]);
                at += 1;
            }
        }
        found.extend(number.parse::<f64>());
    }
    found
}

/// A comma followed by exactly three digits, as in 1,200.
fn joins_thousands(characters: &[char], at: usize) -> bool {
    let digit = |at: usize| characters.get(at).is_some_and(char::is_ascii_digit);
    characters.get(at) == Some(&',') && (1..=3).all(|step| digit(at + step)) && !digit(at + 4)
}

fn word_numbers(text: &str) -> Vec<f64> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = [
        "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    ];
    let lower = text.to_lowercase();
    let mut found: Vec<f64> = Vec::new();
    let mut open_ten = false;
    for word in lower
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        let small = SMALL.iter().position(|name| *name == word);
        let ten = TENS.iter().position(|name| *name == word);
        match (small, ten, found.last_mut()) {
            (Some(value @ 1..=9), _, Some(last)) if open_ten => *last += value as f64,
            (Some(value), ..) => found.push(value as f64),
            (_, Some(value), _) => found.push((value + 2) as f64 * 10.0),
            _ => {}
        }
        open_ten = ten.is_some();
    }
    found
}

/// How many sentences `text` has; text after the last full stop counts, list numbers and abbreviations do not end one.
pub(crate) fn sentences(text: &str) -> usize {
    text.lines().map(|line| line_sentences(line.trim_start())).sum()
}

fn line_sentences(line: &str) -> usize {
    let rest = marker(line).map_or(line, |(_, rest)| rest);
    let mut count = 0;
    let mut open = false;
    for token in rest.split_whitespace() {
        open |= token.chars().any(char::is_alphanumeric);
        let bare = token.trim_end_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '.' | '!' | '?'));
        let ends = bare.ends_with(['.', '!', '?', '\u{3002}']) && !abbreviation(bare);
        if ends && open {
            count += 1;
            open = false;
        }
    }
    count + usize::from(open)
}

/// `Mr.`, `e.g.`, `U.S.` and single initials: a full stop that does not end a sentence.
fn abbreviation(token: &str) -> bool {
    const KNOWN: [&str; 14] = [
        "mr.", "mrs.", "ms.", "dr.", "st.", "prof.", "vs.", "e.g.", "i.e.", "etc.", "a.m.", "p.m.", "no.",
        "jr.",
    ];
    let token = token.trim_start_matches(|c: char| !c.is_alphanumeric());
    let initials = token.ends_with('.')
        && token != "I."
        && token
            .split_terminator('.')
            .all(|part| part.chars().count() == 1 && part.chars().all(char::is_uppercase));
    initials || KNOWN.contains(&token.to_lowercase().as_str())
}

/// What opens a list item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Bullet,
    Number(usize),
}

/// The list marker at the start of a line without indentation, and what follows it.
fn marker(line: &str) -> Option<(Marker, &str)> {
    if let Some(rest) = line.strip_prefix(['-', '*', '\u{2022}', '\u{2013}', '+', '\u{25e6}']) {
        let item = rest.starts_with(char::is_whitespace) && !rest.trim().is_empty();
        return item.then_some((Marker::Bullet, rest));
    }
    let bare = line.trim_start_matches(['*', '(', '#', ' ']);
    let end = bare.find(|c: char| !c.is_ascii_digit())?;
    let number = bare[..end].parse().ok()?;
    let rest = bare[end..].strip_prefix(['.', ')', ':', '-'])?;
    let rest = rest.trim_start_matches('*');
    let item = !rest.starts_with(|c: char| c.is_ascii_digit()) && !rest.trim().is_empty();
    item.then_some((Marker::Number(number), rest))
}

/// Items of the list in `text`: the numbered lines, or else the bullets of the outermost level, or else an
/// enumeration "1. .. 2. .. 3. .." within a line.
pub(crate) fn list_items(text: &str) -> usize {
    let marked: Vec<(usize, Marker)> = text
        .lines()
        .filter_map(|line| {
            let bare = line.trim_start();
            marker(bare).map(|(marker, _)| (line.len() - bare.len(), marker))
        })
        .collect();
    let numbered = marked
        .iter()
        .filter(|(_, marker)| matches!(marker, Marker::Number(_)))
        .count();
    let outermost = marked.iter().map(|(indent, _)| *indent).min();
    let bullets = marked
        .iter()
        .filter(|(indent, _)| Some(*indent) == outermost)
        .count();
    match (numbered, bullets) {
        (0, 0) | (1, _) => inline_items(text).max(bullets.min(1)),
        (0, bullets) => bullets,
        (numbered, _) => numbered,
    }
}

/// How far "1. a 2. b 3. c" counts.
fn inline_items(text: &str) -> usize {
    let mut next = 1;
    for token in text.split_whitespace() {
        let token = token.trim_start_matches(['(', '*']);
        if token
            .strip_suffix(['.', ')', ':'])
            .is_some_and(|number| number.parse() == Ok(next))
        {
            next += 1;
        }
    }
    next - 1
}

/// How many lines are bullets.
pub(crate) fn bullet_lines(text: &str) -> usize {
    text.lines()
        .filter(|line| matches!(marker(line.trim_start()), Some((Marker::Bullet, _))))
        .count()
}

/// The inside of a Markdown code fence that holds the whole text; the text itself where there is none.
pub(crate) fn strip_fence(text: &str) -> &str {
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    inside
        .and_then(|rest| rest.split_once('\n'))
        .map_or(text, |(_, body)| body.trim())
}

/// How many words of `text` are among the commonest of `language`.
pub(crate) fn language_hits(text: &str, language: Language) -> usize {
    let common: &[&str] = match language {
        Language::En => &[
            "the", "a", "an", "is", "are", "am", "was", "and", "of", "to", "in", "i", "you", "it", "that",
            "my", "for", "with", "this", "be", "have", "on", "how", "what", "we", "they", "very", "your",
            "his", "her", "not",
        ],
        Language::Fr => &[
            "le", "la", "les", "un", "une", "des", "du", "de", "et", "est", "je", "tu", "il", "elle", "nous",
            "vous", "que", "qui", "dans", "pour", "pas", "ne", "sur", "avec", "au", "mon", "ma", "très",
            "suis", "bien", "fait", "c", "l", "d", "j", "n", "merci", "toi", "ce", "cette", "sont", "en",
            "aujourd", "hui",
        ],
        Language::Es => &[
            "el", "la", "los", "las", "un", "una", "de", "del", "y", "es", "que", "en", "por", "para", "con",
            "no", "mi", "tu", "su", "muy", "yo", "está", "estoy", "como", "cómo", "se", "me", "lo", "al",
            "gracias", "bien", "son", "hace", "más", "qué", "estás", "soy", "tú", "nos", "te",
        ],
        Language::De => &[
            "der", "die", "das", "ein", "eine", "und", "ist", "ich", "du", "er", "sie", "es", "wir", "nicht",
            "mit", "zu", "in", "den", "dem", "von", "für", "auf", "mir", "dir", "wie", "gut", "geht",
            "danke", "bin", "auch", "sehr", "im", "sind", "mein", "meine", "heute", "haben", "habe", "kann",
        ],
    };
    text.to_lowercase()
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty() && common.contains(word))
        .count()
}
