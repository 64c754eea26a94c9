//! Thinking and content of a reply, told apart at the last `</think>`.

use crate::Result;
use crate::tokenizer::Tokenizer;

/// Splits a reply's token ids into thinking and content, without the blank lines that stand between them.
///
/// The thinking ends at the LAST `</think>` token, as Qwen3's model card has it; text that merely spells `</think>`
/// ends nothing. `opened` says that the prompt already ended in `<think>`. A reply cut off while it thinks is all
/// thinking and has no content; an empty think block is no thinking.
pub fn split(tokenizer: &Tokenizer, ids: &[u32], opened: bool) -> Result<(Option<String>, String)> {
    let text = |ids: &[u32]| tokenizer.decode(ids, true);
    let open = tokenizer.id("<think>");
    let close = tokenizer.id("</think>");
    let end = close.and_then(|close| ids.iter().rposition(|&id| id == close));
    let starts_open = open.is_some() && ids.first().copied() == open;
    let (thinking, content) = match end {
        Some(end) => (text(&ids[usize::from(starts_open)..end])?, text(&ids[end + 1..])?),
        None if starts_open || opened => (text(&ids[usize::from(starts_open)..])?, String::new()),
        None => (String::new(), text(ids)?),
    };
    let thinking = thinking.trim_matches('\n');
    let content = if end.is_some() {
        content.trim_start_matches('\n')
    } else {
        &content
    };
    Ok((
        (!thinking.trim().is_empty()).then(|| thinking.to_owned()),
        content.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::small;

    fn split_text(text: &str, opened: bool) -> (Option<String>, String) {
        let tokenizer = small();
        let ids = tokenizer.encode_control(text).unwrap();
        split(&tokenizer, &ids, opened).unwrap()
    }

    #[test]
    fn thinking_ends_at_the_last_close() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            split_text("<think>\nhm\n</think>\n\nyes<|im_end|>", false),
            (some("hm"), "yes".into())
        );
        assert_eq!(
            split_text("<think>a</think>b</think>\n\nc", false),
            (some("a</think>b"), "c".into())
        );
        assert_eq!(
            split_text("hm\n</think>\n\nyes", true),
            (some("hm"), "yes".into())
        );
        assert_eq!(
            split_text("<think>\n\n</think>\n\nyes", false),
            (None, "yes".into())
        );
        assert_eq!(split_text("\nyes\n", false), (None, "\nyes\n".into()));
    }

    #[test]
    fn a_reply_cut_off_while_thinking_has_no_content() {
        assert_eq!(
            split_text("<think>\nhm", false),
            (Some("hm".into()), String::new())
        );
        assert_eq!(split_text("hm", true), (Some("hm".into()), String::new()));
        assert_eq!(split_text("", true), (None, String::new()));
    }

    #[test]
    fn spelling_a_close_ends_nothing() {
        let tokenizer = small();
        let mut ids = tokenizer.encode_control("<think>").unwrap();
        ids.extend(tokenizer.encode_plain("say </think> now").unwrap());
        assert_eq!(
            split(&tokenizer, &ids, false).unwrap(),
            (Some("say </think> now".into()), String::new())
        );
    }
}
