//! What the layer is told: by the environment, or by the file `<layer's own file>.toml` for hosts that clear it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What happens when a rule is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Findings are written. Memory is handed through as it is, so late uses are not seen.
    #[default]
    Log,
    /// As `log`, and each side gets copies that become inaccessible when their time is over. A wrong access is written
    /// and let through.
    Heal,
    /// As `heal`, and the process aborts at the first finding.
    Abort,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Heal => "heal",
            Self::Abort => "abort",
        }
    }

    fn parse(s: &str) -> Result<Self, String> {
        match s {
            "log" => Ok(Self::Log),
            "heal" => Ok(Self::Heal),
            "abort" => Ok(Self::Abort),
            _ => Err(format!(
                "PXG_LAYER is {s:?}; expected log, heal or abort (default log)"
            )),
        }
    }
}

/// Which rules are reported: globs over rule ids, `!` in front takes away, the last one that matches decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter(Vec<(bool, glob::Pattern)>);

impl Filter {
    fn parse(s: &str) -> Result<Self, String> {
        s.split([',', ' '])
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(|p| {
                let (take, p) = p.strip_prefix('!').map_or((true, p), |rest| (false, rest));
                glob::Pattern::new(p)
                    .map(|g| (take, g))
                    .map_err(|e| format!("PXG_LAYER_FILTER: {p:?} is no glob: {e}"))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(crate) fn takes(&self, rule: &str) -> bool {
        // A list that only takes away starts with everything.
        let start = self.0.first().is_none_or(|(take, _)| !take);
        self.0
            .iter()
            .rev()
            .find(|(_, g)| g.matches(rule))
            .map_or(start, |(take, _)| *take)
    }
}

/// The settings of one copy of the layer.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) guest: PathBuf,
    pub(crate) mode: Mode,
    /// Where findings, and the trace, go: JSON, a line each, appended.
    pub(crate) out: Option<PathBuf>,
    pub(crate) filter: Filter,
    /// The seed of the perturbations.
    pub(crate) perturb: Option<u64>,
    /// Each call is recorded too.
    pub(crate) trace: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    guest: Option<PathBuf>,
    mode: Option<Mode>,
    out: Option<PathBuf>,
    filter: Option<String>,
    perturb: Option<u64>,
    trace: Option<bool>,
}

fn number(name: &str, s: &str) -> Result<u64, String> {
    let parsed = match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => s.parse(),
    };
    parsed.map_err(|_| format!("{name} is {s:?}; expected a number"))
}

impl Settings {
    /// Reads the environment through `var`, and the file beside `own`, which the environment overrides.
    pub(crate) fn read(own: &Path, var: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut beside = own.as_os_str().to_os_string();
        beside.push(".toml");
        let beside = PathBuf::from(beside);
        let dir = own.parent().unwrap_or(Path::new("."));
        let file = match std::fs::read_to_string(&beside) {
            Ok(text) => toml::from_str::<FileSettings>(&text)
                .map_err(|e| format!("{}: {e}", beside.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => FileSettings::default(),
            Err(e) => return Err(format!("{}: {e}", beside.display())),
        };
        let from_dir = |p: PathBuf| dir.join(p);
        let set = |name: &str| var(name).filter(|v| !v.is_empty());
        let guest = set("PXG_LAYER_GUEST")
            .map(PathBuf::from)
            .or(file.guest.map(from_dir))
            .ok_or_else(|| {
                format!(
                    "no guest: set PXG_LAYER_GUEST to the real guest's file, or write `guest = \"...\"` into {}",
                    beside.display()
                )
            })?;
        let mode = match set("PXG_LAYER") {
            Some(s) => Mode::parse(&s)?,
            None => file.mode.unwrap_or_default(),
        };
        let filter = set("PXG_LAYER_FILTER").or(file.filter).unwrap_or_default();
        let perturb = match set("PXG_LAYER_PERTURB") {
            Some(s) => Some(number("PXG_LAYER_PERTURB", &s)?),
            None => file.perturb,
        };
        let trace = match set("PXG_LAYER_TRACE").as_deref() {
            Some("1" | "true") => true,
            Some("0" | "false") => false,
            Some(s) => return Err(format!("PXG_LAYER_TRACE is {s:?}; expected 1 or 0")),
            None => file.trace.unwrap_or(false),
        };
        let out = set("PXG_LAYER_OUT")
            .map(PathBuf::from)
            .or(file.out.map(from_dir));
        if trace && out.is_none() {
            return Err("PXG_LAYER_TRACE needs PXG_LAYER_OUT, where the trace goes".into());
        }
        Ok(Self {
            guest,
            mode,
            out,
            filter: Filter::parse(&filter)?,
            perturb,
            trace,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_overrides_the_file_beside_the_layer() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a.so");
        std::fs::write(
            dir.path().join("a.so.toml"),
            "guest = \"real.so\"\nmode = \"heal\"\nperturb = 7\n",
        )
        .unwrap();
        let s = Settings::read(&own, |_| None).unwrap();
        assert_eq!(s.guest, dir.path().join("real.so"));
        assert_eq!(s.mode, Mode::Heal);
        assert_eq!(s.perturb, Some(7));
        let s = Settings::read(&own, |n| {
            Some(match n {
                "PXG_LAYER" => "abort".into(),
                "PXG_LAYER_PERTURB" => "0x10".into(),
                _ => return None,
            })
        })
        .unwrap();
        assert_eq!((s.mode, s.perturb), (Mode::Abort, Some(16)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let none = Path::new("/nowhere/layer.so");
        let e = Settings::read(none, |_| None).unwrap_err();
        assert!(e.contains("PXG_LAYER_GUEST"), "{e}");
        let with = |name: &'static str, value: &'static str| {
            Settings::read(none, move |n| match n {
                "PXG_LAYER_GUEST" => Some("/g.so".into()),
                n if n == name => Some(value.into()),
                _ => None,
            })
        };
        assert!(with("PXG_LAYER", "loud").unwrap_err().contains("loud"));
        assert!(with("PXG_LAYER_FILTER", "[").unwrap_err().contains("glob"));
        assert!(with("PXG_LAYER_TRACE", "1").unwrap_err().contains("OUT"));
        assert!(with("PXG_LAYER_PERTURB", "x").is_err());
    }

    #[test]
    fn the_last_glob_that_matches_decides() {
        let takes = |f: &str, r: &str| Filter::parse(f).unwrap().takes(r);
        assert!(takes("", "PXG-MEM-001"));
        assert!(takes("PXG-MEM-*", "PXG-MEM-001"));
        assert!(!takes("PXG-MEM-*", "PXG-EVT-001"));
        assert!(!takes("!PXG-MEM-*", "PXG-MEM-001"));
        assert!(takes("!PXG-MEM-*", "PXG-EVT-001"));
        assert!(!takes("PXG-MEM-*,!PXG-MEM-002", "PXG-MEM-002"));
    }
}
