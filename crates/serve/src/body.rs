//! Bodies of requests: JSON, every field known, a field that does not fit named by its path.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The body of a request, read as JSON.
///
/// The content type must say JSON: a web page of another origin can then not post here without the browser asking
/// first. Give `T` the attribute `serde(deny_unknown_fields)`, so that no field is ignored.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.map_or("none", |kind| kind.to_str().unwrap_or("no text"));
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Error::MediaType(kind.to_owned()));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
                Error::BodyLimit(crate::server::BODY_LIMIT)
            } else {
                Error::Request(format!("body: {error}"))
            }
        })?;
        read(&bytes).map(Self)
    }
}

/// Reads JSON; an error names the field.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        if cause.is_syntax() || cause.is_eof() {
            return Error::Json(cause.to_string());
        }
        let what = cause.to_string();
        let Some(named) = what
            .split('`')
            .nth(1)
            .filter(|_| what.starts_with("unknown field") || what.starts_with("missing field"))
        else {
            return Error::field(path, what);
        };
        // Serde names the field itself only in the message.
        let field = match path.rsplit_once('.') {
            _ if path == "." => named.to_owned(),
            Some((_, last)) if last == named => path.clone(),
            None if path == named => path.clone(),
            _ => format!("{path}.{named}"),
        };
        let what = what.split(" at line").next().unwrap_or_default();
        Error::field(field, what)
    })?;
    reader.end().map_err(|error| Error::Json(error.to_string()))?;
    Ok(value)
}

/// The fields of an object, taken one by one; what is left over at the end is refused.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// A field, if it is there; null is as good as absent.
    ///
    /// # Errors
    /// A value of another form, named by its path.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.0.shift_remove(name).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        serde_path_to_error::deserialize(value)
            .map(Some)
            .map_err(|error| {
                let path = error.path().to_string();
                let field = match path.as_str() {
                    "." => name.to_owned(),
                    path if path.starts_with('[') => format!("{name}{path}"),
                    path => format!("{name}.{path}"),
                };
                Error::field(field, error.into_inner().to_string())
            })
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// A field that is not, or a value of another form.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        self.take(name)?
            .ok_or_else(|| Error::field(name, "expected a value, found none"))
    }

    /// Takes a field of which only some values are supported, those that change nothing.
    ///
    /// # Errors
    /// Any other value.
    pub fn allow(&mut self, name: &str, values: &[Value]) -> Result<()> {
        match self.take::<Value>(name)? {
            Some(value) if !values.contains(&value) => {
                let expected: Vec<_> = values.iter().map(Value::to_string).collect();
                let expected = if expected.is_empty() {
                    "none".to_owned()
                } else {
                    expected.join(" or ")
                };
                Err(Error::field(
                    name,
                    format!("not supported: expected {expected}, found {value}"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Puts a field in, as if the request had brought it.
    pub fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Refuses what is left over; fields that are null ask for nothing.
    ///
    /// # Errors
    /// A field that nobody took.
    pub fn finish(self) -> Result<()> {
        match self.0.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(Error::field(name, "this field is not supported here")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        count: u8,
    }

    #[test]
    fn the_field_that_does_not_fit_is_named_by_its_path() {
        let field = |text: &str| match read::<Outer>(text.as_bytes()).unwrap_err() {
            Error::Field { field, .. } => field,
            other => panic!("{other}"),
        };
        assert_eq!(
            field(r#"{"inner": [{"count": 1}, {"count": "x"}]}"#),
            "inner[1].count"
        );
        assert_eq!(field(r#"{"inner": [], "outer": 1}"#), "outer");
        assert_eq!(field(r#"{"inner": [{"count": 1, "size": 2}]}"#), "inner[0].size");
        assert_eq!(field(r"{}"), "inner");
    }

    #[test]
    fn fields_are_taken_and_the_rest_is_refused() {
        let mut fields: Fields =
            read(br#"{"a": 1, "b": null, "c": {"d": ["x", 2]}, "e": false, "f": "on", "g": 1}"#).unwrap();
        assert_eq!(fields.take::<u8>("a").unwrap(), Some(1));
        assert_eq!(fields.take::<u8>("b").unwrap(), None);
        assert!(
            fields
                .require::<u8>("z")
                .unwrap_err()
                .to_string()
                .starts_with("z: ")
        );
        let nested = fields
            .take::<std::collections::BTreeMap<String, Vec<String>>>("c")
            .unwrap_err();
        assert!(nested.to_string().starts_with("c.d[1]: "), "{nested}");
        fields.allow("e", &[json!(false)]).unwrap();
        assert!(
            fields
                .allow("f", &[json!("off")])
                .unwrap_err()
                .to_string()
                .contains("\"off\", found \"on\"")
        );
        assert!(fields.finish().unwrap_err().to_string().starts_with("g: "));
    }

    #[test]
    fn what_is_not_json_says_so() {
        for text in ["", "{", "{\"inner\": []} more"] {
            assert!(
                matches!(read::<Outer>(text.as_bytes()), Err(Error::Json(_))),
                "{text}"
            );
        }
    }
}
