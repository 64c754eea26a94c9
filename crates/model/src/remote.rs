//! Generation by any OpenAI-compatible server: vLLM, SGLang, llama.cpp, or `saferl serve`.

use serde_json::{Map, Value, json};

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::chat::{Mode, Prompt};
use crate::endpoint::Endpoint;
use crate::generate::{Completion, FinishReason, Generate, Sampling};
use crate::{Error, Result};

/// A model behind `/chat/completions`.
///
/// The server renders the conversation itself, so a prompt's ids are not sent. A server's own extensions are sent only
/// where they are asked for: `chat_template_kwargs.enable_thinking = false` in [`Mode::NoThink`], `top_k`, `min_p` and
/// `repetition_penalty` where they are on, and those of [`Remote::exact`]. Token ids and log-probabilities are empty
/// unless the server sends them.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The server.
    pub endpoint: Endpoint,
    /// The model's name on the server.
    pub model: String,
    /// Requests that may be under way at once.
    pub concurrency: usize,
    /// Whether samples have to be of the very distribution that the sampling names, as training needs them. Then what is
    /// off is said as well, since servers have defaults of their own (llama.cpp and `saferl serve` a top-k, vLLM the
    /// checkpoint's `generation_config.json`); token ids are asked for, by vLLM's `return_token_ids` and by `logprobs`,
    /// where llama.cpp has them; and a prompt that the server renders otherwise than [`Prompt::ids`] is an error.
    pub exact: bool,
}

impl Remote {
    /// A model with 16 requests at once, whose sampling follows the server's defaults where ours says nothing.
    pub fn new(endpoint: Endpoint, model: impl Into<String>) -> Self {
        Self {
            endpoint,
            model: model.into(),
            concurrency: 16,
            exact: false,
        }
    }

    /// `count` completions of one prompt. A server may give fewer than asked for; then it is asked for the rest. Some refuse
    /// to give many at once, llama.cpp more than it has slots; then they are asked for half as many.
    fn complete(&self, prompt: &Prompt, count: usize, sampling: &Sampling) -> Result<Vec<Completion>> {
        let mut completions = Vec::with_capacity(count);
        let mut most = count;
        while completions.len() < count {
            let asked = most.min(count - completions.len());
            let body = self.body(prompt, asked, completions.len(), sampling)?;
            let answer = match self.endpoint.post("/chat/completions", &body) {
                Err(Error::Remote { passing: false, .. }) if asked > 1 => {
                    most = asked / 2;
                    continue;
                }
                answer => answer?,
            };
            if self.exact {
                self.check_prompt(prompt, &answer)?;
            }
            let choices = answer["choices"].as_array().map_or(&[][..], Vec::as_slice);
            if choices.is_empty() {
                return Err(self.unexpected("at least one of `choices`", &answer));
            }
            for choice in choices.iter().take(asked) {
                completions.push(self.completion(choice)?);
            }
        }
        Ok(completions)
    }

    fn body(&self, prompt: &Prompt, count: usize, already: usize, sampling: &Sampling) -> Result<Value> {
        let messages = serde_json::to_value(&prompt.messages)
            .map_err(|error| Error::Request(format!("messages do not make JSON: {error}")))?;
        // Servers count on from the seed for the later choices; seeds beyond i64 are refused by some.
        let seed = sampling.seed.wrapping_add(already as u64) & (i64::MAX as u64);
        let mut body = Map::from_iter([
            ("model".to_owned(), json!(self.model)),
            ("messages".to_owned(), messages),
            ("n".to_owned(), json!(count)),
            ("max_tokens".to_owned(), json!(sampling.max_new_tokens)),
            ("temperature".to_owned(), json!(sampling.temperature)),
            ("top_p".to_owned(), json!(sampling.top_p)),
            ("seed".to_owned(), json!(seed)),
        ]);
        let mut put = |wanted: bool, key: &str, value: Value| {
            if wanted {
                body.insert(key.to_owned(), value);
            }
        };
        put(
            sampling.presence_penalty != 0.0,
            "presence_penalty",
            json!(sampling.presence_penalty),
        );
        put(
            sampling.frequency_penalty != 0.0,
            "frequency_penalty",
            json!(sampling.frequency_penalty),
        );
        put(
            !sampling.logit_bias.is_empty(),
            "logit_bias",
            json!(sampling.logit_bias),
        );
        put(
            self.exact || sampling.repetition_penalty != 1.0,
            "repetition_penalty",
            json!(sampling.repetition_penalty),
        );
        // -1 is off for every server; 0 is not for SGLang.
        let top_k = i64::try_from(sampling.top_k)
            .ok()
            .filter(|&top_k| top_k > 0)
            .unwrap_or(-1);
        put(self.exact || sampling.top_k > 0, "top_k", json!(top_k));
        put(self.exact || sampling.min_p > 0.0, "min_p", json!(sampling.min_p));
        put(!sampling.stop.is_empty(), "stop", json!(sampling.stop));
        put(self.exact, "return_token_ids", json!(true));
        put(self.exact, "logprobs", json!(true));
        // llama.cpp tells 20 alternatives where it is not told how many, and no token where it is told none.
        put(self.exact, "top_logprobs", json!(1));
        put(
            prompt.mode == Mode::NoThink,
            "chat_template_kwargs",
            json!({"enable_thinking": false}),
        );
        Ok(body.into())
    }

    fn completion(&self, choice: &Value) -> Result<Completion> {
        let message = &choice["message"];
        let finish_reason = match choice["finish_reason"].as_str() {
            Some("stop") => FinishReason::Stop,
            Some("length") => FinishReason::Length,
            _ => return Err(self.unexpected("finish_reason `stop` or `length`", choice)),
        };
        let content = match &message["content"] {
            Value::String(content) => content.as_str(),
            // A reply cut off while it thinks has no content.
            Value::Null if message.is_object() => "",
            _ => return Err(self.unexpected("text in `message.content`", choice)),
        };
        let thinking = ["reasoning_content", "reasoning"]
            .iter()
            .find_map(|key| message[*key].as_str());
        let mut completion = match thinking.filter(|thinking| !thinking.is_empty()) {
            Some(thinking) => Completion {
                thinking: Some(thinking.trim_matches('\n').to_owned()),
                content: content.trim_start_matches('\n').to_owned(),
                ids: Vec::new(),
                log_probabilities: Vec::new(),
                finish_reason,
            },
            // A server without a reasoning parser leaves the thinking in the text.
            None => Completion::from_text(content, finish_reason),
        };
        let tokens = choice["logprobs"]["content"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        completion.log_probabilities = tokens
            .iter()
            .filter_map(|token| Some(token["logprob"].as_f64()? as f32))
            .collect();
        completion.ids = match &choice["token_ids"] {
            Value::Array(ids) => read_ids(ids.iter()),
            _ => read_ids(tokens.iter().map(|token| &token["id"])),
        }
        .unwrap_or_default();
        Ok(completion)
    }

    /// Whether the server read the prompt that the ids stand for: it tells its own, or at least how many they are.
    fn check_prompt(&self, prompt: &Prompt, answer: &Value) -> Result<()> {
        let ours = &prompt.ids;
        let what = match (
            &answer["prompt_token_ids"],
            answer["usage"]["prompt_tokens"].as_u64(),
        ) {
            (Value::Array(theirs), _) if read_ids(theirs.iter()).as_ref() != Some(ours) => {
                format!("{} other ones", theirs.len())
            }
            (Value::Null, Some(theirs)) if theirs != ours.len() as u64 => theirs.to_string(),
            _ => return Ok(()),
        };
        Err(Error::Remote {
            url: format!("{}/chat/completions", self.endpoint.url),
            what: format!(
                "expected a prompt of the {} tokens that the model's own chat template gives, found {what}: the server \
                 has another template or tokenizer",
                ours.len()
            ),
            passing: false,
        })
    }

    fn unexpected(&self, expected: &str, found: &Value) -> Error {
        let found: String = found.to_string().chars().take(300).collect();
        Error::Remote {
            url: format!("{}/chat/completions", self.endpoint.url),
            what: format!("expected {expected}, found `{found}`"),
            passing: false,
        }
    }
}

impl Generate for Remote {
    fn generate(
        &mut self,
        prompts: &[Prompt],
        count: usize,
        sampling: &Sampling,
    ) -> Result<Vec<Vec<Completion>>> {
        sampling.check()?;
        let remote = &*self;
        let next = AtomicUsize::new(0);
        let answers: Mutex<Vec<Option<Result<Vec<Completion>>>>> =
            Mutex::new(std::iter::repeat_with(|| None).take(prompts.len()).collect());
        let work = || {
            while let Some((index, prompt)) = take(&next, prompts) {
                let answer = remote.complete(prompt, count, sampling);
                if answer.is_err() {
                    // The call fails as a whole: the other threads need not go on.
                    next.store(prompts.len(), Ordering::Relaxed);
                }
                if let Ok(mut answers) = answers.lock() {
                    answers[index] = Some(answer);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency.clamp(1, prompts.len().max(1)) {
                scope.spawn(work);
            }
        });
        let answers = answers
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let failed = answers.iter().position(|answer| matches!(answer, Some(Err(_))));
        let mut answers = answers.into_iter();
        if let Some(failed) = failed
            && let Some(Some(Err(error))) = answers.nth(failed)
        {
            return Err(error);
        }
        Ok(answers.flatten().flatten().collect())
    }
}

/// Token ids, if that is what they all are.
fn read_ids<'a>(ids: impl Iterator<Item = &'a Value>) -> Option<Vec<u32>> {
    ids.map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// The next prompt that no thread has taken.
fn take<'a>(next: &AtomicUsize, prompts: &'a [Prompt]) -> Option<(usize, &'a Prompt)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    prompts.get(index).map(|prompt| (index, prompt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Message;
    use crate::endpoint::tests::{Act, stand_in};

    fn prompt(text: &str, mode: Mode) -> Prompt {
        Prompt {
            ids: vec![],
            messages: vec![Message::user(text)],
            mode,
        }
    }

    fn choice(content: &str) -> Value {
        json!({"message": {"role": "assistant", "content": content}, "finish_reason": "stop"})
    }

    #[test]
    fn the_request_says_what_is_asked_for_and_no_more() {
        let (endpoint, bodies) = stand_in(vec![
            Act::Answer(200, json!({"choices": [choice("yes")]}).to_string()),
            Act::Answer(200, json!({"choices": [choice("yes")]}).to_string()),
        ]);
        let mut remote = Remote::new(endpoint, "qwen");
        let plain = Sampling {
            seed: u64::MAX,
            ..Sampling::default()
        };
        remote.generate(&[prompt("hi", Mode::Think)], 1, &plain).unwrap();
        let sampling = Sampling {
            top_k: 20,
            stop: vec!["END".into()],
            ..Sampling::default()
        };
        remote
            .generate(&[prompt("hi", Mode::NoThink)], 1, &sampling)
            .unwrap();
        let bodies = bodies.lock().unwrap();
        assert_eq!(
            bodies[0],
            json!({"model": "qwen", "messages": [{"role": "user", "content": "hi"}], "n": 1, "max_tokens": 256,
                   "temperature": 1.0, "top_p": 1.0, "seed": i64::MAX})
        );
        assert_eq!(
            bodies[1]["chat_template_kwargs"],
            json!({"enable_thinking": false})
        );
        assert_eq!(bodies[1]["top_k"], 20);
        assert_eq!(bodies[1]["stop"], json!(["END"]));
    }

    #[test]
    fn what_is_off_is_said_where_samples_have_to_be_exact() {
        let (endpoint, bodies) = stand_in(vec![Act::Answer(
            200,
            json!({"choices": [choice("yes")]}).to_string(),
        )]);
        let remote = Remote {
            exact: true,
            ..Remote::new(endpoint, "qwen")
        };
        remote
            .complete(&prompt("hi", Mode::Think), 1, &Sampling::default())
            .unwrap();
        let body = &bodies.lock().unwrap()[0];
        for (key, value) in [
            ("top_k", json!(-1)),
            ("min_p", json!(0.0)),
            ("repetition_penalty", json!(1.0)),
            ("return_token_ids", json!(true)),
            ("logprobs", json!(true)),
            ("top_logprobs", json!(1)),
        ] {
            assert_eq!(body[key], value, "{key}");
        }
    }

    #[test]
    fn ids_come_as_vllm_and_as_llama_cpp_tell_them() {
        let mut vllm = choice("yes");
        vllm["token_ids"] = json!([7, 8]);
        let mut llama = choice("yes");
        llama["logprobs"] = json!({"content": [{"id": 9, "token": "y", "logprob": -0.5}, {"id": 10, "token": "es", "logprob": -0.25}]});
        let mut neither = choice("yes");
        neither["logprobs"] = json!({"content": [{"token": "yes", "logprob": -0.5}]});
        let answer = json!({"choices": [vllm, llama, neither]}).to_string();
        let (endpoint, _) = stand_in(vec![Act::Answer(200, answer)]);
        let answers = Remote::new(endpoint, "m")
            .complete(&prompt("hi", Mode::Think), 3, &Sampling::default())
            .unwrap();
        let ids: Vec<_> = answers.iter().map(|answer| answer.ids.as_slice()).collect();
        assert_eq!(ids, [&[7, 8][..], &[9, 10], &[]]);
    }

    #[test]
    fn another_prompt_than_ours_is_an_error() {
        let asked = Prompt {
            ids: vec![1, 2, 3],
            ..prompt("hi", Mode::Think)
        };
        for (more, fits) in [
            (json!({}), true),
            (
                json!({"prompt_token_ids": [1, 2, 3], "usage": {"prompt_tokens": 3}}),
                true,
            ),
            (json!({"usage": {"prompt_tokens": 3}}), true),
            (
                json!({"prompt_token_ids": null, "usage": {"prompt_tokens": 4}}),
                false,
            ),
            (
                json!({"prompt_token_ids": [1, 2, 4], "usage": {"prompt_tokens": 3}}),
                false,
            ),
        ] {
            let mut answer = json!({"choices": [choice("yes")]});
            answer
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let (endpoint, _) = stand_in(vec![Act::Answer(200, answer.to_string())]);
            let remote = Remote {
                exact: true,
                ..Remote::new(endpoint, "m")
            };
            let outcome = remote.complete(&asked, 1, &Sampling::default());
            assert_eq!(outcome.is_ok(), fits, "{more}: {outcome:?}");
        }
    }

    #[test]
    fn answers_come_in_the_order_of_the_prompts() {
        let echo =
            |number: usize| Act::Answer(200, json!({"choices": [choice(&number.to_string())]}).to_string());
        let (endpoint, bodies) = stand_in((0..6).map(echo).collect());
        let mut remote = Remote::new(endpoint, "m");
        remote.concurrency = 3;
        let prompts: Vec<Prompt> = (0..6)
            .map(|number| prompt(&format!("p{number}"), Mode::Think))
            .collect();
        let answers = remote.generate(&prompts, 1, &Sampling::default()).unwrap();
        let bodies = bodies.lock().unwrap();
        for (number, answer) in answers.iter().enumerate() {
            let served: usize = answer[0].content.parse().unwrap();
            assert_eq!(bodies[served]["messages"][0]["content"], format!("p{number}"));
        }
    }

    #[test]
    fn thinking_comes_by_field_or_in_the_text() {
        let by_field = json!({"message": {"content": "\n\nyes", "reasoning_content": "\nhm\n"}, "finish_reason": "stop"});
        let newer = json!({"message": {"content": null, "reasoning": "hm"}, "finish_reason": "length",
                           "logprobs": {"content": [{"token": "h", "logprob": -0.5}]}, "token_ids": [7]});
        let choices = json!([
            by_field,
            newer,
            choice("<think>\nhm\n</think>\n\nyes"),
            choice("yes")
        ]);
        let (endpoint, _) = stand_in(vec![Act::Answer(200, json!({"choices": choices}).to_string())]);
        let answers = Remote::new(endpoint, "m")
            .generate(&[prompt("hi", Mode::Think)], 4, &Sampling::default())
            .unwrap();
        let texts: Vec<_> = answers[0]
            .iter()
            .map(|c| (c.thinking.as_deref(), c.content.as_str()))
            .collect();
        assert_eq!(
            texts,
            [
                (Some("hm"), "yes"),
                (Some("hm"), ""),
                (Some("hm"), "yes"),
                (None, "yes")
            ]
        );
        assert_eq!(answers[0][1].finish_reason, FinishReason::Length);
        assert_eq!(
            (&answers[0][1].ids[..], &answers[0][1].log_probabilities[..]),
            (&[7][..], &[-0.5][..])
        );
    }

    #[test]
    fn a_server_that_gives_fewer_is_asked_again() {
        let one = |text: &str| Act::Answer(200, json!({"choices": [choice(text)]}).to_string());
        let (endpoint, bodies) = stand_in(vec![one("a"), one("b"), one("c")]);
        let answers = Remote::new(endpoint, "m")
            .generate(&[prompt("hi", Mode::Think)], 3, &Sampling::default())
            .unwrap();
        assert_eq!(
            answers[0].iter().map(|c| c.content.as_str()).collect::<String>(),
            "abc"
        );
        let bodies = bodies.lock().unwrap();
        assert_eq!((&bodies[2]["n"], &bodies[2]["seed"]), (&json!(1), &json!(2)));
    }

    #[test]
    fn a_server_that_refuses_many_is_asked_for_half_as_many() {
        let refusal = || Act::Answer(400, json!({"error": "n: at most 2"}).to_string());
        let two = |text: &str| Act::Answer(200, json!({"choices": [choice(text), choice(text)]}).to_string());
        let (endpoint, bodies) = stand_in(vec![refusal(), two("a"), two("b")]);
        let answers = Remote::new(endpoint, "m")
            .generate(&[prompt("hi", Mode::Think)], 4, &Sampling::default())
            .unwrap();
        let texts: Vec<_> = answers[0].iter().map(|c| c.content.as_str()).collect();
        assert_eq!(texts, ["a", "a", "b", "b"]);
        let asked: Vec<_> = bodies
            .lock()
            .unwrap()
            .iter()
            .map(|body| body["n"].clone())
            .collect();
        assert_eq!(asked, [4, 2, 2]);
        // What is wrong for another reason is told at last.
        let (endpoint, _) = stand_in(vec![refusal(), refusal()]);
        let outcome =
            Remote::new(endpoint, "m").generate(&[prompt("hi", Mode::Think)], 2, &Sampling::default());
        assert!(outcome.unwrap_err().to_string().contains("at most 2"));
    }

    #[test]
    fn strange_answers_are_quoted() {
        for (answer, expected) in [
            (json!({"object": "list"}), "expected at least one of `choices`"),
            (
                json!({"choices": [{"message": {"content": "a"}}]}),
                "expected finish_reason",
            ),
            (
                json!({"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}),
                "expected text",
            ),
        ] {
            let (endpoint, _) = stand_in(vec![Act::Answer(200, answer.to_string())]);
            let result =
                Remote::new(endpoint, "m").generate(&[prompt("hi", Mode::Think)], 1, &Sampling::default());
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("/v1/chat/completions") && error.contains(expected),
                "{error}"
            );
        }
    }
}
