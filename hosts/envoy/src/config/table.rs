//! Values taken out of JSON one by one, with what is wrong with them.

use std::time::Duration;

use serde_json::{Map, Value};

use super::ConfigError;

pub(super) fn show(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 120 {
        format!("{}...", text.chars().take(120).collect::<String>())
    } else {
        text
    }
}

/// A table whose keys are taken one by one; what is left at the end is unknown.
pub(super) struct Table {
    pub(super) at: String,
    map: Map<String, Value>,
}

impl Table {
    pub(super) fn parse(at: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let example = "Write, for example, {\"name\": \"auth\", \"guest\": \"/path/libauth.so\"}.";
        if bytes.is_empty() {
            return Err(ConfigError::new(at, "nothing", "a table", example));
        }
        let value = serde_json::from_slice(bytes).map_err(|e| {
            ConfigError::new(
                at,
                format!("what is not JSON ({e})"),
                "a google.protobuf.Struct, or a StringValue that holds JSON",
                example,
            )
        })?;
        let mut table = Self::of(at.to_owned(), value)?;
        table.at = String::new();
        Ok(table)
    }

    pub(super) fn of(at: String, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { at, map }),
            other => Err(ConfigError::new(
                at,
                show(&other),
                "a table",
                "Write keys with their values.",
            )),
        }
    }

    pub(super) fn key(&self, key: &str) -> String {
        if self.at.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.at)
        }
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::new(self.key(key), show(found), expected, "Correct the value.")
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "text")),
        }
    }

    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(self.wrong(key, &other, "a list of texts")),
                })
                .collect(),
            Some(other) => Err(self.wrong(key, &other, "a list of texts")),
        }
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        default: u64,
        min: u64,
        max: u64,
    ) -> Result<u64, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        whole(&value)
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.wrong(key, &value, &format!("a whole number from {min} to {max}")))
    }

    pub(super) fn size(&mut self, key: &str, default: u64) -> Result<u64, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let size = match &value {
            Value::String(text) => size_of_text(text),
            other => whole(other),
        };
        size.ok_or_else(|| self.wrong(key, &value, "a number of bytes, like 65536 or \"1MiB\""))
    }

    pub(super) fn time(&mut self, key: &str, default: Duration) -> Result<Duration, ConfigError> {
        let expected = "a time with a unit, like \"500ms\", \"30s\" or \"1m 30s\", and not 0";
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let Value::String(text) = &value else {
            return Err(self.wrong(key, &value, expected));
        };
        humantime::parse_duration(text)
            .ok()
            .filter(|time| !time.is_zero())
            .ok_or_else(|| self.wrong(key, &value, expected))
    }

    /// A guest's configuration: what stands here, or what a file holds.
    pub(super) fn config(&mut self) -> Result<Option<Vec<u8>>, ConfigError> {
        let here = self.take("config");
        let Some(path) = self.text("config_file")? else {
            return Ok(here.map(|config| config_bytes(&config)));
        };
        let wrong = |found: String, expected: &str, advice: &str| {
            ConfigError::new(self.key("config_file"), found, expected, advice)
        };
        if here.is_some() {
            return Err(wrong(
                format!("{path:?} beside `config`"),
                "one of them",
                "Remove one: a configuration stands here, or in a file.",
            ));
        }
        if !path.starts_with('/') {
            return Err(wrong(
                format!("{path:?}"),
                "an absolute path",
                "Envoy's working directory is nobody's choice: begin with a slash.",
            ));
        }
        // A pipe or a device would be waited for.
        let read = std::fs::metadata(&path).and_then(|file| {
            if file.is_file() {
                std::fs::read(&path)
            } else {
                Err(std::io::Error::other("not a regular file"))
            }
        });
        read.map(Some).map_err(|why| {
            wrong(
                format!("{path:?}, which cannot be read ({why})"),
                "a file that Envoy's user can read",
                "Correct the path, or the file's permissions.",
            )
        })
    }

    /// Refuses what nobody took.
    pub(super) fn finish(&self, known: &[&str]) -> Result<(), ConfigError> {
        let Some(key) = self.map.keys().next() else {
            return Ok(());
        };
        let near = known
            .iter()
            .map(|k| (strsim::damerau_levenshtein(k, key), *k))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        let advice = match near {
            Some((_, near)) => format!("Did you mean `{near}`?"),
            None => "Remove it.".to_owned(),
        };
        Err(ConfigError::new(
            self.key(key),
            "an unknown key",
            format!("one of {}", known.join(", ")),
            advice,
        ))
    }
}

fn whole(value: &Value) -> Option<u64> {
    if let Some(n) = value.as_u64() {
        return Some(n);
    }
    let f = value.as_f64()?;
    let fits = f.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&f);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it fits
    fits.then_some(f as u64)
}

/// `1MiB`, `64 KiB`, `10kB`, `123`.
fn size_of_text(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// What a guest gets: text as it is, anything else as JSON.
fn config_bytes(config: &Value) -> Vec<u8> {
    match config {
        Value::String(text) => text.clone().into_bytes(),
        Value::Null => Vec::new(),
        other => serde_json::to_vec(&whole_numbers(other)).unwrap_or_default(),
    }
}

/// A `Struct` knows only floating point: what was written as `5` may come as `5.0`.
fn whole_numbers(value: &Value) -> Value {
    match value {
        Value::Number(n) => match n.as_f64() {
            #[allow(clippy::cast_possible_truncation)] // it is whole and small
            Some(f) if f.fract() == 0.0 && f.abs() < 9_007_199_254_740_992.0 => {
                Value::from(f as i64)
            }
            _ => value.clone(),
        },
        Value::Array(list) => list.iter().map(whole_numbers).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), whole_numbers(value)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}
