//! Mistakes in a configuration, with their place in the file.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug)]
pub struct ConfigError {
    /// The mistakes, at least one.
    pub diagnostics: Vec<Diagnostic>,
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1.
    pub place: Option<(usize, usize)>,
    /// The line's text.
    pub line: Option<String>,
    /// The key, for example `virtual_hosts[0].routes[1].cluster`.
    pub key: Option<String>,
    /// What was found, and what was expected.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
}

/// Where in the file a value stands.
#[derive(Clone, Debug, Default)]
pub struct KeyPath(Vec<Step>);

#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

impl KeyPath {
    /// A key at the top.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self::default().key(key)
    }

    /// A key of the table at this place.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.into()))
    }

    /// An element of the array at this place.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut path = self.clone();
        path.0.push(step);
        path
    }

    /// The bytes of the value, or of the nearest table around it.
    fn find(&self, text: &str) -> Option<Range<usize>> {
        let table = DeTable::parse(text).ok()?;
        let mut span = 0..0;
        let mut value: Option<&Spanned<DeValue<'_>>> = None;
        for step in &self.0 {
            let next = match (step, value.map(Spanned::get_ref)) {
                (Step::Key(key), None) => table.get_ref().get(key.as_str()),
                (Step::Key(key), Some(DeValue::Table(t))) => t.get(key.as_str()),
                (Step::Index(i), Some(DeValue::Array(a))) => a.get(*i),
                _ => None,
            };
            let Some(next) = next else { break };
            span = next.span();
            value = Some(next);
        }
        (!span.is_empty()).then_some(span)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl ConfigError {
    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        Self::one(Diagnostic {
            file: file.into(),
            place: None,
            line: None,
            key: None,
            message: format!("cannot read the configuration: {error}"),
            help: Some("check the path and its permissions".into()),
        })
    }

    pub(super) fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message().trim_end().to_owned();
        let help = unknown_key(&message).map(|(found, known)| {
            match super::check::nearest(found, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys here are: {}", known.join(", ")),
            }
        });
        let mut diagnostic = Diagnostic {
            file: file.into(),
            place: None,
            line: None,
            key: None,
            message,
            help,
        };
        if let Some(span) = error.span() {
            diagnostic.point(text, span.start);
        }
        Self::one(diagnostic)
    }

    /// One mistake.
    #[must_use]
    pub fn one(diagnostic: Diagnostic) -> Self {
        Self {
            diagnostics: vec![diagnostic],
        }
    }
}

impl Diagnostic {
    /// A mistake in the value at `key`.
    #[must_use]
    pub fn at(
        file: &Path,
        text: &str,
        key: &KeyPath,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let help = help.into();
        let mut diagnostic = Self {
            file: file.into(),
            place: None,
            line: None,
            key: Some(key.to_string()),
            message: message.into(),
            help: (!help.is_empty()).then_some(help),
        };
        if let Some(span) = key.find(text) {
            diagnostic.point(text, span.start);
        }
        diagnostic
    }

    fn point(&mut self, text: &str, offset: usize) {
        let offset = offset.min(text.len());
        let before = &text.as_bytes()[..offset];
        let start = before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |i| i + 1);
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let rest = text.get(start..).unwrap_or_default();
        let column = text.get(start..offset).map_or(1, |s| s.chars().count() + 1);
        self.place = Some((line, column));
        self.line = Some(rest.lines().next().unwrap_or_default().to_owned());
    }
}

/// The found and the expected names in serde's message about an unknown key.
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))?;
    let (found, rest) = rest.split_once('`')?;
    Some((found, rest.split('`').skip(1).step_by(2).collect()))
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": error: ")?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)?;
        if let (Some(text), Some((line, column))) = (&self.line, self.place) {
            let number = line.to_string();
            let pad = " ".repeat(number.len());
            let indent = " ".repeat(column - 1);
            write!(f, "\n {pad} |\n {number} | {text}\n {pad} | {indent}^")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
