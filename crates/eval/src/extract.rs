//! Answers out of replies: a boxed integer, an option's letter, a program, a pairwise verdict.
//!
//! Where a reply gives several answers, the last one counts: that is what it ends on.

/// The integer in the last `\boxed{}`, where there is one and it holds an integer.
///
/// Braces may nest, as in `\boxed{\text{70}}`; dollar signs, blanks, thousands commas and a `\text{}` or `\mathbf{}`
/// round the number do not matter. A boxed word, fraction or decimal is no integer.
pub fn boxed_integer(reply: &str) -> Option<i64> {
    let inside = last_boxed(reply)?;
    let mut text = inside.trim().trim_matches('$').trim();
    while let Some(inner) = text
        .strip_prefix('\\')
        .and_then(|rest| rest.split_once('{'))
        .filter(|(name, _)| matches!(*name, "text" | "mathbf" | "mathrm" | "boldsymbol"))
        .and_then(|(_, rest)| rest.strip_suffix('}'))
    {
        text = inner.trim();
    }
    let text = text.strip_suffix("^\\circ").unwrap_or(text);
    let text = text.trim_end_matches('.');
    let digits: String = text
        .chars()
        .filter(|c| !matches!(c, ',' | ' ' | '\u{202f}'))
        .collect();
    let digits = digits.replace("\\!", "").replace("\\,", "");
    digits.parse().ok()
}

/// What stands in the last `\boxed{...}` that is closed.
fn last_boxed(reply: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let mut end = reply.len();
    while let Some(at) = reply[..end].rfind(OPEN) {
        let inside = &reply[at + OPEN.len()..];
        let mut depth = 1_usize;
        for (place, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(&inside[..place]);
            }
        }
        end = at;
    }
    None
}

/// The letter of the option that a reply chooses, among the first `options` of the alphabet.
///
/// Read are `"answer": "C"` (as the prompt asks), `Answer: C`, `\boxed{C}` and "the answer is C", in any case of the
/// words and with emphasis or brackets round the letter; the last of them counts. Where none stands, a reply that is
/// nothing but a letter is taken.
pub fn letter(reply: &str, options: usize) -> Option<char> {
    let lower = reply.to_ascii_lowercase();
    let mut found: Option<(usize, char)> = None;
    for key in ["answer", "\\boxed{", "choice"] {
        for (at, _) in lower.match_indices(key) {
            if let Some(letter) = letter_behind(&reply[at + key.len()..], key, options)
                && found.is_none_or(|(place, _)| place <= at)
            {
                found = Some((at, letter));
            }
        }
    }
    if let Some((_, letter)) = found {
        return Some(letter);
    }
    let bare = reply.trim().trim_matches(['(', ')', '*', '.', '"', '`']);
    one_letter(bare, options)
}

/// The letter that follows `answer`, over quotes, brackets, a colon and the word "is".
fn letter_behind(rest: &str, key: &str, options: usize) -> Option<char> {
    const DRESS: [char; 12] = [
        '"', '\'', ' ', '*', '(', '[', '{', '$', '`', '\u{201c}', '_', '\n',
    ];
    let mut rest = rest;
    if key != "\\boxed{" {
        rest = rest.trim_start_matches(DRESS);
        let word = |rest: &'_ str| rest.get(..2).is_some_and(|word| word.eq_ignore_ascii_case("is"));
        if let Some(behind) = rest.strip_prefix([':', '=']) {
            rest = behind;
        } else if word(rest) {
            rest = &rest[2..];
            rest = rest.trim_start().strip_prefix(':').unwrap_or(rest);
        } else {
            return None;
        }
    }
    rest = rest.trim_start_matches(DRESS);
    for dress in ["\\text{", "\\mathrm{", "\\textbf{", "\\mathbf{"] {
        rest = rest.strip_prefix(dress).unwrap_or(rest);
    }
    let mut letters = rest.chars();
    let letter = letters.next()?;
    // "Answer: A good start" gives no answer: behind the letter the word has to be over.
    let over = letters
        .next()
        .is_none_or(|next| !next.is_alphanumeric() && next != '\'');
    let sentence = matches!(letter, 'A' | 'I') && goes_on(letters.as_str());
    (over && !sentence)
        .then(|| one_letter(&rest[..letter.len_utf8()], options))
        .flatten()
}

/// Whether lower-case words follow, as they do behind an article or a pronoun.
fn goes_on(rest: &str) -> bool {
    rest.trim_start_matches(' ')
        .starts_with(|c: char| c.is_ascii_lowercase())
}

fn one_letter(text: &str, options: usize) -> Option<char> {
    let mut letters = text.chars();
    let letter = letters.next()?;
    let inside = letter.is_ascii_uppercase() && ((letter as u8 - b'A') as usize) < options;
    (inside && letters.next().is_none()).then_some(letter)
}

/// The program in a reply: the last fenced block that holds `wanted`, else the last fenced block; `None` without fences.
///
/// A fence that is never closed holds the rest of the reply.
pub fn code_block<'a>(reply: &'a str, wanted: Option<&str>) -> Option<&'a str> {
    let mut blocks: Vec<&str> = Vec::new();
    let mut open: Option<usize> = None;
    let mut at = 0;
    for line in reply.split_inclusive('\n') {
        let fence = line.trim_start().starts_with("```");
        match (fence, open) {
            (true, None) => open = Some(at + line.len()),
            (true, Some(start)) => {
                blocks.push(&reply[start..at]);
                open = None;
            }
            _ => {}
        }
        at += line.len();
    }
    if let Some(start) = open {
        blocks.push(&reply[start.min(reply.len())..]);
    }
    let holds = |block: &&&str| wanted.is_none_or(|wanted| block.contains(wanted));
    blocks.iter().rev().find(holds).or(blocks.last()).copied()
}

/// The five verdicts of a pairwise judge, and those written from the other side, as shares won by assistant A.
///
/// The last `[[...]]` made of the letters A and B and the signs `<`, `>` and `=` counts, or else the last `[...]`, in
/// any case: so Arena-Hard reads it.
pub fn pairwise_label(judgement: &str) -> Option<&'static str> {
    const LABELS: [&str; 10] = [
        "A>>B", "A>B", "A=B", "B>A", "B>>A", "A<<B", "A<B", "B=A", "B<A", "B<<A",
    ];
    let upper = judgement.to_ascii_uppercase();
    let label = |open: &str, close: &str| {
        let places: Vec<usize> = upper.match_indices(open).map(|(at, _)| at + open.len()).collect();
        places.into_iter().rev().find_map(|at| {
            let rest = &upper[at..];
            let inside = &rest[..rest.find(close)?];
            let shaped = !inside.is_empty() && inside.chars().all(|c| "AB<>=".contains(c));
            shaped.then(|| inside.to_owned())
        })
    };
    let found = label("[[", "]]").or_else(|| label("[", "]"))?;
    LABELS.into_iter().find(|label| *label == found)
}

/// What a label is worth to assistant A: scores of one game, a strong verdict counting three times.
///
/// After Arena-Hard's `show_result.py` (Apache-2.0), weight 3.
pub fn label_scores(label: &str) -> &'static [f64] {
    match label {
        "A>>B" | "B<<A" => &[1.0, 1.0, 1.0],
        "A>B" | "B<A" => &[1.0],
        "A<<B" | "B>>A" => &[0.0, 0.0, 0.0],
        "A<B" | "B>A" => &[0.0],
        _ => &[0.5],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxed_integers_and_what_only_looks_like_them() {
        let cases = [
            ("so \\boxed{70}.", Some(70)),
            ("\\boxed{1} no: \\boxed{ 588 }", Some(588)),
            ("\\boxed{\\text{16}}", Some(16)),
            ("\\boxed{\\mathbf{ 1,204 }}", Some(1204)),
            ("\\boxed{$117$}", Some(117)),
            ("\\boxed{-3}", Some(-3)),
            ("\\boxed{336^\\circ}", Some(336)),
            ("\\boxed{049}", Some(49)),
            ("\\boxed{\\frac{1}{2}}", None),
            ("\\boxed{3.5}", None),
            ("\\boxed{x = 3}", None),
            ("\\boxed{}", None),
            ("the answer is 70", None),
            // Cut off in the last box: the one before it counts.
            ("\\boxed{12} and then \\boxed{1", Some(12)),
            ("\\boxed", None),
            ("", None),
            // A number no machine integer holds.
            ("\\boxed{99999999999999999999}", None),
        ];
        for (reply, expected) in cases {
            assert_eq!(boxed_integer(reply), expected, "{reply}");
        }
    }

    #[test]
    fn letters_in_all_the_shapes_models_write() {
        let cases = [
            ("{\"answer\": \"C\"}", Some('C')),
            ("\"answer\": \"A\" ... no, \"answer\": \"D\"", Some('D')),
            ("**Answer: B**", Some('B')),
            ("Answer:\n\n(C) because", Some('C')),
            ("The answer is **D**.", Some('D')),
            ("The correct answer is: (B)", Some('B')),
            ("ANSWER: a", None),
            ("so $\\boxed{C}$", Some('C')),
            ("\\boxed{\\text{B}}", Some('B')),
            ("B", Some('B')),
            ("(D).", Some('D')),
            // Prose is no answer.
            ("Answer: A good question deserves care.", None),
            ("Answer: Because of the heat", None),
            ("A is wrong, B is wrong, C is wrong", None),
            ("There is no answer. All of them fail.", None),
            ("answer: E", None),
            ("", None),
            // The last answer counts, whatever its shape.
            ("Answer: A\n... so \\boxed{B}", Some('B')),
            ("\\boxed{B} ... Answer: A", Some('A')),
        ];
        for (reply, expected) in cases {
            assert_eq!(letter(reply, 4), expected, "{reply}");
        }
        assert_eq!(letter("\"answer\": \"J\"", 10), Some('J'));
    }

    #[test]
    fn the_last_fence_with_the_function_counts() {
        let reply = "First:\n```python\ndef f():\n    return 1\n```\nthen\n```python\ndef f():\n    return 2\n```\n\
                     Use it:\n```\nprint(f())\n```\n";
        assert_eq!(
            code_block(reply, Some("def f(")),
            Some("def f():\n    return 2\n")
        );
        assert_eq!(code_block(reply, None), Some("print(f())\n"));
        assert_eq!(
            code_block("```py\ndef f(): pass", Some("def f(")),
            Some("def f(): pass")
        );
        assert_eq!(code_block("```", None), Some(""));
        assert_eq!(code_block("def f(): pass", None), None);
    }

    #[test]
    fn verdicts_are_read_as_arena_hard_reads_them() {
        let cases = [
            ("My final verdict is tie: [[A=B]]", Some("A=B")),
            ("[[A>>B]] ... on reflection [[B>A]]", Some("B>A")),
            ("final: [[b>>a]]", Some("B>>A")),
            ("single brackets [A>B].", Some("A>B")),
            ("[A>B] but [[B>A]]", Some("B>A")),
            ("lists [1] and [[x]] do not count", None),
            ("[[A]]", None),
            ("[[A>>>B]]", None),
            ("[[A>B", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(pairwise_label(text), expected, "{text}");
        }
        let total = |label| label_scores(label).iter().sum::<f64>();
        assert_eq!(
            ["A>>B", "A>B", "A=B", "B>A", "B>>A"].map(total),
            [3.0, 1.0, 0.5, 0.0, 0.0]
        );
        assert_eq!(label_scores("B>>A").len(), 3);
    }
}
