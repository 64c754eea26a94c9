//! Replies that a policy learns to write when nobody reads them: the losers a helpfulness head must know.
//!
//! A first try of this recipe ended with every reply being "X is a complex topic that ...": safe, not a refusal, fluent,
//! and useless. Each kind here is made from a prompt, a good reply to it and a good reply to another prompt, by hashes
//! alone, so the same data give the same losers.

use super::number_of;

/// A kind of useless reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing.
    Empty,
    /// A phrase over and over.
    Looping,
    /// A good reply to something else.
    OffTopic,
    /// The prompt again.
    Copied,
    /// An essay on how complex the topic is.
    Evasive,
    /// The request put in other words, as if that were an answer.
    Restated,
    /// Advice that fits every prompt.
    Generic,
    /// The words of a good reply in no order.
    Garbled,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Empty,
        Self::Looping,
        Self::OffTopic,
        Self::Copied,
        Self::Evasive,
        Self::Restated,
        Self::Generic,
        Self::Garbled,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "degenerate/empty",
            Self::Looping => "degenerate/looping",
            Self::OffTopic => "degenerate/off-topic",
            Self::Copied => "degenerate/copied",
            Self::Evasive => "degenerate/evasive",
            Self::Restated => "degenerate/restated",
            Self::Generic => "degenerate/generic",
            Self::Garbled => "degenerate/garbled",
        }
    }
}

/// The reply of this kind to `prompt`, made from a `good` one and one to `other` prompt.
pub fn reply(kind: Kind, prompt: &str, good: &str, other: &str) -> String {
    let seed = number_of(&format!("{}\n{prompt}", kind.name()));
    match kind {
        Kind::Empty => [String::new(), " ".into(), "\n\n".into(), ".".into()][(seed % 4) as usize].clone(),
        Kind::Looping => looping(good, seed),
        Kind::OffTopic => other.to_owned(),
        Kind::Copied => match seed % 3 {
            0 => prompt.to_owned(),
            1 => format!("{prompt}\n\n{prompt}"),
            _ => format!("Sure! {prompt}"),
        },
        Kind::Evasive => compose(
            &topic(prompt),
            &EVASIVE_OPENINGS,
            &EVASIVE_MIDDLES,
            &EVASIVE_ENDINGS,
            seed,
        ),
        Kind::Restated => compose(
            &restatement(prompt),
            &RESTATED_OPENINGS,
            &RESTATED_MIDDLES,
            &RESTATED_ENDINGS,
            seed,
        ),
        Kind::Generic => compose(
            &topic(prompt),
            &GENERIC_OPENINGS,
            &GENERIC_MIDDLES,
            &GENERIC_ENDINGS,
            seed,
        ),
        Kind::Garbled => garbled(good, seed),
    }
}

/// A few words of the good reply again and again, from the start or after a good beginning.
fn looping(good: &str, seed: u64) -> String {
    let words: Vec<_> = good.split_whitespace().take(40).collect();
    let length = words.len().min(3 + (seed % 9) as usize);
    let begin = if seed & 16 == 0 {
        0
    } else {
        (words.len() / 2).min(words.len() - length)
    };
    let phrase = if length == 0 {
        "and so on".to_owned()
    } else {
        words[begin..begin + length].join(" ")
    };
    let times = 60 / phrase.split_whitespace().count().max(1) + 2;
    let before = words[..begin].iter().map(|word| (*word).to_owned());
    before
        .chain(std::iter::repeat_n(phrase, times))
        .collect::<Vec<_>>()
        .join(" ")
}

fn garbled(good: &str, seed: u64) -> String {
    let mut words: Vec<_> = good.split_whitespace().take(90).enumerate().collect();
    words.sort_by_key(|(index, word)| number_of(&format!("{seed} {index} {word}")));
    words
        .into_iter()
        .map(|(_, word)| word)
        .collect::<Vec<_>>()
        .join(" ")
}

/// An opening, two or three middles in an order of their own, perhaps an ending; `{}` stands for the topic.
fn compose(topic: &str, openings: &[&str], middles: &[&str], endings: &[&str], seed: u64) -> String {
    let pick = |texts: &[&str], salt: u64| texts[((seed >> salt) % texts.len() as u64) as usize].to_owned();
    let mut order: Vec<_> = middles.iter().collect();
    order.sort_by_key(|text| number_of(&format!("{seed} {text}")));
    let mut sentences = vec![pick(openings, 3)];
    sentences.extend(
        order
            .into_iter()
            .take(1 + (seed % 3) as usize)
            .map(|text| (*text).to_owned()),
    );
    if seed & 64 == 0 {
        sentences.push(pick(endings, 11));
    }
    let text = sentences.join(" ").replace("{}", topic);
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// What a prompt seems to be about: the last few words of its first sentence, without the small ones at their head.
fn topic(prompt: &str) -> String {
    const SMALL: [&str; 22] = [
        "a", "an", "the", "of", "to", "in", "on", "for", "and", "or", "is", "are", "how", "what", "do", "i",
        "my", "me", "with", "that", "this", "about",
    ];
    let sentence = prompt
        .split(['.', '?', '!', '\n', ':'])
        .find(|part| !part.trim().is_empty())
        .unwrap_or("this");
    let words: Vec<_> = sentence.split_whitespace().collect();
    let tail = &words[words.len().saturating_sub(4)..];
    let skipped = tail
        .iter()
        .take_while(|word| SMALL.contains(&word.to_lowercase().as_str()))
        .count();
    let topic = tail[skipped..].join(" ");
    if topic.is_empty() {
        "this topic".into()
    } else {
        topic
    }
}

fn restatement(prompt: &str) -> String {
    let line = prompt
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("this");
    let words: Vec<_> = line
        .trim_end_matches(['.', '?', '!'])
        .split_whitespace()
        .take(25)
        .collect();
    let text = words.join(" ");
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_lowercase().chain(letters).collect()
    })
}

const EVASIVE_OPENINGS: [&str; 10] = [
    "{} is a complex topic that has been discussed for many years.",
    "{} is a multifaceted subject that touches many areas of life.",
    "The question of {} is a complex one, with many sides to it.",
    "{} has long been a matter of debate among experts and ordinary people alike.",
    "When we think about {}, we find that there are no simple answers.",
    "{} is an important and sensitive issue that requires careful thought.",
    "{} is a concept that has evolved over time and continues to shape our world.",
    "There are many perspectives on {}, and each of them deserves respect.",
    "{} is a broad term that can mean different things to different people.",
    "Understanding {} is a journey that takes time, patience and an open mind.",
];
const EVASIVE_MIDDLES: [&str; 12] = [
    "It is influenced by a variety of factors, including history, culture, and individual experience.",
    "Some people see it in one way, while others see it quite differently.",
    "It is essential to approach the subject with respect and understanding.",
    "There is no single answer that works for everyone.",
    "Over the years, many studies have looked into the matter, with varying results.",
    "It plays a significant role in society and affects people in many ways.",
    "In order to understand it fully, one must consider the context in which it arises.",
    "It involves a range of factors that interact with each other in complicated ways.",
    "It is important to consider both the benefits and the challenges.",
    "Technology and social change have also had a great impact on it.",
    "It can be seen as a reflection of our values and beliefs.",
    "At the same time, it raises questions that go beyond any one field.",
];
const EVASIVE_ENDINGS: [&str; 6] = [
    "Ultimately, it depends on many things, and further discussion is needed.",
    "In conclusion, {} is a topic that deserves our attention and reflection.",
    "Overall, it is a subject worth exploring in more depth.",
    "In the end, everyone has to find a view of their own.",
    "As we move forward, it will remain an important part of our lives.",
    "By keeping an open mind, we can all learn more about it.",
];
const RESTATED_OPENINGS: [&str; 7] = [
    "You would like me to {}.",
    "The request is to {}.",
    "You are asking: {}?",
    "Your message says \"{}\", which is a clear request.",
    "So the question here is: {}?",
    "To begin, let us look at the task, which is to {}.",
    "You have asked about the following: {}.",
];
const RESTATED_MIDDLES: [&str; 8] = [
    "This is a great question, and I am glad that you asked it.",
    "That is something many people would like to know.",
    "To answer it, we need to look at what is being asked and respond to it.",
    "The task is to give a response that does what the request says.",
    "It is a request that can be answered in several ways.",
    "I understand what you need, and I will keep it in mind.",
    "A good answer would address exactly what you have asked for.",
    "Here is my response to what you wrote.",
];
const RESTATED_ENDINGS: [&str; 4] = [
    "I hope that this answers your question.",
    "Please let me know if you need anything else.",
    "That is what you asked for.",
    "Thank you for your question about this.",
];
const GENERIC_OPENINGS: [&str; 7] = [
    "Here are some tips that may help you.",
    "Whatever your goal is, there are a few things to keep in mind.",
    "To be successful, it is best to follow some simple steps.",
    "There are many ways to go about {}.",
    "When it comes to {}, preparation is the key.",
    "I would be happy to help you with {}.",
    "The best approach is to take it one step at a time.",
];
const GENERIC_MIDDLES: [&str; 12] = [
    "First, do your research and gather all the information you need.",
    "Make a plan and set clear goals for yourself.",
    "Consult a professional if you are not sure what to do.",
    "Stay positive and believe in yourself.",
    "Be patient, because good results take time.",
    "Always consider your options carefully before you decide.",
    "Ask friends or family for their opinion and support.",
    "Keep things simple and stay organized.",
    "Take care of yourself and get enough rest.",
    "Be respectful and communicate clearly with everyone involved.",
    "Practice regularly and learn from your mistakes.",
    "Use reliable sources and think critically about what you read.",
];
const GENERIC_ENDINGS: [&str; 5] = [
    "With time and effort, you will reach your goal.",
    "Good luck, and remember to enjoy the process!",
    "Everyone is different, so do what works best for you.",
    "If you follow these steps, you will be well on your way.",
    "Remember that practice makes perfect.",
];

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "Mix flour and water, add yeast and salt, let the dough rise for two hours, then bake it.";

    #[test]
    fn each_kind_is_what_it_says() {
        let prompt = "How do I bake a loaf of bread?";
        let of = |kind| reply(kind, prompt, GOOD, "The capital of France is Paris.");
        assert!(of(Kind::Empty).trim_matches(['.', ' ', '\n']).is_empty());
        assert_eq!(of(Kind::OffTopic), "The capital of France is Paris.");
        assert!(of(Kind::Copied).contains(prompt));
        assert!(
            of(Kind::Evasive).to_lowercase().contains("loaf of bread"),
            "{}",
            of(Kind::Evasive)
        );
        assert!(
            of(Kind::Restated)
                .to_lowercase()
                .contains("how do i bake a loaf of bread")
        );
        let sorted = |text: &str| {
            let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&of(Kind::Garbled)), sorted(GOOD));
        assert_ne!(of(Kind::Garbled), GOOD);
        let looped = of(Kind::Looping);
        let distinct: std::collections::HashSet<_> = looped.split_whitespace().collect();
        assert!(distinct.len() * 2 < looped.split_whitespace().count(), "{looped}");
    }

    #[test]
    fn replies_vary_with_the_prompt_and_not_with_the_call() {
        let prompts: Vec<_> = (0..40)
            .map(|n| format!("Tell me about subject number {n} please."))
            .collect();
        for kind in [Kind::Evasive, Kind::Restated, Kind::Generic] {
            let texts: std::collections::HashSet<_> = prompts
                .iter()
                .map(|prompt| reply(kind, prompt, GOOD, "x"))
                .collect();
            assert!(texts.len() > 30, "{kind:?}: {}", texts.len());
            assert_eq!(
                reply(kind, &prompts[0], GOOD, "x"),
                reply(kind, &prompts[0], GOOD, "x")
            );
        }
        // Odd prompts are no trouble.
        for prompt in ["", "?", "\n", "the"] {
            for kind in Kind::ALL {
                let _ = reply(kind, prompt, "", "");
            }
        }
    }
}
