//! The module for nginx, and what OpenResty makes of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::failures::Failed;
use super::{Run, counts, files, stages};
use crate::bootstrap::nginx::{BOTH, Nginx};
use crate::root::{root, target};

const HOST: &str = "hosts/nginx";
const OPENRESTY: &str = "hosts/openresty";

/// The stable nginx, and the module for it and for Debian's.
pub(super) fn build(c: &Run) -> Result<()> {
    let run = |command: &mut Command| c.finish(command);
    BOTH.iter().try_for_each(|nginx| nginx.build(c.tools, &run))
}

/// The engine's unit tests, under valgrind.
pub(super) fn engine(c: &Run) -> Result<()> {
    let mut make = c.command(HOST, "make");
    make.args(["check", "-j2"]);
    make.arg(format!("BUILD={}", folder().join("engine").display()));
    c.finish(&mut make)
}

/// Every program in `tests/` of the host, with the nginx of each version.
pub(super) fn host(c: &Run) -> Result<()> {
    let glue = folder().join("glue");
    let mut make = c.command(HOST, "make");
    make.args(["-f", "Makefile.module", "-j2"])
        .arg(format!("BUILD={}", glue.display()))
        .arg(format!(
            "PXG_TEST_DRIVER={}",
            root().join(HOST).join("tests/driver.c").display()
        ));
    c.finish(&mut make)?;
    let glue = glue.join("out/ngx_http_proxy_golang_module.so");
    // Both at once: much of it waits for nginx's own limits.
    c.beside(&BOTH, Nginx::name, |c, nginx| {
        for program in programs(HOST)? {
            let mut arguments = Vec::new();
            match program.as_str() {
                // With a driver in the engine's place: it fits Debian's nginx alone.
                "glue.py" if nginx == Nginx::Debian => arguments.push(glue.clone()),
                "glue.py" => continue,
                _ => {}
            }
            python(c, nginx, HOST, &program, &arguments)
                .with_context(|| format!("{program} with {}'s nginx", nginx.name()))?;
        }
        Ok(())
    })?;
    stages::some_ran(c, counts::python)
}

/// Every program in `tests/` of OpenResty's way, and luacheck over its sources.
pub(super) fn openresty(c: &Run) -> Result<()> {
    let sources = files(&[".lua"])?;
    let mut luacheck = c.command(".", "luacheck");
    luacheck.args(["--std", "ngx_lua", "--no-color", "--max-line-length", "130"]);
    luacheck.args(sources.iter().filter(|file| file.starts_with(OPENRESTY)));
    c.finish(&mut luacheck)?;
    for program in programs(OPENRESTY)? {
        python(c, Nginx::Debian, OPENRESTY, &program, &[])
            .with_context(|| format!("{program} with Debian's nginx"))?;
    }
    stages::some_ran(c, counts::python)
}

fn folder() -> PathBuf {
    target().join("nginx")
}

/// Runs a test program; one of its tests that fails once more.
fn python(c: &Run, nginx: Nginx, host: &str, program: &str, arguments: &[PathBuf]) -> Result<()> {
    let command = |test: Option<&str>| {
        // Debian's, for which its packages have the modules.
        let mut python = c.command(host, "/usr/bin/python3");
        nginx.apply(&mut python);
        python
            .env("PXG_TEST_BUILD", folder().join("guests").join(nginx.name()))
            .env("PYTHONUNBUFFERED", "1")
            .arg("-B")
            .arg(Path::new("tests").join(program))
            .args(arguments)
            .args(test);
        python
    };
    c.finish_retrying(&mut command(None), |failed: &Failed| {
        // Only unittest has tests that can be asked for: __main__.Class.test.
        let name = failed.name.strip_prefix("__main__.")?;
        Some(command(Some(name)))
    })
}

/// The executable ones: what is not, others import.
fn programs(host: &str) -> Result<Vec<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = root().join(host).join("tests");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".py") && entry.metadata()?.permissions().mode() & 0o111 != 0 {
            found.push(name);
        }
    }
    ensure!(!found.is_empty(), "no test program in {}", folder.display());
    found.sort();
    Ok(found)
}
