//! `cargo xtask gen`: writes what is generated, or checks that it is up to date.

mod cbind;
mod constants_test;
mod differences;
mod docs;
mod header;
mod layout_check;
mod lint;
mod lua;
mod names;
mod record;
mod rules;
mod source;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::root::root;

/// Generate the C headers, the layout record, the rule tables, and everything else that is derived
///
/// Sources: proxy-golang-abi (headers, layout, LuaJIT declarations), spec/rules/*.toml (rule tables). Generated files
/// are committed. After a change of the ABI describe it in spec/ and run with --accept-abi.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a generated file is not what it would be
    #[arg(long)]
    check: bool,
    /// Renew the ABI fingerprint in spec/abi/README.md; WHY goes to spec/abi/history.md
    #[arg(long, value_name = "WHY", conflicts_with = "check")]
    accept_abi: Option<String>,
}

/// A generated file.
pub(crate) struct Output {
    /// Relative to the workspace.
    path: String,
    text: String,
}

impl Output {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        Self { path, text }
    }
}

/// What a generator made, and what is wrong although it could make that.
#[derive(Default)]
struct Made {
    outputs: Vec<Output>,
    complaints: Vec<String>,
}

type Generator = fn(&Args) -> Result<Made>;

/// The generators. A new one is one line here; a file that is what a command prints is one line in `PRINTED`.
const GENERATORS: &[(&str, Generator)] = &[
    ("abi", abi),
    ("rules", rules),
    ("printed", printed),
    ("differences", |_| differences::made()),
];

/// A file that is what pxg-host prints.
const SCHEMA: &str = "host-ref/config.schema.json";

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut complaints = Vec::new();
    let mut files = 0;
    for (name, generator) in GENERATORS {
        let made = generator(args).with_context(|| format!("gen {name}"))?;
        complaints.extend(made.complaints);
        for output in made.outputs {
            files += 1;
            if let Some(complaint) = settle(&output, args.check)? {
                complaints.push(complaint);
            }
        }
    }
    if complaints.is_empty() {
        let is = if args.check { "are" } else { "are now" };
        println!("{files} generated files {is} up to date");
        return Ok(());
    }
    bail!("{}", complaints.join("\n"))
}

/// Writes the file if it differs, or says that it differs.
fn settle(output: &Output, check: bool) -> Result<Option<String>> {
    let path = root().join(&output.path);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    if old == output.text && path.exists() {
        return Ok(None);
    }
    if check {
        let (line, is, want) = first_difference(&old, &output.text);
        return Ok(Some(format!(
            "{}:{line}: not what `cargo xtask gen` writes: run it and commit the file\n  is:   {is}\n  want: {want}",
            output.path
        )));
    }
    let folder = path.parent().context("a file is in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    std::fs::write(&path, &output.text).with_context(|| format!("write {}", output.path))?;
    println!("wrote {}", output.path);
    Ok(None)
}

fn first_difference<'a>(is: &'a str, want: &'a str) -> (usize, &'a str, &'a str) {
    let (mut is, mut want) = (is.lines(), want.lines());
    let mut line = 1;
    loop {
        match (is.next(), want.next()) {
            (Some(a), Some(b)) if a == b => line += 1,
            (a, b) => return (line, a.unwrap_or("(end)"), b.unwrap_or("(end)")),
        }
    }
}

fn abi(args: &Args) -> Result<Made> {
    let model = cbind::Model::read()?;
    let mut made = record::made(&model, args.accept_abi.as_deref())?;
    made.complaints.extend(lint::faults(&model));
    made.outputs.extend(header::outputs(&model)?);
    made.outputs.push(layout_check::output());
    made.outputs.push(lua::output(&model)?);
    made.outputs.push(constants_test::output(&model));
    Ok(made)
}

fn rules(_: &Args) -> Result<Made> {
    rules::made()
}

/// By the program that `PXG_HOST` names, else by one that is built for it.
fn printed(_: &Args) -> Result<Made> {
    let mut command = match std::env::var_os("PXG_HOST") {
        Some(program) => std::process::Command::new(program),
        None => {
            let mut cargo = std::process::Command::new("cargo");
            cargo.args(["run", "--quiet", "--package", "proxy-golang-host"]);
            cargo.args(["--bin", "pxg-host", "--"]);
            cargo
        }
    };
    let done = command
        .arg("schema")
        .current_dir(root())
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    if !done.status.success() {
        bail!("{command:?} for {SCHEMA}: {}", done.status);
    }
    // Sorted: which order the program prints depends on the features that its dependencies were built with.
    let mut schema: serde_json::Value =
        serde_json::from_slice(&done.stdout).with_context(|| format!("{SCHEMA}: no JSON"))?;
    schema.sort_all_objects();
    let text = format!("{schema:#}\n");
    let mut made = Made::default();
    made.outputs.push(Output::new(SCHEMA, text));
    Ok(made)
}

fn exists(path: &str) -> bool {
    root().join(path).exists()
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"))
}

/// The files of a folder, sorted; none if there is no such folder. Paths are relative to the workspace.
fn list(folder: &str) -> Result<Vec<String>> {
    if !exists(folder) {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join(folder))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().map(Path::new).map(Path::to_string_lossy);
            files.push(format!("{folder}/{}", name.unwrap_or_default()));
        }
    }
    files.sort();
    Ok(files)
}
