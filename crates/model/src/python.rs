//! What Python would print: chat templates were written for its `json.dumps`, `str` and `strftime`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Options of [`json`], by the names that `json.dumps` has for them.
pub(crate) struct JsonStyle {
    indent: Option<usize>,
    ensure_ascii: bool,
    sort_keys: bool,
    item_separator: String,
    key_separator: String,
}

impl JsonStyle {
    /// Reads the keyword arguments that a template gave to `tojson`.
    pub(crate) fn from_arguments(arguments: &Kwargs) -> Result<Self, Error> {
        let indent: Option<usize> = arguments.get("indent")?;
        let ensure_ascii: Option<bool> = arguments.get("ensure_ascii")?;
        let sort_keys: Option<bool> = arguments.get("sort_keys")?;
        let separators: Option<Vec<String>> = arguments.get("separators")?;
        arguments.assert_all_used()?;
        let (item_separator, key_separator) = match separators.as_deref() {
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(invalid("tojson: separators must be two strings")),
        };
        Ok(Self {
            indent,
            ensure_ascii: ensure_ascii.unwrap_or(false),
            sort_keys: sort_keys.unwrap_or(false),
            item_separator,
            key_separator,
        })
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_owned())
}

/// Most lists and maps within each other that are printed. A template can build deeper ones, and one that holds itself.
pub(crate) const MOST_DEPTH: usize = 100;

/// Refuses to go on with a text that is too long, or a value that is too deep.
fn check(text: &str, room: usize, depth: usize) -> Result<(), Error> {
    if text.len() > room {
        return Err(Error::new(
            ErrorKind::OutOfFuel,
            "a value that is printed without end",
        ));
    }
    if depth > MOST_DEPTH {
        return Err(invalid(&format!(
            "a value to print: expected lists and maps at most {MOST_DEPTH} deep"
        )));
    }
    Ok(())
}

/// `json.dumps(value)` as Hugging Face's `tojson` calls it: no HTML escapes, no ASCII escapes, `", "` and `": "`.
///
/// # Errors
/// A value that has no JSON, or whose JSON takes more than about `room` bytes.
pub(crate) fn json(value: &Value, style: &JsonStyle, room: usize) -> Result<String, Error> {
    let mut text = String::new();
    write_json(&mut text, value, style, room, 0)?;
    Ok(text)
}

fn write_json(
    text: &mut String,
    value: &Value,
    style: &JsonStyle,
    room: usize,
    depth: usize,
) -> Result<(), Error> {
    check(text, room, depth)?;
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => write_json_string(text, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            write_json_items(text, ('[', ']'), items, style, room, depth, |text, item| {
                write_json(text, item, style, room, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            write_json_items(
                text,
                ('{', '}'),
                keys.into_iter(),
                style,
                room,
                depth,
                |text, key| {
                    match key.as_str() {
                        Some(name) => write_json_string(text, name, style.ensure_ascii),
                        None => write_json_string(text, &self::text(key, room)?, style.ensure_ascii),
                    }
                    text.push_str(&style.key_separator);
                    write_json(text, &value.get_item(key)?, style, room, depth + 1)
                },
            )?;
        }
        kind => return Err(invalid(&format!("tojson: a value of type {kind} has no JSON"))),
    }
    Ok(())
}

fn write_json_items(
    text: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = Value>,
    style: &JsonStyle,
    room: usize,
    depth: usize,
    mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let start_line = |text: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            text.push('\n');
            // One more than there is room for is enough to be too many.
            let spaces = indent.saturating_mul(depth).min(room.saturating_add(1));
            text.extend(std::iter::repeat_n(' ', spaces));
        }
    };
    text.push(open);
    let mut empty = true;
    for item in items {
        if !empty {
            text.push_str(&style.item_separator);
        }
        empty = false;
        start_line(text, depth + 1);
        check(text, room, depth)?;
        write(text, &item)?;
    }
    if !empty {
        start_line(text, depth);
    }
    text.push(close);
    Ok(())
}

fn write_json_string(text: &mut String, string: &str, ensure_ascii: bool) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{C}' => text.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// A number as Python prints it: floats in their shortest form, exponents with a sign and two digits.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) if float.is_nan() => "NaN".into(),
        Ok(float) if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Ok(float) => {
            let shortest = format!("{float:?}");
            match shortest.split_once('e') {
                None => shortest,
                Some((digits, exponent)) => {
                    let (sign, exponent) = exponent
                        .strip_prefix('-')
                        .map_or(('+', exponent), |rest| ('-', rest));
                    format!("{digits}e{sign}{exponent:0>2}")
                }
            }
        }
        Err(_) => value.to_string(),
    }
}

/// `str(value)`: what `{{ value }}` prints in Jinja.
///
/// # Errors
/// A value that takes more than about `room` bytes.
pub(crate) fn text(value: &Value, room: usize) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            // One that a template's constants make is paid for by nobody so far.
            check(text, room, 0)?;
            Ok(text.to_owned())
        }
        _ => {
            let mut text = String::new();
            write_representation(&mut text, value, room, 0)?;
            Ok(text)
        }
    }
}

/// `repr(value)`.
fn write_representation(text: &mut String, value: &Value, room: usize, depth: usize) -> Result<(), Error> {
    check(text, room, depth)?;
    match value.kind() {
        ValueKind::None => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => text.push_str(&number(value).replace("NaN", "nan").replace("Infinity", "inf")),
        ValueKind::String => text.push_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_representation(text, &item, room, depth + 1)?;
            }
            text.push(']');
        }
        ValueKind::Map => {
            text.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_representation(text, &key, room, depth + 1)?;
                text.push_str(": ");
                let item = value.get_item(&key).unwrap_or_default();
                write_representation(text, &item, room, depth + 1)?;
            }
            text.push('}');
        }
        _ => text.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string in Python's quotes: single ones, unless only they occur in it.
fn quoted(string: &str) -> String {
    let quote = if string.contains('\'') && !string.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut text = String::from(quote);
    for c in string.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => text.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let _ = write!(text, "\\x{:02x}", c as u32);
            }
            c => text.push(c),
        }
    }
    text.push(quote);
    text
}

/// The time now, in UTC, in `strftime`'s format; a directive that is not known stays as it stands.
pub(crate) fn time_now(format: &str) -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    time(seconds, format)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

fn time(seconds: u64, format: &str) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = date(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = ((days + 4) % 7) as usize; // 1 January 1970 was a Thursday
    let mut text = String::new();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let unpadded = rest.next_if_eq(&'-').is_some();
        let mut padded = |value: u64, width: usize| {
            let width = if unpadded { 0 } else { width };
            let _ = write!(text, "{value:0width$}");
        };
        match rest.next() {
            Some('Y') => padded(year, 4),
            Some('y') => padded(year % 100, 2),
            Some('m') => padded(month as u64 + 1, 2),
            Some('d') => padded(day, 2),
            Some('j') => padded(day_of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded((hour + 11) % 12 + 1, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => text.push_str(MONTHS[month]),
            Some('b') => text.push_str(&MONTHS[month][..3]),
            Some('A') => text.push_str(WEEKDAYS[weekday]),
            Some('a') => text.push_str(&WEEKDAYS[weekday][..3]),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month from 0, day from 1 and day of the year from 1, of a count of days since 1 January 1970.
fn date(mut days: u64) -> (u64, usize, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    fn dumps(value: serde_json::Value, arguments: &[(&str, Value)]) -> String {
        let arguments: Kwargs = arguments.iter().cloned().collect();
        let style = JsonStyle::from_arguments(&arguments).unwrap();
        json(&Value::from(Serde(value)), &style, 1000).unwrap()
    }

    // Every expected text is what Python 3.11 printed.
    #[test]
    fn json_is_that_of_python() {
        let value =
            serde_json::json!({"b": [1, 2.0, 1e16, 1e-5, null, true], "a": "é<&>'\"\n\u{1}", "e": {}});
        let plain = r#"{"b": [1, 2.0, 1e+16, 1e-05, null, true], "a": "é<&>'\"\n\u0001", "e": {}}"#;
        assert_eq!(dumps(value.clone(), &[]), plain);
        let sorted = r#"{"a": "\u00e9<&>'\"\n\u0001", "b": [1, 2.0, 1e+16, 1e-05, null, true], "e": {}}"#;
        let arguments = [
            ("sort_keys", Value::from(true)),
            ("ensure_ascii", Value::from(true)),
        ];
        assert_eq!(dumps(value, &arguments), sorted);
        let nested = serde_json::json!({"a": [1, {"b": []}]});
        let indented = "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ]\n}";
        assert_eq!(dumps(nested, &[("indent", Value::from(2))]), indented);
    }

    #[test]
    fn text_is_that_of_python() {
        let value = serde_json::json!({"a": [true, null, "it's", "\"'\n"], "b": 0.1});
        assert_eq!(
            text(&Value::from(Serde(value)), 1000).unwrap(),
            r#"{'a': [True, None, "it's", '"\'\n'], 'b': 0.1}"#
        );
        assert_eq!(text(&Value::from("as it is"), 8).unwrap(), "as it is");
    }

    #[test]
    fn what_is_too_long_or_too_deep_is_refused() {
        let long = Value::from(vec![1; 1000]);
        let style =
            JsonStyle::from_arguments(&[("indent", Value::from(1_u64 << 60))].into_iter().collect()).unwrap();
        for error in [
            text(&long, 999).unwrap_err(),
            json(&Value::from(vec![1]), &style, 999).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::OutOfFuel);
        }
        let deep = (0..=MOST_DEPTH).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
        assert!(text(&deep, 9999).unwrap_err().to_string().contains("100 deep"));
        assert!(text(&deep.get_item(&Value::from(0)).unwrap(), 9999).is_ok());
    }

    #[test]
    fn time_is_that_of_python() {
        let format = "%Y-%m-%d %H:%M:%S %A %a %d %B %b %j %I %p %-d %y %%";
        assert_eq!(
            time(0, format),
            "1970-01-01 00:00:00 Thursday Thu 01 January Jan 001 12 AM 1 70 %"
        );
        assert_eq!(
            time(1_709_210_096, format),
            "2024-02-29 12:34:56 Thursday Thu 29 February Feb 060 12 PM 29 24 %"
        );
        assert_eq!(time(1_735_689_599, "%d %b %Y %j"), "31 Dec 2024 366");
    }
}
