//! Rollouts from an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or `saferl serve`.
//!
//! The server renders and samples. vLLM, llama.cpp and `saferl serve` say which tokens they sampled; elsewhere the text is
//! encoded again, which may cut a word at other places than the sampler did. A server that reads another prompt than the
//! trainer's is an error. Old log-probabilities are the trainer's own, since a ratio has to compare like with like.
//!
//! A server samples with the weights that it has. `rollout.push = "vllm-lora"` gives it the adapters after every step, by
//! vLLM's `/load_lora_adapter` under a new name each time, and takes the old ones away; the server must read the run's
//! folder and be started with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::chat::Prompt;
use model::endpoint::Endpoint;
use model::generate::{Completion, FinishReason, Generate, Sampling};
use model::remote::Remote;
use model::tokenizer::Tokenizer;
use serde_json::json;

use crate::error::{Error, Result};
use crate::recipe::{Push, Recipe};

/// A server that samples for a run.
#[derive(Debug)]
pub struct Server {
    remote: Remote,
    tokenizer: Arc<Tokenizer>,
    push: Push,
    /// The name of the adapters that it samples with; none before the first push.
    adapters: Option<String>,
}

impl Server {
    /// The server of a recipe's `[rollout]`, `None` where it names none. Nothing is sent yet.
    ///
    /// # Errors
    /// A key's environment variable that is not there.
    pub fn of(recipe: &Recipe, tokenizer: &Arc<Tokenizer>) -> Result<Option<Self>> {
        let rollout = &recipe.rollout;
        if rollout.url.is_empty() {
            return Ok(None);
        }
        let mut endpoint = Endpoint::new(rollout.url.as_str());
        if !rollout.key_env.is_empty() {
            let key = std::env::var(&rollout.key_env).map_err(|error| Error::Key {
                key: "rollout.key_env".into(),
                expected: "the name of an environment variable that holds the server's key".into(),
                found: format!("`{}`: {error}", rollout.key_env),
            })?;
            endpoint.key = Some(key);
        }
        let name = if rollout.url_model.is_empty() {
            &recipe.model
        } else {
            &rollout.url_model
        };
        Ok(Some(Self {
            remote: Remote {
                exact: true,
                ..Remote::new(endpoint, name.as_str())
            },
            tokenizer: Arc::clone(tokenizer),
            push: rollout.push,
            adapters: None,
        }))
    }

    /// Whether the server is to be given the adapters after a step.
    pub fn takes_adapters(&self) -> bool {
        self.push == Push::VllmLora
    }

    /// Lets the server sample with the adapters in `folder` from now on, under `name`.
    ///
    /// # Errors
    /// A server that does not take them. That it does not give the old ones up is only told in the log.
    pub fn load_adapters(&mut self, name: &str, folder: &Path) -> Result<()> {
        let path = std::path::absolute(folder).map_err(|source| Error::file(folder, source))?;
        let body = json!({ "lora_name": name, "lora_path": path.display().to_string() });
        self.tell("/load_lora_adapter", &body)?;
        name.clone_into(&mut self.remote.model);
        if let Some(old) = self.adapters.replace(name.to_owned())
            && let Err(error) = self.tell("/unload_lora_adapter", &json!({ "lora_name": old }))
        {
            tracing::warn!("{error}");
        }
        Ok(())
    }

    /// Posts to a path that answers in plain words.
    fn tell(&self, path: &str, body: &serde_json::Value) -> Result<()> {
        let Endpoint { url, key, .. } = &self.remote.endpoint;
        let url = format!("{url}{path}");
        let failed = |what: String| Error::Server {
            url: url.clone(),
            what,
        };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_mins(5)))
            .http_status_as_error(false)
            .build()
            .into();
        let mut request = agent.post(&url).content_type("application/json");
        if let Some(key) = key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut answer = request
            .send(body.to_string())
            .map_err(|error| failed(error.to_string()))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        let text: String = text.chars().take(300).collect();
        Err(failed(format!("status {}: `{text}`", answer.status().as_u16())))
    }

    /// The completion with token ids, and without log-probabilities of another model's arithmetic.
    fn with_ids(&self, mut completion: Completion) -> model::Result<Completion> {
        completion.log_probabilities.clear();
        if completion.ids.is_empty() {
            completion.ids = ids(&self.tokenizer, &completion)?;
            return Ok(completion);
        }
        let vocabulary = self.tokenizer.vocabulary();
        if let Some(id) = completion.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(model::Error::Remote {
                url: self.remote.endpoint.url.clone(),
                what: format!("expected token ids below {vocabulary}, found {id}: it serves another model"),
                passing: false,
            });
        }
        // Some servers leave out the token that ends the turn.
        let last = completion.ids.last();
        if completion.finish_reason == FinishReason::Stop
            && last.is_some_and(|last| !self.tokenizer.end_ids().contains(last))
        {
            completion.ids.extend(end(&self.tokenizer));
        }
        Ok(completion)
    }
}

impl Generate for Server {
    fn generate(
        &mut self,
        prompts: &[Prompt],
        count: usize,
        sampling: &Sampling,
    ) -> model::Result<Vec<Vec<Completion>>> {
        let groups = self.remote.generate(prompts, count, sampling)?;
        let group = |group: Vec<Completion>| group.into_iter().map(|answer| self.with_ids(answer)).collect();
        groups.into_iter().map(group).collect()
    }
}

/// The token ids of a completion of which only the text is known: the think block as Qwen3 writes it, the answer, and
/// the token that ends a turn where the model ended it.
fn ids(tokenizer: &Tokenizer, completion: &Completion) -> model::Result<Vec<u32>> {
    let mut ids = Vec::new();
    let content = &completion.content;
    match (
        &completion.thinking,
        tokenizer.id("<think>"),
        tokenizer.id("</think>"),
    ) {
        (Some(thinking), Some(open), Some(close)) => {
            ids.push(open);
            ids.extend(tokenizer.encode_plain(&format!("\n{thinking}\n"))?);
            // Cut off while it thinks, a completion has no content and no end of thinking.
            if !content.is_empty() || completion.finish_reason == FinishReason::Stop {
                ids.push(close);
                ids.extend(tokenizer.encode_plain(&format!("\n\n{content}"))?);
            }
        }
        (Some(thinking), ..) => ids.extend(tokenizer.encode_plain(&format!("{thinking}{content}"))?),
        (None, ..) => ids.extend(tokenizer.encode_plain(content)?),
    }
    if completion.finish_reason == FinishReason::Stop {
        ids.extend(end(tokenizer));
    }
    Ok(ids)
}

/// The token that ends an assistant's turn.
fn end(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer
        .id("<|im_end|>")
        .or_else(|| tokenizer.end_ids().first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        model::seeded::write_tiny(folder.path(), model::config::Family::Qwen3).unwrap();
        let source = model::source::resolve(folder.path().to_str().unwrap(), &mut |_| ()).unwrap();
        Tokenizer::load(&source).unwrap()
    }

    #[test]
    fn text_becomes_the_tokens_that_the_model_would_have_written() {
        let tokenizer = tokenizer();
        let written = |text: &str| tokenizer.encode_control(text).unwrap();
        let ids = |text: &str, reason| ids(&tokenizer, &Completion::from_text(text, reason)).unwrap();
        assert_eq!(ids("Hello", FinishReason::Stop), written("Hello<|im_end|>"));
        assert_eq!(ids("Hello", FinishReason::Length), written("Hello"));
        let thought = "<think>\nhm\n</think>\n\nHello";
        assert_eq!(
            ids(thought, FinishReason::Stop),
            written(&format!("{thought}<|im_end|>"))
        );
        // What only spells a control token stays text.
        assert_ne!(ids("<|im_end|>", FinishReason::Length), written("<|im_end|>"));
    }

    #[test]
    fn ids_that_the_server_says_are_taken_and_the_end_is_added_where_it_is_missing() {
        let mut recipe = Recipe::default();
        recipe.rollout.url = "http://127.0.0.1:1/v1".into();
        let tokenizer = Arc::new(tokenizer());
        let server = Server::of(&recipe, &tokenizer).unwrap().unwrap();
        let end = tokenizer.id("<|im_end|>").unwrap();
        let completion = |ids: &[u32], reason| Completion {
            ids: ids.to_vec(),
            ..Completion::from_text("text", reason)
        };
        for (told, reason, taken) in [
            (&[7, 8][..], FinishReason::Stop, &[7, 8, end][..]),
            (&[7, end], FinishReason::Stop, &[7, end]),
            (&[7, 8], FinishReason::Length, &[7, 8]),
        ] {
            assert_eq!(server.with_ids(completion(told, reason)).unwrap().ids, taken);
        }
        let beyond = tokenizer.vocabulary() as u32;
        let error = server
            .with_ids(completion(&[beyond], FinishReason::Length))
            .unwrap_err();
        assert!(error.to_string().contains("another model"), "{error}");
    }
}
