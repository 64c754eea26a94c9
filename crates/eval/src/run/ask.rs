//! Asking a model whatever its logs do not hold yet.

use super::{Bearable, Cell, Event, Host, mode_name, settle};
use crate::error::Result;
use crate::log::{Key, Reply};
use crate::recipe::{ModelRecipe, Recipe};
use crate::respondent::{Request, Respondent};
use crate::tasks::draw;
use model::generate::Sampling;

/// Asks a model whatever its logs do not hold yet.
pub(super) fn ask_model<H: Host>(
    recipe: &Recipe,
    model: &ModelRecipe,
    cells: &mut [Cell],
    host: &mut H,
) -> std::result::Result<(), H::Error> {
    let mut respondent: Option<Respondent> = None;
    let mine = |cell: &&Cell| cell.model.name == model.name;
    let longest = cells.iter().filter(mine).flat_map(|cell| cell.items.iter());
    let longest = longest
        .max_by_key(|item| {
            item.messages
                .iter()
                .map(|message| message.content.len())
                .sum::<usize>()
        })
        .map(|item| {
            item.messages
                .iter()
                .map(|message| message.content.clone() + "\n")
                .collect::<String>()
        });
    let new_tokens = cells.iter().filter(mine);
    let new_tokens = new_tokens
        .map(|cell| recipe.sampling.of(cell.mode, &cell.task.sampling).max_new_tokens)
        .max()
        .unwrap_or(0);
    for cell in cells.iter_mut().filter(|cell| cell.model.name == model.name) {
        let sampling = recipe.sampling.of(cell.mode, &cell.task.sampling);
        let pending: Vec<(Key, Request)> = cell
            .keys()
            .filter(|(_, key)| !cell.log.replies.contains_key(key))
            .map(|(item, key)| {
                let seed = draw(&[
                    &recipe.seed.to_string(),
                    &cell.task.name,
                    &key.0,
                    &key.1.to_string(),
                ]) >> 1;
                let request = Request {
                    messages: item.messages.clone(),
                    mode: cell.mode,
                    sampling: Sampling {
                        seed,
                        ..sampling.clone()
                    },
                };
                (key, request)
            })
            .collect();
        if pending.is_empty() {
            continue;
        }
        if respondent.is_none() {
            respondent = Some(host.model(model, longest.as_deref().unwrap_or_default(), new_tokens)?);
        }
        if let Some(respondent) = &mut respondent {
            ask_cell(recipe, respondent, cell, &pending, host)?;
        }
    }
    Ok(())
}

fn ask_cell<H: Host>(
    recipe: &Recipe,
    respondent: &mut Respondent,
    cell: &mut Cell,
    pending: &[(Key, Request)],
    host: &mut H,
) -> Result<()> {
    let what = format!("{} {} {}", cell.model.name, mode_name(cell.mode), cell.task.name);
    host.hear(Event::Begin {
        what: &what,
        total: pending.len(),
    });
    let requests: Vec<Request> = pending.iter().map(|(_, request)| request.clone()).collect();
    let mut bearable = Bearable::new(recipe, cell);
    let log = &mut cell.log;
    let outcome = respondent.answer(&requests, &mut |index, (answer, seconds)| {
        let key = pending[index].0.clone();
        host.hear(Event::Step);
        match answer {
            Ok(completion) => log.add_reply(
                key,
                Reply {
                    messages: requests[index].messages.clone(),
                    thinking: completion.thinking.filter(|thinking| !thinking.trim().is_empty()),
                    reply: completion.content,
                    finish: completion.finish_reason,
                    tokens: (!completion.ids.is_empty()).then_some(completion.ids.len()),
                    seconds,
                },
            ),
            Err(cause) => {
                log.add_failure(key, cause.clone())?;
                bearable.note(&cause)
            }
        }
    });
    host.hear(Event::End);
    settle(cell, outcome, host)
}
