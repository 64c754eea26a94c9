//! The chat template of a checkpoint, rendered as transformers renders it.
//!
//! Templates are Jinja written for Python. `minijinja` runs them here with Python's string methods, `tojson`, `str` and
//! `strftime_now`, Hugging Face's `raise_exception` and whitespace rules, and a limit on the work a template may do.
//! Left out: more than the `default` and `tool_use` templates of a checkpoint, and local time (`strftime_now` is UTC).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use minijinja::machinery::{self, CompiledTemplate, TemplateConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback as python_method;
use serde_json::{Map, Value as Json};

use crate::chat::{Message, Mode};
use crate::control::{Controls, Marks};
use crate::python::{self, JsonStyle};
use crate::toll;
use crate::{Error, Result};

/// Work that every rendering may do, in minijinja's units (about one an instruction), and more for each byte of input.
const FUEL: u64 = 500_000;
const FUEL_PER_BYTE: u64 = 100;
/// Bytes that a value may be of, all that it holds counted as often as it occurs, and more for each byte of input.
const VALUE: usize = 1 << 20;
const VALUE_PER_BYTE: usize = 16;
/// Longest template in bytes; the longest published ones have a tenth of it.
const MOST_SOURCE: usize = 1 << 18;

/// How a conversation is rendered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// The template's `enable_thinking`; `None` leaves it undefined, which for Qwen3 lets the model think.
    pub enable_thinking: Option<bool>,
    /// Whether the text ends where the assistant is to speak.
    pub generation_prompt: bool,
    /// Descriptions of the tools that the model may call: a JSON list, as in the OpenAI chat API.
    pub tools: Option<Json>,
}

impl From<Mode> for RenderOptions {
    /// A prompt for generation: [`Mode::Think`] leaves `enable_thinking` undefined, [`Mode::NoThink`] makes it false.
    fn from(mode: Mode) -> Self {
        let enable_thinking = match mode {
            Mode::Think => None,
            Mode::NoThink => Some(false),
        };
        Self {
            enable_thinking,
            generation_prompt: true,
            tools: None,
        }
    }
}

/// A chat template's source and the names of special tokens that it may print.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatTemplate {
    /// Jinja source of the template.
    pub source: String,
    /// The template used instead where tools are given, if the checkpoint has one.
    pub tool_source: Option<String>,
    /// `bos_token`, `eos_token` and the like, as the template sees them.
    pub special_tokens: Map<String, Json>,
}

impl ChatTemplate {
    /// A template without special tokens.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            tool_source: None,
            special_tokens: Map::new(),
        }
    }

    /// Reads the template of an HF folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`
    /// (whose parsed text is `config`). `None` where the folder has neither.
    pub(crate) fn load(folder: &Path, config: &Map<String, Json>) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        let mut template = if path.exists() {
            Self::new(std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })?)
        } else {
            match config.get("chat_template") {
                None | Some(Json::Null) => return Ok(None),
                Some(Json::String(source)) => Self::new(source.as_str()),
                Some(named) => Self::from_named(named).ok_or_else(|| Error::Format {
                    path: folder.join("tokenizer_config.json"),
                    what: "`chat_template`: expected a text, or a list of {name, template} with one named `default`"
                        .into(),
                })?,
            }
        };
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(token) = token_text(config.get(name)) {
                template.special_tokens.insert(name.into(), token.into());
            }
        }
        Ok(Some(template))
    }

    fn from_named(list: &Json) -> Option<Self> {
        let named = |name: &str| {
            let entry = list.as_array()?.iter().find(|entry| entry["name"] == name)?;
            entry["template"].as_str().map(str::to_owned)
        };
        Some(Self {
            tool_source: named("tool_use"),
            ..Self::new(named("default")?)
        })
    }

    /// The conversation as the template prints it. Whatever of a message could be read as one of `controls` stands
    /// between the [`Marks`] that are returned beside the text.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        controls: &Controls,
    ) -> Result<(String, Marks)> {
        let tools = options.tools.as_ref();
        let source = tools.and(self.tool_source.as_deref()).unwrap_or(&self.source);
        let messages = serde_json::to_value(messages).map_err(|error| Error::Template(error.to_string()))?;
        let input = format!("{source}{messages}{}", tools.unwrap_or(&Json::Null));
        let marks = Marks::choose(&input)?;

        let mut context = self.special_tokens.clone();
        context.insert("messages".into(), mark_messages(messages, marks, controls));
        context.insert(
            "tools".into(),
            tools.map_or(Json::Null, |tools| marks.mark_tools(tools, controls)),
        );
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), options.generation_prompt.into());
        if let Some(thinking) = options.enable_thinking {
            context.insert("enable_thinking".into(), thinking.into());
        }

        if source.len() > MOST_SOURCE {
            let what = format!("expected at most {MOST_SOURCE} bytes, found {}", source.len());
            return Err(Error::Template(what));
        }
        let mut environment = environment(marks);
        environment.set_fuel(Some(FUEL + FUEL_PER_BYTE * input.len() as u64));
        toll::add_filters(&mut environment, VALUE + VALUE_PER_BYTE * input.len());
        let text = run(&environment, &without_generation_tags(source), context);
        Ok((text.map_err(|error| describe(&error))?, marks))
    }
}

/// Renders a template, which pays for each value that it makes.
fn run(
    environment: &Environment,
    source: &str,
    context: Map<String, Json>,
) -> std::result::Result<String, JinjaError> {
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    let config = TemplateConfig {
        syntax_config: syntax,
        default_auto_escape: Arc::new(|_| AutoEscape::None),
    };
    toll::check_constants(source, &config.syntax_config)?;
    let plain = CompiledTemplate::new("chat_template", source, &config)?;
    let instructions = toll::charge(&plain.instructions);
    let blocks = plain.blocks.iter();
    let blocks: BTreeMap<_, _> = blocks.map(|(&name, block)| (name, toll::charge(block))).collect();
    let mut text = String::new();
    let mut output = machinery::make_string_output(&mut text);
    let context = Value::from(Serde(context));
    machinery::eval(
        environment,
        &instructions,
        context,
        &blocks,
        &mut output,
        AutoEscape::None,
    )?;
    Ok(text)
}

/// A special token in `tokenizer_config.json`: a text, or an object with `content`.
pub(crate) fn token_text(token: Option<&Json>) -> Option<&str> {
    token.and_then(|token| token.as_str().or_else(|| token["content"].as_str()))
}

fn describe(error: &JinjaError) -> Error {
    if error.kind() == ErrorKind::OutOfFuel {
        let line = error
            .line()
            .map(|line| format!(" (stopped in line {line})"))
            .unwrap_or_default();
        return Error::Template(format!("rendering does not come to an end{line}"));
    }
    Error::Template(error.to_string())
}

/// Marks every text of the messages except the role, which the program chose.
fn mark_messages(messages: Json, marks: Marks, controls: &Controls) -> Json {
    let mark_field = |(name, value): (String, Json)| {
        let value = if name == "role" {
            value
        } else {
            marks.mark_json(&value, controls)
        };
        (name, value)
    };
    match messages {
        Json::Array(list) => list
            .into_iter()
            .map(|message| mark_messages(message, marks, controls))
            .collect(),
        Json::Object(fields) => fields.into_iter().map(mark_field).collect::<Map<_, _>>().into(),
        other => other,
    }
}

/// Takes away transformers' `{% generation %}` tags, which only serve to find the assistant's tokens in training.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        text.push_str(&tag[..tag.len() - word.len()]);
        rest = word;
        for (name, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
            let after = word
                .strip_prefix(name)
                .filter(|after| after.trim_start_matches([' ', '-', '+']).starts_with("%}"));
            if let Some(after) = after {
                text.push_str(instead);
                rest = after;
            }
        }
    }
    text + rest
}

fn environment(marks: Marks) -> Environment<'static> {
    let mut environment = Environment::new();
    // It prints all that there is, whatever it takes.
    environment.remove_global("debug");
    environment.set_unknown_method_callback(move |state, value, name, arguments| {
        method(marks, state, value, name, arguments)
    });
    environment.set_formatter(|output, state, value| {
        output.write_str(&text(state, value)?)?;
        Ok(())
    });
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Value, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", |format: &str| python::time_now(format));
    environment.add_filter("tojson", |state: &mut State, value: &Value, arguments: Kwargs| {
        python::json(value, &JsonStyle::from_arguments(&arguments)?, room(state))
    });
    environment.add_filter(
        "trim",
        move |state: &mut State, value: &Value, arguments: Rest<Value>| {
            let text = text(state, value)?;
            method(marks, state, &Value::from(text), "strip", &arguments)
        },
    );
    environment.add_filter(
        "split",
        move |state: &mut State, value: &Value, arguments: Rest<Value>| {
            method(marks, state, value, "split", &arguments)
        },
    );
    for name in ["length", "count"] {
        environment.add_filter(name, move |value: &Value| length(marks, value));
    }
    environment.add_filter(
        "format",
        |state: &mut State, text: &Value, values: Rest<ValueOrKwargs>| {
            let weights = values.iter().map(|value| toll::weight(value));
            check_format(state, text, weights.sum())?;
            filters::format(state, text, values)
        },
    );
    environment
}

/// Refuses to format a text with values of `weight` bytes where that may take more than there is room for: minijinja
/// takes fuel when it is done.
fn check_format(state: &State, text: &Value, weight: usize) -> std::result::Result<(), JinjaError> {
    let text = text.as_str().unwrap_or_default();
    let places = text.matches(['%', '{']).count();
    if places.saturating_mul(weight) > room(state) {
        return Err(JinjaError::from(ErrorKind::OutOfFuel));
    }
    Ok(())
}

/// How many bytes a value may be printed into: as many as there is fuel, which pays for each that is kept.
fn room(state: &State) -> usize {
    let fuel = state.fuel_levels().map_or(FUEL, |(_, left)| left);
    usize::try_from(fuel).unwrap_or(usize::MAX)
}

/// A value as Python prints it, at the cost of some fuel for the work.
fn text(state: &State, value: &Value) -> std::result::Result<String, JinjaError> {
    let text = python::text(value, room(state))?;
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(text)
}

fn length(marks: Marks, value: &Value) -> std::result::Result<usize, JinjaError> {
    let length = match value.as_str() {
        Some(text) => Some(marks.remove(text).chars().count()),
        None if value.is_undefined() => Some(0),
        None => value.len(),
    };
    length.ok_or_else(|| {
        JinjaError::new(
            ErrorKind::InvalidOperation,
            format!("a value of type {} has no length", value.kind()),
        )
    })
}

/// Python's methods of strings, lists and dictionaries; those of strings do not see marks.
fn method(
    marks: Marks,
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> std::result::Result<Value, JinjaError> {
    if name == "format" {
        check_format(state, value, arguments.iter().map(toll::weight).sum())?;
    }
    if name == "format" && value.as_str().is_some_and(asks_for_width) {
        let what = "`format`: expected widths and precisions below 10000";
        return Err(JinjaError::new(ErrorKind::InvalidOperation, what));
    }
    let Some(text) = value.as_str().filter(|text| marks.occur_in(text)) else {
        return python_method(state, value, name, arguments);
    };
    let plain = Value::from(marks.remove(text));
    let length = plain.as_str().map_or(0, str::len);
    let arguments: Vec<Value> = arguments.iter().map(|argument| unmark(marks, argument)).collect();
    let mut left_by = |name: &str| {
        let left = python_method(state, &plain, name, &arguments)?;
        Ok::<_, JinjaError>(left.as_str().map_or(0, str::len))
    };
    let range = match name {
        "lstrip" => length - left_by("lstrip")?..length,
        "rstrip" => 0..left_by("rstrip")?,
        "strip" => {
            let end = left_by("rstrip")?;
            (length - left_by("lstrip")?).min(end)..end
        }
        "split" => return split(marks, state, text, &plain, &arguments),
        _ => {
            let answer = python_method(state, &plain, name, &arguments)?;
            // A text that Python's method makes anew carries marks only if it is made of the marked one.
            let is_text = matches!(
                answer.kind(),
                ValueKind::String | ValueKind::Seq | ValueKind::Iterable
            );
            return if is_text {
                python_method(state, value, name, &arguments)
            } else {
                Ok(answer)
            };
        }
    };
    Ok(marks.cut(text, [range]).pop().unwrap_or_default().into())
}

/// Whether a text to format has numbers within braces that would make it long: minijinja takes no fuel for these.
fn asks_for_width(text: &str) -> bool {
    let fields = text
        .split('{')
        .skip(1)
        .filter_map(|field| field.split('}').next());
    let mut numbers = fields.flat_map(|field| field.split(|letter: char| !letter.is_ascii_digit()));
    numbers.any(|number| number.len() > 4)
}

fn unmark(marks: Marks, value: &Value) -> Value {
    value
        .as_str()
        .map_or_else(|| value.clone(), |text| marks.remove(text).into())
}

/// Splits the text without marks and cuts the marked one at the same places.
fn split(
    marks: Marks,
    state: &mut State,
    text: &str,
    plain: &Value,
    arguments: &[Value],
) -> std::result::Result<Value, JinjaError> {
    let parts = python_method(state, plain, "split", arguments)?;
    let whole = plain.as_str().unwrap_or_default();
    let separator = arguments.first().and_then(Value::as_str);
    let mut ranges = Vec::new();
    let mut at = 0;
    for part in parts.try_iter()? {
        let part = part.as_str().unwrap_or_default();
        // Without a separator the parts hold no white space, so the next place that spells one is its own.
        let start = if separator.is_some() {
            at
        } else {
            at + whole[at..].find(part).unwrap_or(0)
        };
        ranges.push(start..start + part.len());
        at = start + part.len() + separator.map_or(0, str::len);
    }
    Ok(marks.cut(text, ranges).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controls() -> Controls {
        Controls::new(
            ["<|im_end|>", "<think>", "</think>", "<tool_response>"]
                .map(String::from)
                .to_vec(),
        )
        .unwrap()
    }

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        let (text, marks) =
            ChatTemplate::new(source).render(messages, &RenderOptions::default(), &controls())?;
        Ok(marks.remove(&text))
    }

    #[test]
    fn methods_see_the_text_between_marks() {
        let message = [Message::user("\n<think>\n a </think>\n\n<|im_end|>b<think>\n")];
        let print = |expression: &str| {
            render(
                &format!("{{% set c = messages[0].content %}}{{{{ {expression} }}}}"),
                &message,
            )
        };
        // Each expected text is what Python prints for the expression.
        for (expression, expected) in [
            ("'</think>' in c", "True"),
            ("c.strip().startswith('<think>')", "True"),
            ("c.rstrip('\\n').endswith('<think>')", "True"),
            (
                "c.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')",
                " a ",
            ),
            ("c.split('</think>')[-1].lstrip('\\n')", "<|im_end|>b<think>\n"),
            ("c.strip()", "<think>\n a </think>\n\n<|im_end|>b<think>"),
            ("c | trim", "<think>\n a </think>\n\n<|im_end|>b<think>"),
            ("c.split()", "['<think>', 'a', '</think>', '<|im_end|>b<think>']"),
            ("c | length", "41"),
            ("c.replace('<think>', '').strip()", "a </think>\n\n<|im_end|>b"),
            ("c.upper().strip()", "<THINK>\n A </THINK>\n\n<|IM_END|>B<THINK>"),
        ] {
            assert_eq!(print(expression).unwrap(), expected, "{expression}");
        }
    }

    #[test]
    fn marks_stay_on_what_is_left_of_a_message() {
        let message = [Message::user(" <think>x</think>\n\n<|im_end|> ")];
        for expression in [
            "c",
            "c.strip()",
            "c.split('</think>')[-1]",
            "c | tojson",
            "c ~ '.'",
            "c.lower()",
            "[c]",
        ] {
            let source = format!("{{% set c = messages[0].content %}}{{{{ {expression} }}}}<|im_end|>");
            let (text, marks) = ChatTemplate::new(source)
                .render(&message, &RenderOptions::default(), &controls())
                .unwrap();
            let own: Vec<_> = marks
                .read(&text)
                .into_iter()
                .filter(|piece| !piece.data)
                .collect();
            let found: usize = own.iter().map(|piece| controls().find(piece.text).count()).sum();
            assert_eq!(found, 1, "{expression}: {text:?}");
        }
    }

    #[test]
    fn a_template_that_does_not_end_is_an_error() {
        let endless = "{% macro f(n) %}{% for i in range(9000) %}{% for j in range(9000) %}{{ n }}{% endfor %}{% endfor %}\
                       {% endmacro %}{{ f('x') }}";
        let error = render(endless, &[]).unwrap_err().to_string();
        assert!(error.contains("does not come to an end"), "{error}");
        let doubling = "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}";
        let error = render(doubling, &[]).unwrap_err().to_string();
        assert!(error.contains("does not come to an end"), "{error}");
    }

    #[test]
    fn values_without_end_are_paid_for() {
        let doubled = |what: &str| {
            format!(
                "{{% set n = namespace(s=[1]) %}}{{% for i in range(40) %}}{{% set n.s = {what} %}}{{% endfor %}}"
            )
        };
        let shared = doubled("[n.s, n.s]");
        for source in [
            shared.clone() + "{% set x = n.s ~ '' %}",
            shared + "{{ n.s | string | length }}",
            doubled("n.s + n.s") + "{{ n.s | length }}",
            doubled("(n.s, n.s)") + "{{ n.s == 1 }}",
            doubled("{'a': n.s, 'b': n.s}"),
            doubled("dict(a=n.s, b=n.s)"),
            doubled("n.s | zip(n.s) | list"),
            doubled("n.s * 2"),
            "{% macro f(n, s) %}{% if n %}{{ f(n - 1, [s, s]) }}{% else %}{{ s ~ '' }}{% endif %}{% endmacro %}{{ f(40, 1) }}".into(),
            "{% for s in [[1]] recursive %}{{ loop([[s, s]]) }}{% endfor %}".into(),
            (0..40).fold("{% set a = [1] %}".to_owned(), |source, _| source + "{% set a = [a, a] %}") + "{{ a ~ '' }}",
            "{% set s = 'x' * 99999 %}{{ ('%s' * 9999) | format(s) }}".into(),
            "{% set s = 'x' * 999999 %}{{ ('{0}' * 9999).format(s) }}".into(),
            "{% set n = 99999999 %}{{ ([1] * n) | length }}".into(),
        ] {
            let error = render(&source, &[]).unwrap_err().to_string();
            let (ended, deep) = ("does not come to an end", "values within each other");
            assert!(error.contains(ended) || error.contains(deep), "{source}: {error}");
        }
    }

    #[test]
    fn values_too_deep_and_namespaces_within_others_are_refused() {
        let deep =
            "{% set n = namespace(s=[]) %}{% for i in range(60000) %}{% set n.s = [n.s] %}{% endfor %}";
        let batched = "{% set n = namespace(s=[1]) %}{% for i in range(6000) %}{% set n.s = n.s | batch(1) %}{% endfor %}";
        for source in [deep, batched] {
            let error = render(source, &[]).unwrap_err().to_string();
            assert!(error.contains("at most 100 values within each other"), "{error}");
        }
        for source in [
            "{% set n = namespace() %}{% set n.s = n %}",
            "{% set n = namespace() %}{% set m = [n] %}",
            "{% set n = namespace() %}{% set m = namespace(n=n) %}",
        ] {
            let error = render(source, &[]).unwrap_err().to_string();
            assert!(error.contains("a namespace within another value"), "{error}");
        }
        // Constants, which are worked out before anything is charged.
        for constant in [
            "[1] * 99999999",
            "([1]) * (9999 * 9999)",
            "[1] * 10 ** 8",
            "(1 // 0.00000001) * [1]",
            "1 in [0] * 99999999",
        ] {
            let error = render(&format!("a\n{{{{ {constant} }}}}"), &[])
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("written out and multiplied") && error.contains("line 2"),
                "{error}"
            );
        }
        let fine = "{{ [1] * 3 }}{{ '-' * 99 }}{{ messages[0 * 99999999] }}{% if 1 in [1] %}{{ 2 * 2 ** 40 }}{% endif %}";
        assert!(render(fine, &[]).unwrap().starts_with("[1, 1, 1]---"));
        let long = format!("{{# {} #}}", "x".repeat(MOST_SOURCE));
        assert!(
            render(&long, &[])
                .unwrap_err()
                .to_string()
                .contains("at most 262144 bytes")
        );
    }

    #[test]
    fn what_templates_do_with_lists_costs_little() {
        let pair = || [Message::user("Hello"), Message::assistant("Well.")];
        let messages: Vec<Message> = (0..500).flat_map(|_| pair()).collect();
        let source = "{% set n = namespace(kept=[], last=none, text='') %}{% for m in messages %}\
                      {% set n.kept = n.kept + [{'role': m.role, 'content': m.content}] %}{% set n.last = m %}\
                      {% set n.text = n.text + m.content[0:1] %}{% if m.role == 'user' and 1 in [1, 2] %}{% continue %}{% endif %}\
                      {% endfor %}{{ n.kept[1:] | length }} {{ n.last.content }} {{ n.text | length }} \
                      {%- macro twice(text, more='!') %}{{ text ~ text ~ more }}{% endmacro %} {{ twice('a') }}{{ twice('b', more='') }}\
                      {%- for a in [1, 2] %}{% if a > 1 %} {{ a or [3] }}{% elif false %}x{% else %} one{% endif %}{% else %}none{% endfor %}";
        assert_eq!(render(source, &messages).unwrap(), "999 Well. 1000 aa!bb one 2");
        // An error's line is the one that the template has.
        let error = render("a\n{% set x = [1, 2] %}\n{{ x + 1 }}", &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains(":3"), "{error}");
    }

    #[test]
    fn what_a_template_raises_is_the_error() {
        let error = render("a\n{{ raise_exception('roles must alternate') }}", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("roles must alternate") && error.contains(":2"),
            "{error}"
        );
        let error = render("{% if %}", &[]).unwrap_err().to_string();
        assert!(error.starts_with("chat template:"), "{error}");
    }

    #[test]
    fn generation_tags_leave_no_trace() {
        let source = "{% for m in messages %}\n  {%- generation -%}  {{ m.content }}\n  {% endgeneration %}\n{% endfor %}";
        assert_eq!(
            render(source, &[Message::user("hi"), Message::user("ho")]).unwrap(),
            "hi\nho\n"
        );
        assert_eq!(
            without_generation_tags("{% generation_x %}{% if generation %}"),
            "{% generation_x %}{% if generation %}"
        );
    }

    #[test]
    fn a_list_of_templates_has_one_for_tools() {
        let list =
            serde_json::json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
        let template = ChatTemplate::from_named(&list).unwrap();
        let mut options = RenderOptions::default();
        assert_eq!(template.render(&[], &options, &controls()).unwrap().0, "d");
        options.tools = Some(serde_json::json!([]));
        assert_eq!(template.render(&[], &options, &controls()).unwrap().0, "t");
        assert_eq!(
            ChatTemplate::from_named(&serde_json::json!([{"name": "rag", "template": "r"}])),
            None
        );
    }
}
