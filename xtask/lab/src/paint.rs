//! Text for people, in colours on a terminal.

use std::fmt::Display;
use std::io::IsTerminal;

/// Whether to use colours.
#[derive(Clone, Copy, Debug)]
pub struct Paint(bool);

impl Paint {
    /// For standard output: on a terminal, and unless `NO_COLOR` is set.
    #[must_use]
    pub fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn with(self, code: &str, text: impl Display) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn bold(self, text: impl Display) -> String {
        self.with("1", text)
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn dim(self, text: impl Display) -> String {
        self.with("2", text)
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn red(self, text: impl Display) -> String {
        self.with("31", text)
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn green(self, text: impl Display) -> String {
        self.with("32", text)
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn yellow(self, text: impl Display) -> String {
        self.with("33", text)
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn cyan(self, text: impl Display) -> String {
        self.with("36", text)
    }
}

/// A time with three digits or so.
#[must_use]
pub fn time(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    if value < 10.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        let texts = [912, 1_320, 41_200, 61_000_000, 2_000_000_000].map(super::time);
        assert_eq!(texts, ["912 ns", "1.3 µs", "41 µs", "61 ms", "2.0 s"]);
    }
}
