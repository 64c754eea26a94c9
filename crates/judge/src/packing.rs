//! What goes through one packed pass of the base model: replies beside the prompts that they share.

use std::collections::{HashMap, HashSet};

use crate::pieces::{Key, PromptTokens, Tokens};

/// Rows of one packed pass, prompt and reply tokens together.
const BATCH_ROWS: usize = 2048;

/// Replies to one prompt that go through one pass together.
pub(crate) struct Group<'a> {
    pub(crate) prompt: &'a PromptTokens,
    pub(crate) members: Vec<Member<'a>>,
}

/// The reply of one conversation, where there is one, and the key of its features.
pub(crate) type Member<'a> = (Key, Option<&'a [u32]>);

impl Group<'_> {
    /// Tokens of the prompt and of all its replies.
    pub(crate) fn rows(&self) -> usize {
        self.prompt.ids.len()
            + self
                .members
                .iter()
                .filter_map(|(_, reply)| *reply)
                .map(<[u32]>::len)
                .sum::<usize>()
    }
}

/// The ids that all prompts begin with, none of them of a user's last turn; empty for one prompt.
pub(crate) fn common_beginning<'a>(batch: &[Group<'a>]) -> &'a [u32] {
    let [first, others @ ..] = batch else { return &[] };
    let shared = |length: usize, other: &Group<'_>| {
        let pairs = first.prompt.ids[..length].iter().zip(&other.prompt.ids);
        let alike = pairs.take_while(|(one, other)| one == other).count();
        alike.min(other.prompt.user.start)
    };
    let length = if others.is_empty() {
        0
    } else {
        others.iter().fold(first.prompt.user.start, shared)
    };
    &first.prompt.ids[..length]
}

/// Packs what is wanted into passes of about [`BATCH_ROWS`] rows, the replies of one prompt together, nothing twice.
pub(crate) fn batches<'a>(wanted: &'a [(&'a Tokens, Key)]) -> Vec<Vec<Group<'a>>> {
    let mut order: Vec<&PromptTokens> = Vec::new();
    let mut members: HashMap<&PromptTokens, Vec<Member<'_>>> = HashMap::new();
    let mut seen = HashSet::new();
    for (tokens, key) in wanted {
        if seen.insert(*key) {
            let prompt: &PromptTokens = &tokens.prompt;
            let group = members.entry(prompt).or_insert_with(|| {
                order.push(prompt);
                Vec::new()
            });
            group.push((*key, tokens.reply.as_deref()));
        }
    }
    let mut batches: Vec<Vec<Group<'_>>> = vec![Vec::new()];
    let mut rows = 0;
    for prompt in order {
        let mut open = false;
        for (key, reply) in members.remove(prompt).unwrap_or_default() {
            let length = reply.map_or(0, <[u32]>::len);
            let needed = length + if open { 0 } else { prompt.ids.len() };
            if rows > 0 && rows + needed > BATCH_ROWS {
                batches.push(Vec::new());
                (rows, open) = (0, false);
            }
            let Some(batch) = batches.last_mut() else { continue };
            if !open {
                batch.push(Group {
                    prompt,
                    members: Vec::new(),
                });
                rows += prompt.ids.len();
                open = true;
            }
            if let Some(group) = batch.last_mut() {
                group.members.push((key, reply));
                rows += length;
            }
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pieces::tests::prompt;

    #[test]
    fn batches_hold_each_conversation_once_within_the_budget() {
        let prompts: Vec<_> = (0..3).map(|n| Arc::new(prompt(&[n; 200], 0..1))).collect();
        let tokens: Vec<Tokens> = (0..90)
            .map(|n| Tokens {
                prompt: Arc::clone(&prompts[n % 3]),
                reply: (n >= 3).then(|| vec![n as u32; 100]),
            })
            .collect();
        let mut wanted: Vec<_> = tokens.iter().map(|tokens| (tokens, tokens.key())).collect();
        wanted.push(wanted[5]);
        let batches = batches(&wanted);
        let mut seen = HashSet::new();
        for batch in &batches {
            assert!(batch.iter().map(Group::rows).sum::<usize>() <= BATCH_ROWS);
            for group in batch {
                for (key, reply) in &group.members {
                    assert!(seen.insert(*key));
                    assert_eq!(
                        reply.map_or(group.prompt.ids[0], |ids| ids[0] % 3),
                        group.prompt.ids[0]
                    );
                }
            }
        }
        assert_eq!(seen.len(), 90);
        assert!(batches.len() < 7, "{} passes for 9300 rows", batches.len());
    }
}
