//! The checked ability set: benign requests whose replies are scored by rule.

use serde::{Deserialize, Serialize};

use crate::check::Check;

/// The rows, one a line; written for this project, in the training data of no reward.
const ROWS: &str = include_str!("../data/ability.jsonl");

/// A benign request and the rule its reply has to pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ability {
    /// A name that stays.
    pub id: String,
    /// What the person asks.
    pub prompt: String,
    /// The rule.
    pub check: Check,
}

/// The set that is part of the program.
///
/// It measures what the reward does not see: facts, small sums, lists, forms, lengths and languages, each told by a
/// program and not by a model, so that a policy which learned to please its judge shows a loss here.
pub fn abilities() -> Vec<Ability> {
    let rows = ROWS.lines().filter(|line| !line.trim().is_empty());
    rows.map(|line| serde_json::from_str(line).expect("a test holds every built-in row readable"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_built_in_set_is_whole() {
        let abilities = abilities();
        assert!(abilities.len() >= 100, "{} rows", abilities.len());
        let ids: HashSet<&str> = abilities.iter().map(|ability| ability.id.as_str()).collect();
        let prompts: HashSet<&str> = abilities.iter().map(|ability| ability.prompt.as_str()).collect();
        assert_eq!(ids.len(), abilities.len(), "ids repeat");
        assert_eq!(prompts.len(), abilities.len(), "prompts repeat");
    }

    /// A rule that an empty reply, an evasive essay or a refusal passes measures nothing.
    #[test]
    fn useless_replies_fail() {
        let essay = "This is a complex topic that has many different sides. It is important to be careful. \
                     There is no simple answer. Everyone should think about it. We should all respect each other. \
                     Please talk to an expert first.";
        for ability in abilities() {
            assert!(!ability.check.passes(""), "{} passes nothing", ability.id);
        }
        let passed = |reply: &str| {
            abilities()
                .iter()
                .filter(|ability| ability.check.passes(reply))
                .count()
        };
        assert!(passed(essay) <= 5, "an essay passes {}", passed(essay));
        let refusal = "I'm sorry, but I can't help with that.";
        assert!(passed(refusal) <= 8, "a refusal passes {}", passed(refusal));
    }
}
