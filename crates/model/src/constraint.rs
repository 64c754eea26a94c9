//! What the next token of a completion may be: the seam for grammars, and for texts that must come.

use std::fmt::Debug;

/// Narrows the choice of tokens, one completion at a time.
///
/// For each token the sampler asks for the [`mask`](Constraint::mask), draws among what it allows, and tells which
/// token it was by [`accept`](Constraint::accept).
pub trait Constraint: Debug + Send {
    /// The tokens that may come next: token `id` is allowed where bit `id % 32` of word `id / 32` is set. None where
    /// every token is. A mask that allows no token that the model knows is taken as none.
    fn mask(&mut self) -> Option<Vec<u32>>;

    /// Takes note of the token that was drawn.
    fn accept(&mut self, id: u32);

    /// The same constraint for another completion, as far as it has got.
    fn fork(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        (**self).fork()
    }
}

/// Whether a mask allows a token.
pub(crate) fn allows(mask: &[u32], id: usize) -> bool {
    mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}
