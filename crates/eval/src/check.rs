//! Checks of a reply by rule, with no model in them: what a reward cannot please by sounding right.

use serde::{Deserialize, Serialize};

use crate::text::{
    bullet_lines, contains_phrase, language_hits, list_items, numbers, sentences, strip_fence, words,
};

/// A rule that a reply passes or fails.
///
/// Words and phrases compare without regard to case and only as whole words: `cat` is not found in `category`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Check {
    /// A list of exactly this many items, numbered or bulleted.
    List {
        /// How many items.
        count: usize,
    },
    /// Every one of these words or phrases stands in the reply.
    Contains {
        /// What must stand there.
        words: Vec<String>,
    },
    /// At least one of these words or phrases stands in the reply.
    Any {
        /// What may stand there.
        words: Vec<String>,
    },
    /// The last number in the reply is this one; number words count where there are no digits.
    Number {
        /// The right answer.
        value: f64,
    },
    /// Between `min` and `max` words.
    Length {
        /// Fewest words.
        min: usize,
        /// Most words.
        max: usize,
    },
    /// The reply begins with this text; quotation marks and emphasis before it do not matter.
    Starts {
        /// The beginning.
        text: String,
    },
    /// The reply ends with this text; quotation marks and emphasis after it do not matter.
    Ends {
        /// The end.
        text: String,
    },
    /// Between `min` and `max` sentences.
    Sentences {
        /// Fewest sentences.
        min: usize,
        /// Most sentences.
        max: usize,
    },
    /// The reply is in this language, told by its commonest words.
    Language {
        /// Which language.
        code: Language,
    },
    /// The reply has this form.
    Format {
        /// Which form.
        name: Form,
    },
    /// There is a reply of at least two words, and none of these words or phrases stands in it.
    Absent {
        /// What must not stand there.
        words: Vec<String>,
    },
}

/// Languages that [`Check::Language`] tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    En,
    /// French.
    Fr,
    /// Spanish.
    Es,
    /// German.
    De,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::En, Self::Fr, Self::Es, Self::De];
}

/// Forms that [`Check::Format`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// One JSON object or array, alone or in a code fence.
    Json,
    /// At least two lines that are bullets.
    Bullets,
    /// Letters, none of them lower case.
    Uppercase,
    /// Letters, none of them upper case.
    Lowercase,
    /// The whole reply in double quotation marks.
    Quoted,
}

/// Marks that may stand round a reply without being part of it.
const QUOTES: &[char] = &['"', '\u{201c}', '\u{201d}', '\u{ab}', '\u{bb}', '*', '_', '`'];

impl Check {
    /// Whether `reply` passes.
    pub fn passes(&self, reply: &str) -> bool {
        let reply = reply.trim();
        match self {
            Self::List { count } => list_items(reply) == *count,
            Self::Contains { words } => words.iter().all(|phrase| contains_phrase(reply, phrase)),
            Self::Any { words } => words.iter().any(|phrase| contains_phrase(reply, phrase)),
            Self::Number { value } => numbers(reply)
                .last()
                .is_some_and(|found| (found - value).abs() < 1e-9),
            Self::Length { min, max } => (*min..=*max).contains(&words(reply).count()),
            Self::Starts { text } => starts(reply, text),
            Self::Ends { text } => {
                let bare = reply.trim_end_matches(QUOTES).to_lowercase();
                reply.to_lowercase().ends_with(&text.to_lowercase()) || bare.ends_with(&text.to_lowercase())
            }
            Self::Sentences { min, max } => (*min..=*max).contains(&sentences(reply)),
            Self::Language { code } => speaks(reply, *code),
            Self::Format { name } => name.fits(reply),
            Self::Absent { words: absent } => {
                words(reply).nth(1).is_some() && !absent.iter().any(|phrase| contains_phrase(reply, phrase))
            }
        }
    }
}

impl Form {
    fn fits(self, reply: &str) -> bool {
        match self {
            Self::Json => serde_json::from_str::<serde_json::Value>(strip_fence(reply))
                .is_ok_and(|value| value.is_object() || value.is_array()),
            Self::Bullets => bullet_lines(reply) >= 2,
            Self::Uppercase => {
                reply.chars().any(char::is_alphabetic) && !reply.chars().any(char::is_lowercase)
            }
            Self::Lowercase => {
                reply.chars().any(char::is_alphabetic) && !reply.chars().any(char::is_uppercase)
            }
            Self::Quoted => {
                let inner = reply
                    .strip_prefix(['"', '\u{201c}'])
                    .and_then(|rest| rest.strip_suffix(['"', '\u{201d}']));
                inner.is_some_and(|text| text.chars().any(char::is_alphabetic))
            }
        }
    }
}

/// Whether `reply` begins with `text` and a word of `text` does not go on in `reply`.
fn starts(reply: &str, text: &str) -> bool {
    let reply = reply.trim_start_matches(QUOTES).to_lowercase();
    let text = text.to_lowercase();
    let Some(rest) = reply.strip_prefix(&text) else {
        return false;
    };
    let open_word = text.ends_with(char::is_alphanumeric);
    !(open_word && rest.starts_with(char::is_alphanumeric))
}

/// At least two common words of the language, a tenth of all words, and more than of any other language.
fn speaks(reply: &str, language: Language) -> bool {
    let total = words(reply).count();
    let hits = language_hits(reply, language);
    let others = Language::ALL.iter().filter(|other| **other != language);
    hits >= 2
        && hits * 10 >= total
        && others
            .map(|other| language_hits(reply, *other))
            .all(|other| other < hits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Check {
        serde_json::from_str(json).unwrap()
    }

    #[track_caller]
    fn judge(json: &str, pass: &[&str], fail: &[&str]) {
        let check = check(json);
        for reply in pass {
            assert!(check.passes(reply), "{check:?} should pass {reply:?}");
        }
        for reply in fail {
            assert!(!check.passes(reply), "{check:?} should fail {reply:?}");
        }
    }

    #[test]
    fn list() {
        judge(
            r#"{"kind":"list","count":3}"#,
            &[
                "1. Apple\n2. Pear\n3. Plum",
                "Here are three fruits:\n\n1) Apple\n2) Pear\n3) Plum\n\nEnjoy!",
                "- red\n- green\n- blue",
                "* red\n* green\n* blue",
                "• red\n• green\n• blue",
                "**1. Apple**\n**2. Pear**\n**3. Plum**",
                "1. Apple\n   - sweet\n   - red\n2. Pear\n   - soft\n3. Plum",
                "1. Apple 2. Pear 3. Plum",
                "1. Apple, 2. Pear, 3. Plum",
                "- one\n  - deeper\n- two\n- three",
            ],
            &[
                "",
                "Apple, pear and plum.",
                "1. Apple\n2. Pear",
                "1. Apple\n2. Pear\n3. Plum\n4. Fig",
                "- red\n- green",
                "It cost 1.5 pounds in 2.0 days and 3.0 hours.",
                "I like apples.\nAnd pears.\nAnd plums.",
            ],
        );
    }

    #[test]
    fn contains_and_any() {
        judge(
            r#"{"kind":"contains","words":["moon","river"]}"#,
            &["The Moon rose over the river.", "River, moon!", "moon-lit river"],
            &[
                "The moon rose.",
                "Moonlight on the river.",
                "",
                "The rivers and the moon",
            ],
        );
        judge(
            r#"{"kind":"any","words":["7","seven"]}"#,
            &["There are seven days.", "7 days", "It is 7."],
            &["There are 17 days.", "seventy", "7.5 days", ""],
        );
        judge(
            r#"{"kind":"any","words":["New York"]}"#,
            &["It is new york city.", "New\nYork"],
            &["New and York", "Newer York"],
        );
    }

    #[test]
    fn number() {
        judge(
            r#"{"kind":"number","value":5}"#,
            &[
                "5",
                "2 + 3 = 5",
                "The answer is 5.",
                "5.0",
                "five",
                "It is five apples.",
                "3 apples and 2 more make **5**!",
                "$5",
            ],
            &["", "6", "2 + 3", "5 and then 10", "15", "-5", "0.5", "fifteen"],
        );
        judge(
            r#"{"kind":"number","value":1200}"#,
            &["1,200", "It is 1200", "1,200.00"],
            &["1, 200", "1.2"],
        );
        judge(
            r#"{"kind":"number","value":-4}"#,
            &["-4", "3 - 7 = -4"],
            &["3-4", "4"],
        );
        judge(
            r#"{"kind":"number","value":25}"#,
            &["twenty-five", "Twenty five"],
            &["twenty"],
        );
    }

    #[test]
    fn length() {
        judge(
            r#"{"kind":"length","min":2,"max":4}"#,
            &["Two words", "It's a well-known fact", "one - two"],
            &["", "One", "There are five words here", "- !"],
        );
    }

    #[test]
    fn starts_and_ends() {
        judge(
            r#"{"kind":"starts","text":"The"}"#,
            &["The birds sing.", "\"The birds\"", "the birds", "  **The** birds"],
            &[
                "There are birds.",
                "A bird. The bird.",
                "",
                "Sure! The birds sing.",
            ],
        );
        judge(
            r#"{"kind":"starts","text":"Once upon a time"}"#,
            &["Once upon a time, a king", "Once upon a time"],
            &["Once upon a timely", "Once there was"],
        );
        judge(
            r#"{"kind":"ends","text":"?"}"#,
            &["What do you eat?", "\"What do you eat?\"", "What?**", "What?  \n"],
            &["What do you eat", "What? Fish.", ""],
        );
        judge(
            r#"{"kind":"ends","text":"the \"end\""}"#,
            &["This is the \"end\""],
            &["This is the end"],
        );
    }

    #[test]
    fn sentence_count() {
        judge(
            r#"{"kind":"sentences","min":2,"max":2}"#,
            &[
                "It rains. We stay.",
                "It rains! Do we stay?",
                "Mr. Smith paid 3.50 today. He left.",
                "He said \"Go.\" Then he left.",
                "It rains... We stay.",
                "It rains.\nWe stay",
                "Dr. J. Brown, e.g. from the U.S. team, ran. She won.",
            ],
            &["It rains.", "", "One. Two. Three.", "It rains, we stay"],
        );
        judge(
            r#"{"kind":"sentences","min":1,"max":1}"#,
            &["What a day", "A dog!"],
            &["", "...", "A dog. A cat."],
        );
    }

    #[test]
    fn language() {
        judge(
            r#"{"kind":"language","code":"fr"}"#,
            &[
                "Il fait beau aujourd'hui et le ciel est bleu.",
                "Je vais bien, merci, et toi ? C'est une belle journée.",
            ],
            &[
                "The weather is nice today.",
                "",
                "El cielo es azul y hace sol.",
                "Bonjour! How are you today, my friend?",
            ],
        );
        judge(
            r#"{"kind":"language","code":"es"}"#,
            &[
                "Mi familia es muy grande y vive en la ciudad.",
                "¡Estoy muy bien, gracias! ¿Y tú cómo estás?",
            ],
            &[
                "My family is very big.",
                "Ma famille est très grande et elle vit dans la ville.",
            ],
        );
        judge(
            r#"{"kind":"language","code":"de"}"#,
            &[
                "Mir geht es gut, danke. Und wie geht es dir?",
                "Ich bin ein Hund und das ist nicht schlecht.",
            ],
            &["I am fine, thank you.", "Guten Tag! I am doing well and you?"],
        );
        judge(
            r#"{"kind":"language","code":"en"}"#,
            &["The cat is on the mat."],
            &["Il fait beau et le ciel est bleu."],
        );
    }

    #[test]
    fn format() {
        judge(
            r#"{"kind":"format","name":"json"}"#,
            &[
                "{\"name\": \"Tom\"}",
                "```json\n{\"name\": \"Tom\"}\n```",
                "[1, 2]",
                "```\n{}\n```",
            ],
            &[
                "name: Tom",
                "",
                "Here: {\"name\": \"Tom\"}",
                "{\"name\": \"Tom\"} Done.",
                "\"Tom\"",
                "{name: Tom}",
            ],
        );
        judge(
            r#"{"kind":"format","name":"bullets"}"#,
            &["- a\n- b", "Flowers:\n* rose\n* lily\n* iris"],
            &["a\nb", "- a", "1. a\n2. b", "", "-a-b"],
        );
        judge(
            r#"{"kind":"format","name":"uppercase"}"#,
            &["GOOD MORNING!"],
            &["Good", "", "123"],
        );
        judge(
            r#"{"kind":"format","name":"lowercase"}"#,
            &["hello world."],
            &["Hello", "", "!"],
        );
        judge(
            r#"{"kind":"format","name":"quoted"}"#,
            &["\"A friend is a gift.\"", "\u{201c}A friend\u{201d}"],
            &["A \"friend\" is", "\"\"", "\"A friend\".", "", "\""],
        );
    }

    #[test]
    fn absent() {
        judge(
            r#"{"kind":"absent","words":["star","stars"]}"#,
            &["The night is dark.", "A starry night"],
            &["", "Night", "The stars shine.", "A STAR shines"],
        );
    }

    #[test]
    fn unknown_kinds_and_keys_are_refused() {
        for json in [
            r#"{"kind":"mood","value":1}"#,
            r#"{"kind":"list","count":3,"extra":1}"#,
            r#"{"kind":"format","name":"poem"}"#,
            r#"{"kind":"language","code":"xx"}"#,
        ] {
            assert!(serde_json::from_str::<Check>(json).is_err(), "{json}");
        }
    }
}
