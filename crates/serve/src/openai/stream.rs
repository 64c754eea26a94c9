//! Server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::error::Result;
use crate::openai::generation::{Generation, Step};

/// What makes events of steps.
pub(crate) trait Writer: Send + 'static {
    /// Events before the first step.
    fn begin(&mut self) -> Vec<Event>;
    /// Events of a step.
    fn step(&mut self, step: Step, generation: &Generation) -> Result<Vec<Event>>;
    /// Events after the last step.
    fn end(&mut self, generation: &Generation) -> Vec<Event>;
    /// The event of a failure, after which nothing follows.
    fn fail(&mut self, error: &crate::Error) -> Event {
        data(&error.body())
    }
}

/// An event that is data alone.
pub(crate) fn data(value: &serde_json::Value) -> Event {
    Event::default().data(value.to_string())
}

enum State {
    Begin,
    Going,
    Over,
}

/// Streams a generation. Where the client goes away, the stream is dropped, and the generation with it.
pub(crate) fn respond<W: Writer>(generation: Generation, writer: W) -> Response {
    let start = (generation, writer, VecDeque::new(), State::Begin);
    let events = stream::unfold(
        start,
        |(mut generation, mut writer, mut ready, mut state)| async move {
            loop {
                if let Some(event) = ready.pop_front() {
                    return Some((Ok::<_, Infallible>(event), (generation, writer, ready, state)));
                }
                let (events, next) = match state {
                    State::Over => return None,
                    State::Begin => (writer.begin(), State::Going),
                    State::Going => advance(&mut generation, &mut writer).await,
                };
                ready.extend(events);
                state = next;
            }
        },
    );
    // Proxies and clients give up on a silent connection; a model may think for long.
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(events).keep_alive(alive).into_response()
}

async fn advance<W: Writer>(generation: &mut Generation, writer: &mut W) -> (Vec<Event>, State) {
    let events = match generation.next().await {
        Ok(Some(step)) => match writer.step(step, generation) {
            Ok(events) => return (events, State::Going),
            Err(error) => vec![writer.fail(&error)],
        },
        Ok(None) => writer.end(generation),
        Err(error) => vec![writer.fail(&error)],
    };
    (events, State::Over)
}
