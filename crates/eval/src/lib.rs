//! A model and its prompts into a table: what it answers, how safe that is, and whether it still can do things.
//!
//! - [`ability`]: a held-out set of benign requests, each with a [`check::Check`] by rule;
//! - [`measure`]: a model's replies to held-out prompts, judged and counted;
//! - [`statistics`]: intervals for the counts, and how alike the replies begin.
//!
//! ```
//! use eval::{ability, statistics::Share};
//!
//! let capital = &ability::abilities()[0];
//! assert!(capital.check.passes("The capital of France is Paris."));
//!
//! let share = Share { hits: 8, n: 10 };
//! assert!(share.interval().low > 0.49 && share.interval().high < 0.95);
//! ```

pub mod ability;
pub mod check;
pub mod measure;
pub mod statistics;
mod text;
