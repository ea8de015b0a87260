//! Why a library or a configuration was refused: what was found, what was expected, what to do.

use std::path::{Path, PathBuf};

use proxy_golang_abi::Status;
use proxy_golang_abi::feature::{Feature, FeatureSet};

/// Why a library was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: found {found}; expected {expected}. {advice}", path.display())]
pub struct LoadError {
    /// The file, as it was named or, once it was found, by its absolute path.
    pub path: PathBuf,
    /// What kind of problem it is.
    pub kind: LoadErrorKind,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// What to do next. Ends with a full stop.
    pub advice: String,
}

/// What kind of problem a [`LoadError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// There is no such file, or it cannot be read.
    Missing,
    /// A directory, a socket, a device.
    NotAFile,
    /// Not an ELF file.
    NotElf,
    /// An ELF file that ends too early or contradicts itself.
    Damaged,
    /// 32 bits, or the other byte order.
    WrongClass,
    /// For another machine.
    WrongMachine,
    /// An executable, an object file or a core dump.
    NotALibrary,
    /// The entry function is not exported.
    NoEntry,
    /// Only entry functions of other major versions are exported.
    OtherMajor,
    /// The dynamic linker refused it.
    Unresolved,
    /// The guest refused the host, or answered another major version.
    Version,
    /// The guest requires features that this host does not have.
    MissingFeature,
    /// The guest's init failed.
    Refused,
    /// The guest's table breaks a rule.
    BadTable,
    /// Too many libraries in this process.
    Limit,
}

impl LoadError {
    pub(super) fn new(
        path: &Path,
        kind: LoadErrorKind,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            found: found.into(),
            expected: expected.into(),
            advice: advice.into(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "configuration \"{name}\" of filter \"{filter}\" in {}: {}: found {found}; expected {expected}. {advice}",
    library.display(),
    crate::ffi::status_name(*status)
)]
pub struct ConfigError {
    /// The library's file.
    pub library: Box<Path>,
    /// The filter.
    pub filter: Box<str>,
    /// The instance.
    pub name: Box<str>,
    /// The status that stands for it: the guest's own, or the one that the spec gives for what the host found.
    pub status: Status,
    /// Whether the guest itself said no; then `found` has its text.
    pub by_guest: bool,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// What to do next. Ends with a full stop.
    pub advice: &'static str,
}

/// Names of the features in a set; numbers for those that this version does not know.
pub(super) fn names(set: &FeatureSet) -> String {
    let named = |n: u32| {
        let known = Feature::ALL.iter().find(|(feature, _)| feature.0 == n);
        known.map_or_else(
            || format!("feature number {n}"),
            |(_, name)| (*name).to_owned(),
        )
    };
    let numbers = (0..256).filter(|n| Feature(*n).is_in(set));
    numbers.map(named).collect::<Vec<_>>().join(", ")
}
