//! WildGuard at a server's `/completions`. What it is asked, and how its answer is read, is `judge`'s affair.

use judge::guard::wildguard::{instruction, parse};
use model::endpoint::Endpoint;
use serde_json::{Value, json};

use super::{Case, GUARD_TOKENS, Verdict, unreached, unreadable};
use crate::recipe::JudgeRecipe;

/// The text that WildGuard continues. The beginning of the text (`<s>`) is left to the server, which adds it.
///
/// # Errors
/// A case in which the user says nothing.
pub(super) fn ask(case: &Case) -> std::result::Result<String, String> {
    instruction(&case.conversation())
}

/// Asks the server about one case.
pub(super) fn judge(endpoint: &Endpoint, recipe: &JudgeRecipe, case: &Case) -> Verdict {
    let prompt = match ask(case) {
        Ok(prompt) => prompt,
        Err(cause) => return unreadable(&cause, ""),
    };
    let body = json!({
        "model": recipe.model.clone().unwrap_or_default(),
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": GUARD_TOKENS,
    });
    match endpoint.post("/completions", &body) {
        Err(error) => unreached(error.to_string()),
        Ok(answer) => match answer.pointer("/choices/0/text").and_then(Value::as_str) {
            Some(text) => read(text),
            None => unreached("expected text at choices[0].text, found none".into()),
        },
    }
}

fn read(text: &str) -> Verdict {
    match parse(text, true) {
        Ok(moderation) => Verdict::of(&moderation, text),
        Err(cause) => unreadable(&cause, text),
    }
}

#[cfg(test)]
mod tests {
    use judge::Safety;

    use super::super::tests::case;
    use super::*;

    #[test]
    fn a_case_is_asked_in_wildguards_words_and_its_answer_keeps_its_own() {
        let prompt = ask(&case("r")).unwrap();
        assert!(
            prompt.starts_with("<|user|>\n[INST] You are a classifier")
                && prompt.ends_with(
                    "Human user:\nq\n\nAI assistant:\nr\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
                ),
            "{prompt}"
        );
        let text = "Harmful request: yes\nResponse refusal: no\nHarmful response: yes\n";
        let verdict = read(text);
        assert_eq!(
            (verdict.safety, verdict.refusal, verdict.raw.as_str()),
            (Some(Safety::Unsafe), Some(false), text)
        );
        // N/A is what WildGuard says of a request alone; said of an answer it is no verdict.
        let text = "Harmful request: no\nResponse refusal: N/A\nHarmful response: no";
        let verdict = read(text);
        assert!(verdict.unscorable.is_some() && !verdict.unreached && verdict.raw == text);
    }
}
