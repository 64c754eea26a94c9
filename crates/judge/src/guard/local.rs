//! A guard's weights in this process: which guard they are is told by the checkpoint's own configuration.

use std::sync::Arc;

use candle_core::{DType, Device};
use model::config::{Config, Family};
use model::decoder::Decoder;
use model::engine::Engine;
use model::source::Source;
use model::tokenizer::Tokenizer;

use crate::error::Result;
use crate::guard::qwen3guard_stream::StreamGuard;
use crate::guard::{Qwen3Guard, WildGuard};
use crate::judge::Guard;

/// Loads the guard of `source`, with room for `room` tokens of conversations at once: Qwen3Guard-Stream where
/// `architectures` names a guard model, WildGuard where the family is Mistral, else Qwen3Guard-Gen.
///
/// # Errors
/// Files that do not load as that guard.
pub fn load(source: &Source, dtype: DType, device: &Device, room: usize) -> Result<Box<dyn Guard>> {
    let config = Config::load(source)?;
    let architecture = config
        .fields
        .get("architectures")
        .map(ToString::to_string)
        .unwrap_or_default();
    if architecture.contains("ForGuardModel") {
        return Ok(Box::new(StreamGuard::load(source, dtype, device, room)?));
    }
    let tokenizer = Arc::new(Tokenizer::load(source)?);
    let decoder = Decoder::load_for_inference(source, dtype, device)?;
    let generate = Engine::new(decoder, Arc::clone(&tokenizer), room)?;
    Ok(match config.family {
        Family::Mistral => Box::new(WildGuard { generate, tokenizer }),
        _ => Box::new(Qwen3Guard { generate, tokenizer }),
    })
}

#[cfg(test)]
mod tests {
    use model::chat::Message;
    use model::seeded;
    use model::source::resolve;

    use super::*;
    use crate::judge::Conversation;

    /// Seeded weights know no verdict: what they write is garbage, and unscorable.
    #[test]
    fn garbage_of_an_untrained_guard_is_unscorable() {
        for family in [Family::Qwen3, Family::Mistral] {
            let folder = tempfile::tempdir().unwrap();
            seeded::write_tiny(folder.path(), family).unwrap();
            let source = resolve(folder.path().to_str().unwrap(), &mut |_| ()).unwrap();
            let mut guard = load(&source, DType::F32, &Device::Cpu, 2048).unwrap();
            let conversation = |reply: Option<&str>| Conversation {
                messages: vec![Message::user("Hello")],
                reply: reply.map(Into::into),
            };
            for scored in guard.moderate(&[conversation(None), conversation(Some("Hi"))]) {
                assert!(scored.as_result().unwrap_err().contains("expected"), "{family:?}");
            }
        }
    }
}
