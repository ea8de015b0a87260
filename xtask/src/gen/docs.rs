//! Documentation: from rustdoc's words to a C reader's.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// Rust paths and their C names.
#[derive(Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    pub(super) fn add(&mut self, rust: &str, c: &str) {
        self.0.insert(rust.to_owned(), c.to_owned());
    }

    /// Rewrites links and escapes. `place` names the item in errors.
    pub(super) fn to_c(&self, doc: &str, place: &str) -> Result<String> {
        let mut out = String::new();
        let mut rest = doc;
        while let Some(start) = rest.find("[`") {
            out.push_str(&rest[..start]);
            let link = &rest[start + 2..];
            let end = link
                .find("`]")
                .with_context(|| format!("{place}: a link without an end"))?;
            let name = link[..end].trim_start_matches("crate::");
            match self.0.get(name) {
                Some(c) => out.push_str(c),
                None => bail!("{place}: the link [`{name}`] has no C name"),
            }
            rest = &link[end + 2..];
        }
        out.push_str(rest);
        ensure!(
            !out.contains("*/") && !out.contains("/*"),
            "{place}: the documentation would open or close a C comment"
        );
        Ok(out.replace("\\[", "[").replace("\\]", "]"))
    }
}

/// Breaks `doc` into lines of at most `width` characters; an empty line parts paragraphs.
pub(super) fn wrap(doc: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (i, paragraph) in doc.split("\n\n").enumerate() {
        if i > 0 {
            lines.push(String::new());
        }
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.len() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// A C comment of its own lines.
pub(super) fn comment(doc: &str, indent: &str, width: usize) -> String {
    let lines = wrap(doc, width - indent.len() - 6);
    let mut out = format!("{indent}/* ");
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
            out.push_str(indent);
            out.push_str(if line.is_empty() { " *" } else { " * " });
        }
        out.push_str(line);
    }
    out.push_str(" */\n");
    out
}
