//! A conversation's tokens in pieces that the built-in heads can read.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::features::Layout;

/// By which features are remembered.
pub(crate) type Key = [u8; 32];

/// A conversation's token ids.
#[derive(Clone)]
pub(crate) struct Tokens {
    pub(crate) prompt: Arc<PromptTokens>,
    pub(crate) reply: Option<Vec<u32>>,
}

#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PromptTokens {
    pub(crate) ids: Vec<u32>,
    /// Rows of the user's last turn; never empty.
    pub(crate) user: Range<usize>,
}

impl Tokens {
    /// What of the conversation fits the layout's windows, as the heads have learned it: the prompt's end and the reply's
    /// beginning.
    pub(crate) fn usual(&self, layout: &Layout) -> Self {
        let beginning = |ids: &Vec<u32>| ids[..ids.len().min(layout.reply_tokens)].to_vec();
        Self {
            prompt: PromptTokens::window(&self.prompt, self.prompt.ids.len(), layout.prompt_tokens),
            reply: self.reply.as_ref().map(beginning),
        }
    }

    /// The conversation in pieces that fit the layout's windows: the usual one, then the prompt's end with each further
    /// piece of the reply, or where there is no reply each further piece of the user's last turn. A last piece that would
    /// be short begins in the one before it.
    pub(crate) fn pieces(&self, layout: &Layout) -> Vec<Self> {
        let mut pieces = vec![self.usual(layout)];
        if let Some(ids) = &self.reply {
            let (end, window) = (Arc::clone(&pieces[0].prompt), layout.reply_tokens);
            let last = ids.len().saturating_sub(window);
            let starts = (window..last).step_by(window).chain((last > 0).then_some(last));
            pieces.extend(starts.map(|start| Self {
                prompt: Arc::clone(&end),
                reply: Some(ids[start..start + window].to_vec()),
            }));
        } else {
            let (prompt, window) = (&self.prompt, layout.prompt_tokens);
            let first = (prompt.user.start + window).min(prompt.user.end);
            let before = prompt.ids.len().saturating_sub(window);
            let ends = (prompt.user.start + 1..=before).rev().step_by(window);
            pieces.extend(ends.map(|end| Self {
                prompt: PromptTokens::window(prompt, end.max(first), window),
                reply: None,
            }));
        }
        pieces
    }

    /// By which features are remembered.
    pub(crate) fn key(&self) -> Key {
        let mut hash = Sha256::new();
        let user = &self.prompt.user;
        hash.update(
            [user.start, user.end, self.prompt.ids.len()]
                .map(|at| at as u64)
                .map(u64::to_le_bytes)
                .concat(),
        );
        for id in self.prompt.ids.iter().chain(self.reply.iter().flatten()) {
            hash.update(id.to_le_bytes());
        }
        // No id: tells an absent reply from any other.
        hash.update([u8::from(self.reply.is_some())]);
        hash.finalize().into()
    }
}

impl PromptTokens {
    /// The last `window` tokens before `end`.
    fn window(whole: &Arc<Self>, end: usize, window: usize) -> Arc<Self> {
        let start = end.saturating_sub(window);
        if start == 0 && end == whole.ids.len() {
            return Arc::clone(whole);
        }
        let clamp = |at: usize| at.clamp(start, end) - start;
        let user = clamp(whole.user.start)..clamp(whole.user.end);
        let ids = whole.ids[start..end].to_vec();
        Arc::new(Self {
            user: if user.is_empty() {
                ids.len() - 1..ids.len()
            } else {
                user
            },
            ids,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn prompt(ids: &[u32], user: Range<usize>) -> PromptTokens {
        PromptTokens {
            ids: ids.to_vec(),
            user,
        }
    }

    #[test]
    fn a_long_reply_is_read_to_its_end() {
        let starts = |length: u32| -> Vec<u32> {
            let tokens = Tokens {
                prompt: Arc::new(prompt(&[1], 0..1)),
                reply: Some((0..length).collect()),
            };
            let layout = Layout {
                reply_tokens: 96,
                ..Layout::default()
            };
            let pieces = tokens
                .pieces(&layout)
                .into_iter()
                .map(|piece| piece.reply.unwrap());
            pieces
                .map(|ids| {
                    assert_eq!(ids.len(), 96.min(length as usize));
                    assert_eq!(ids.last().unwrap() - ids[0] + 1, ids.len() as u32);
                    ids[0]
                })
                .collect()
        };
        assert_eq!(starts(1), [0]);
        assert_eq!(starts(96), [0]);
        assert_eq!(starts(97), [0, 1]);
        assert_eq!(starts(192), [0, 96]);
        assert_eq!(starts(250), [0, 96, 154]);
    }

    #[test]
    fn a_long_prompt_is_read_to_its_beginning() {
        // Ten tokens of a system message before the user's turn, three after it.
        let pieces = |length: usize, reply: Option<Vec<u32>>| -> Vec<(u32, u32, Range<usize>)> {
            let ids: Vec<u32> = (0..length as u32 + 13).collect();
            let tokens = Tokens {
                prompt: Arc::new(prompt(&ids, 10..10 + length)),
                reply,
            };
            let layout = Layout {
                prompt_tokens: 100,
                ..Layout::default()
            };
            let pieces = tokens.pieces(&layout).into_iter().map(|piece| piece.prompt);
            pieces
                .map(|prompt| {
                    (
                        prompt.ids[0],
                        prompt.ids[prompt.ids.len() - 1],
                        prompt.user.clone(),
                    )
                })
                .collect()
        };
        assert_eq!(pieces(20, None), [(0, 32, 10..30)]);
        assert_eq!(pieces(87, None), [(0, 99, 10..97)]);
        assert_eq!(pieces(97, None), [(10, 109, 0..97)]);
        assert_eq!(pieces(98, None), [(11, 110, 0..97), (8, 107, 2..100)]);
        assert_eq!(
            pieces(250, None),
            [(163, 262, 0..97), (63, 162, 0..100), (10, 109, 0..100)]
        );
        assert_eq!(pieces(250, Some(vec![1])), [(163, 262, 0..97)]);
    }

    #[test]
    fn an_absent_reply_is_not_an_empty_one() {
        let prompt = Arc::new(prompt(&[1, 2], 0..1));
        let of = |reply| {
            Tokens {
                prompt: Arc::clone(&prompt),
                reply,
            }
            .key()
        };
        assert_ne!(of(None), of(Some(vec![])));
        assert_ne!(of(Some(vec![3])), of(Some(vec![4])));
        assert_eq!(of(Some(vec![3])), of(Some(vec![3])));
    }
}
