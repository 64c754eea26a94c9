//! A model and its prompts into a table: what it answers, how safe that is, and whether it still can do things.
//!
//! ```text
//! Recipe --tasks--> Item --Respondent--> reply --Judge, extract, program--> log --results--> table, page
//! ```
//!
//! - [`recipe`]: which models answer which tasks, and who judges; [`tasks`]: published files into items;
//! - [`respondent`]: who answers; [`judges`]: who judges; [`extract`] and [`program`]: what is scored by rule, code in
//!   the [`sandbox`];
//! - [`ability`]: a held-out set of benign requests, each with a [`check::Check`] by rule;
//! - [`measure`]: the same for a model in training, all in one call;
//! - [`statistics`]: intervals, comparisons, agreement.
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
pub mod arena;
pub mod check;
pub mod error;
pub mod extract;
pub mod gate;
pub mod judges;
pub mod log;
pub mod measure;
pub mod page;
pub mod plan;
pub mod program;
pub mod recipe;
pub mod respondent;
pub mod results;
pub mod run;
pub mod sandbox;
pub mod statistics;
pub mod table;
pub mod tasks;
mod text;

pub use error::{Error, Result};
