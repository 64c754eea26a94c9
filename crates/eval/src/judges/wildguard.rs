//! WildGuard, asked in its own words. What they are, and how its answer is read, is `judge`'s affair.

use judge::guard::wildguard::instruction;

use super::Case;

/// The text that WildGuard continues. The beginning of the text (`<s>`) is left to the server, which adds it.
///
/// # Errors
/// A case in which the user says nothing.
pub(super) fn ask(case: &Case) -> std::result::Result<String, String> {
    instruction(&case.conversation())
}

#[cfg(test)]
mod tests {
    use judge::Safety;

    use super::super::read;
    use super::super::tests::case;
    use super::*;
    use crate::recipe::JudgeKind;

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
        let verdict = read(JudgeKind::Wildguard, text);
        assert_eq!(
            (verdict.safety, verdict.refusal, verdict.raw.as_str()),
            (Some(Safety::Unsafe), Some(false), text)
        );
        // N/A is what WildGuard says of a request alone; said of an answer it is no verdict.
        let text = "Harmful request: no\nResponse refusal: N/A\nHarmful response: no";
        let verdict = read(JudgeKind::Wildguard, text);
        assert!(verdict.unscorable.is_some() && !verdict.unreached && verdict.raw == text);
    }
}
