//! Folders of the workspace.

use std::path::{Path, PathBuf};

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the manifest is in a folder of the workspace")
}

/// The folder that builds write to, as cargo has it.
pub(crate) fn target() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(folder)
}

/// Where the output of what runs is kept. Exists.
pub(crate) fn logs() -> PathBuf {
    let folder = target().join("xtask");
    // A folder that cannot be made shows when a log is opened in it.
    let _ = std::fs::create_dir_all(&folder);
    folder
}
