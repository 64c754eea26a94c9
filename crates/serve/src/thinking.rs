//! A thinking budget, a grammar that begins where the thinking ends, and a tool call that must come.

use std::collections::VecDeque;

use model::constraint::Constraint;

/// Leaves the thinking free for as long as its budget lasts, then closes it, and holds what follows to a grammar.
#[derive(Debug, Clone)]
pub struct AfterThinking {
    /// The token that ends the thinking.
    close: u32,
    /// Tokens of thinking that are left; none where there is no budget.
    left: Option<usize>,
    /// What closes the thinking, the token that ends it included.
    closing: Vec<u32>,
    /// What must come next.
    due: VecDeque<u32>,
    thinking: bool,
    grammar: Option<Box<dyn Constraint>>,
}

impl AfterThinking {
    /// A reply that thinks until the token `close`, or until `budget` tokens are used up and `closing` is forced.
    pub fn new(
        close: u32,
        budget: Option<usize>,
        closing: Vec<u32>,
        grammar: Option<Box<dyn Constraint>>,
    ) -> Self {
        let mut constraint = Self {
            close,
            left: budget,
            closing,
            due: VecDeque::new(),
            thinking: true,
            grammar,
        };
        constraint.close_if_spent();
        constraint
    }

    fn close_if_spent(&mut self) {
        if self.thinking && self.left == Some(0) && self.due.is_empty() {
            self.due.extend(&self.closing);
        }
    }
}

impl Constraint for AfterThinking {
    fn mask(&mut self) -> Option<Vec<u32>> {
        if let Some(&id) = self.due.front() {
            return Some(only(id));
        }
        if self.thinking {
            return None;
        }
        self.grammar.as_mut().and_then(|grammar| grammar.mask())
    }

    fn accept(&mut self, id: u32) {
        let forced = self.due.pop_front().is_some();
        if !self.thinking {
            if !forced && let Some(grammar) = &mut self.grammar {
                grammar.accept(id);
            }
            return;
        }
        self.thinking = id != self.close;
        if !forced {
            self.left = self.left.map(|left| left.saturating_sub(1));
            self.close_if_spent();
        }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// The mask of one token.
pub(crate) fn only(id: u32) -> Vec<u32> {
    let mut mask = vec![0; id as usize / 32 + 1];
    mask[id as usize / 32] = 1 << (id % 32);
    mask
}

/// A tool call and nothing else: what opens it, a grammar for the call itself, what closes it, and the end.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// What must come next.
    due: VecDeque<u32>,
    /// What closes the call, the token that ends the turn included.
    closing: Vec<u32>,
    grammar: Option<Box<dyn Constraint>>,
    end: u32,
}

impl ToolCall {
    /// A call between the tokens `opening` and `closing`, after which `end` ends the turn. Where `grammar` lets only
    /// `end` come, the call is whole.
    pub fn new(opening: Vec<u32>, grammar: Box<dyn Constraint>, mut closing: Vec<u32>, end: u32) -> Self {
        closing.push(end);
        Self {
            due: opening.into(),
            closing,
            grammar: Some(grammar),
            end,
        }
    }
}

impl Constraint for ToolCall {
    fn mask(&mut self) -> Option<Vec<u32>> {
        if self.due.is_empty()
            && let Some(grammar) = &mut self.grammar
        {
            let mask = grammar.mask()?;
            let whole = mask.iter().enumerate().all(|(word, &bits)| {
                let end = if word == self.end as usize / 32 {
                    1 << (self.end % 32)
                } else {
                    0
                };
                bits & !end == 0
            });
            if !whole {
                return Some(mask);
            }
            self.grammar = None;
            self.due.extend(&self.closing);
        }
        self.due.front().copied().map(only)
    }

    fn accept(&mut self, id: u32) {
        if self.due.pop_front().is_none()
            && let Some(grammar) = &mut self.grammar
        {
            grammar.accept(id);
        }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows token 7 alone.
    #[derive(Debug)]
    struct Seven;

    impl Constraint for Seven {
        fn mask(&mut self) -> Option<Vec<u32>> {
            Some(vec![1 << 7])
        }

        fn accept(&mut self, id: u32) {
            assert_eq!(id, 7);
        }

        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(Self)
        }
    }

    /// The tokens that come where a model would go on with token 1 for ever.
    fn follow(mut constraint: AfterThinking, count: usize, own: &[u32]) -> Vec<u32> {
        let mut own = own.iter().copied();
        (0..count)
            .map(|_| {
                let id = match constraint.mask() {
                    Some(mask) => (0..320)
                        .find(|&id| mask[id as usize / 32] >> (id % 32) & 1 == 1)
                        .unwrap(),
                    None => own.next().unwrap_or(1),
                };
                constraint.accept(id);
                id
            })
            .collect()
    }

    #[test]
    fn a_budget_that_is_spent_closes_the_thinking() {
        let budget = |tokens, grammar| AfterThinking::new(260, Some(tokens), vec![10, 260, 10], grammar);
        assert_eq!(follow(budget(2, None), 7, &[]), [1, 1, 10, 260, 10, 1, 1]);
        assert_eq!(
            follow(budget(0, Some(Box::new(Seven))), 5, &[]),
            [10, 260, 10, 7, 7]
        );
        // A model that ends its thinking itself, with budget to spare.
        assert_eq!(
            follow(budget(5, None), 8, &[1, 260, 1, 1, 1, 1, 1, 1]),
            [1, 260, 1, 1, 1, 1, 1, 1]
        );
    }

    #[test]
    fn a_grammar_waits_for_the_end_of_the_thinking() {
        let constraint = AfterThinking::new(260, None, vec![], Some(Box::new(Seven)));
        assert_eq!(follow(constraint, 5, &[3, 4, 260]), [3, 4, 260, 7, 7]);
    }
}
