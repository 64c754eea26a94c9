//! Any chat model that compares two answers, as Arena-Hard does.

use model::chat::Message;

use super::{Case, Verdict};
use crate::extract::pairwise_label;
use crate::recipe::JudgeRecipe;

/// Arena-Hard's question (config/arena-hard-v2.0.yaml): the system message of the category, and both answers.
pub(super) fn ask(recipe: &JudgeRecipe, case: &Case) -> Vec<Message> {
    let prompt = case.messages.last().map_or("", |message| &message.content);
    let (category, baseline, first) = match &case.versus {
        Some(versus) => (
            versus.category.as_str(),
            versus.baseline.as_str(),
            versus.baseline_first,
        ),
        None => ("", "", false),
    };
    let (a, b) = if first {
        (baseline, case.reply.as_str())
    } else {
        (case.reply.as_str(), baseline)
    };
    let text = format!(
        "<|User Prompt|>\n{prompt}\n\n<|The Start of Assistant A's Answer|>\n{a}\n<|The End of Assistant A's Answer|>\n\n\
         <|The Start of Assistant B's Answer|>\n{b}\n<|The End of Assistant B's Answer|>"
    );
    let system = recipe.system.get(category).map(Message::system);
    system.into_iter().chain([Message::user(text)]).collect()
}

/// Reads the last label.
///
/// # Errors
/// An answer without one.
pub(super) fn read(text: &str) -> std::result::Result<Verdict, String> {
    let label = pairwise_label(text).ok_or("expected a verdict such as [[A>B]], found none")?;
    Ok(Verdict {
        label: Some(label.into()),
        ..Verdict::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Versus;
    use super::super::tests::{case, recipe};
    use super::*;

    #[test]
    fn both_orders_put_the_reply_where_it_belongs() {
        let versus = |baseline_first| Case {
            versus: Some(Versus {
                baseline: "base".into(),
                baseline_first,
                category: "hard_prompt".into(),
            }),
            ..case("mine")
        };
        let of = |case: &Case| ask(&recipe("pairwise"), case);
        let first = of(&versus(true));
        assert_eq!(first[0], Message::system("be fair"));
        assert!(
            first[1].content.contains("Assistant A's Answer|>\nbase\n")
                && first[1].content.contains("B's Answer|>\nmine\n")
        );
        let second = of(&versus(false));
        assert!(second[1].content.contains("Assistant A's Answer|>\nmine\n"));
    }
}
