//! The C headers.

use anyhow::{Context, Result, ensure};

use super::cbind::{Constant, Member, Model};
use super::names::{self, HEADERS, Header, Piece};
use super::{Output, docs};

/// Widest line.
const WIDTH: usize = 118;
/// The most lines of the core header: it is to be read in one sitting.
const MOST_LINES: usize = 900;

const BANNER: &str = "/* SPDX-License-Identifier: Apache-2.0\n * Generated from proxy-golang-abi by `cargo xtask gen`: do not edit. */\n";

/// All headers, and the Go module's copies where that folder exists.
pub(super) fn outputs(model: &Model) -> Result<Vec<Output>> {
    every_item_once(model)?;
    let mut out = Vec::new();
    for header in HEADERS {
        let text = text(model, header)?;
        let lines = text.lines().count();
        ensure!(
            lines < MOST_LINES,
            "{} has {lines} lines; it must stay below {MOST_LINES}: shorten documentation",
            header.path
        );
        if super::exists(names::GO_COPIES) {
            let path = format!("{}/{}", names::GO_COPIES, header.go_name);
            out.push(Output::new(path, text.clone()));
        }
        out.push(Output::new(header.path, text));
    }
    Ok(out)
}

fn every_item_once(model: &Model) -> Result<()> {
    let mut placed = Vec::new();
    for piece in HEADERS.iter().flat_map(|h| h.pieces) {
        match piece {
            Piece::Free(list) => placed.extend_from_slice(list),
            Piece::Codes(name) | Piece::Struct(name) => placed.push(name),
            Piece::Section(_) | Piece::Text(_) => {}
        }
    }
    let codes = model.codes.iter().map(|c| &c.rust);
    let structs = model.structs.iter().map(|s| &s.rust);
    let free = model.free.iter().map(|c| &c.rust);
    for name in codes.chain(structs).chain(free) {
        let times = placed.iter().filter(|p| **p == name).count();
        ensure!(
            times == 1,
            "{name} stands {times} times in HEADERS of xtask/src/gen/names.rs, not once"
        );
    }
    Ok(())
}

fn text(model: &Model, header: &Header) -> Result<String> {
    let guard = header.guard;
    let mut out = format!(
        "{BANNER}\n{}\n#ifndef {guard}\n#define {guard}\n\n{}\n#ifdef __cplusplus\nextern \"C\" {{\n#endif\n",
        header.top, header.prelude
    );
    for piece in header.pieces {
        out.push('\n');
        match piece {
            Piece::Section(title) => {
                let dashes = "-".repeat(WIDTH - title.len() - 11);
                out.push_str(&format!("/* ---- {title} {dashes} */\n"));
            }
            Piece::Text(text) => out.push_str(text),
            Piece::Free(names) => {
                let mut list = Vec::new();
                for name in *names {
                    let found = model.free.iter().find(|c| c.rust == *name);
                    list.push(found.with_context(|| gone(name))?.clone());
                }
                out.push_str(&defines(&list));
            }
            Piece::Codes(name) => {
                let codes = model.codes.iter().find(|c| c.rust == *name);
                let codes = codes.with_context(|| gone(name))?;
                out.push_str(&docs::comment(&codes.doc, "", WIDTH));
                out.push_str(&defines(&codes.constants));
            }
            Piece::Struct(name) => {
                let s = model.structs.iter().find(|s| s.rust == *name);
                let s = s.with_context(|| gone(name))?;
                out.push_str(&docs::comment(&s.doc, "", WIDTH));
                out.push_str(&format!("typedef struct {} {{\n", s.c));
                out.push_str(&members(&s.members));
                out.push_str(&format!("}} {};\n", s.c));
            }
        }
    }
    if header.path == HEADERS[0].path {
        out.push('\n');
        out.push_str(&entry(&model.entry));
    }
    out.push_str(&format!(
        "\n#ifdef __cplusplus\n}}\n#endif\n\n#endif /* {guard} */\n"
    ));
    Ok(out)
}

fn gone(name: &str) -> String {
    format!("HEADERS of xtask/src/gen/names.rs places {name}, which proxy-golang-abi does not have")
}

fn defines(constants: &[Constant]) -> String {
    let rows: Vec<_> = constants
        .iter()
        .map(|c| (format!("#define {} {}", c.c, c.text), c.doc.as_str()))
        .collect();
    commented(&rows, "")
}

fn members(members: &[Member]) -> String {
    let mut rows = Vec::new();
    for m in members {
        let mut decl = format!("  {};", m.decl);
        // A long signature is broken at its arguments.
        if decl.len() > WIDTH {
            let (head, args) = decl.rsplit_once('(').expect("only signatures are long");
            let pad = " ".repeat(6);
            decl = format!("{head}(\n{pad}{args}");
        }
        rows.push((decl, m.doc.as_str()));
    }
    commented(&rows, "  ")
}

/// Widest declaration that has its comment behind it.
const SHORT: usize = 44;

/// Each row with its comment: behind it, and above it where the declaration is long.
fn commented(rows: &[(String, &str)], indent: &str) -> String {
    let short = |code: &str| code.len() <= SHORT && !code.contains('\n');
    let column = rows.iter().filter(|(code, _)| short(code));
    let column = column.map(|(code, _)| code.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (i, (code, doc)) in rows.iter().enumerate() {
        if short(code) {
            let lines = docs::wrap(&doc.replace("\n\n", "\n"), WIDTH - column - 7);
            let next = format!("\n{:column$}  * ", "");
            out.push_str(&format!("{code:column$} /* {} */\n", lines.join(&next)));
        } else {
            if i > 0 {
                out.push('\n');
            }
            out.push_str(&docs::comment(doc, indent, WIDTH));
            out.push_str(&format!("{code}\n"));
        }
    }
    out
}

fn entry(entry: &Member) -> String {
    let doc = docs::comment(&entry.doc, "", WIDTH);
    let prototype = entry
        .decl
        .replacen(&format!("(*{})", entry.name), names::ENTRY.1, 1);
    format!(
        "{doc}typedef {};\n\n\
         /* For a guest: the prototype of what it exports. Cgo writes its own: define PXG_NO_PROTOTYPES there. */\n\
         #ifndef PXG_NO_PROTOTYPES\n\
         #if defined(__GNUC__)\n\
         __attribute__((visibility(\"default\")))\n\
         #endif\n\
         {prototype};\n\
         #endif\n",
        entry.decl
    )
}
