//! cbindgen's reading of the ABI crate, as data, checked against the crate's source and its layout table.

use anyhow::{Context, Result, bail, ensure};
use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};
use proxy_golang_abi::layout::STRUCTS;

use super::docs;
use super::names::{self, FREE, Form, NEWTYPES, NOT_IN_C};
use super::source::Source;

/// A constant in C.
#[derive(Clone)]
pub(super) struct Constant {
    /// Path in Rust: `Action::MORE`.
    pub(super) rust: String,
    /// Name in C.
    pub(super) c: String,
    /// As it is written in C.
    pub(super) text: String,
    /// Its value; `None` for a string.
    pub(super) value: Option<i64>,
    pub(super) doc: String,
}

/// A newtype: an integer in C.
pub(super) struct Codes {
    pub(super) rust: String,
    pub(super) doc: String,
    pub(super) constants: Vec<Constant>,
}

/// A member of a struct in C: `const pxg_str *chunks`, or a pointer to a function.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) decl: String,
    pub(super) doc: String,
}

/// A struct in C.
pub(super) struct Struct {
    pub(super) rust: String,
    pub(super) c: String,
    pub(super) doc: String,
    pub(super) members: Vec<Member>,
}

/// The ABI in C.
pub(super) struct Model {
    pub(super) codes: Vec<Codes>,
    pub(super) structs: Vec<Struct>,
    pub(super) free: Vec<Constant>,
    /// `int32_t (*pxg_guest_init_v1_fn)(...)`.
    pub(super) entry: Member,
}

impl Model {
    /// Reads the crate.
    pub(super) fn read() -> Result<Self> {
        let source = Source::read(&crate::root::root().join("proxy-golang-abi/src/lib.rs"))?;
        let text = run_cbindgen(&source)?;
        let mut model = parse(&text)?;
        for (rust, value, doc) in &source.strings {
            model.free.push(Constant {
                rust: rust.clone(),
                c: free_name(rust)?,
                text: format!("\"{value}\""),
                value: None,
                doc: doc.clone(),
            });
        }
        // cbindgen's order follows the uses: a new member would move constants.
        let place = |rust: &str| NEWTYPES.iter().position(|n| n.rust == rust);
        model.codes.sort_by_key(|c| place(&c.rust));
        let place = |rust: &str| FREE.iter().position(|n| n.0 == rust);
        model.free.sort_by_key(|c| place(&c.rust));
        model.nothing_dropped(&source)?;
        model.same_layout()?;
        model.in_c_words()?;
        Ok(model)
    }

    /// All constants, in no particular order of headers.
    pub(super) fn constants(&self) -> impl Iterator<Item = &Constant> {
        let of_codes = self.codes.iter().flat_map(|c| &c.constants);
        self.free.iter().chain(of_codes)
    }

    fn nothing_dropped(&self, source: &Source) -> Result<()> {
        for (name, members) in &source.structs {
            let found = self.structs.iter().find(|s| s.rust == *name);
            let found = found.with_context(|| dropped("struct", name))?;
            let names: Vec<_> = found.members.iter().map(|m| m.name.clone()).collect();
            ensure!(
                names == *members,
                "{name}: the header has the members {names:?}, the source has {members:?}"
            );
        }
        for (name, constants) in &source.newtypes {
            let found = self.codes.iter().find(|s| s.rust == *name);
            let found = found.with_context(|| dropped("newtype", name))?;
            for constant in constants {
                let full = format!("{name}::{constant}");
                let there = found.constants.iter().any(|c| c.rust == full);
                ensure!(there, dropped("constant", &full));
            }
        }
        for name in &source.free {
            let there = self.free.iter().any(|c| c.rust == *name);
            ensure!(there, dropped("constant", name));
        }
        for name in &source.aliases {
            let there = name == names::ENTRY.0 || NOT_IN_C.iter().any(|(n, _)| n == name);
            ensure!(there, dropped("type alias", name));
        }
        Ok(())
    }

    fn same_layout(&self) -> Result<()> {
        for s in &self.structs {
            let layout = STRUCTS.iter().find(|l| l.rust == s.rust);
            let layout =
                layout.with_context(|| format!("layout::STRUCTS lacks the struct {}", s.rust))?;
            ensure!(
                layout.c == s.c,
                "layout::STRUCTS calls {} {}, the header {}",
                s.rust,
                layout.c,
                s.c
            );
            let in_table: Vec<_> = layout.fields.iter().map(|f| f.name).collect();
            let in_header: Vec<_> = s.members.iter().map(|m| m.name.as_str()).collect();
            ensure!(
                in_table == in_header,
                "{}: layout::STRUCTS has the members {in_table:?}, the source {in_header:?}",
                s.rust
            );
        }
        ensure!(
            self.structs.len() == STRUCTS.len(),
            "layout::STRUCTS has a struct that is not in the source"
        );
        Ok(())
    }

    /// Turns links to Rust items in the documentation into C names.
    fn in_c_words(&mut self) -> Result<()> {
        let mut names = docs::Names::default();
        for constant in self.constants() {
            names.add(&constant.rust, &constant.c);
        }
        for s in &self.structs {
            names.add(&s.rust, &s.c);
        }
        names.add(names::ENTRY.0, names::ENTRY.1);
        for constant in &mut self.free {
            constant.doc = names.to_c(&constant.doc, &constant.rust)?;
        }
        for codes in &mut self.codes {
            codes.doc = names.to_c(&codes.doc, &codes.rust)?;
            for constant in &mut codes.constants {
                constant.doc = names.to_c(&constant.doc, &constant.rust)?;
            }
        }
        for s in &mut self.structs {
            s.doc = names.to_c(&s.doc, &s.rust)?;
            for m in &mut s.members {
                m.doc = names.to_c(&m.doc, &format!("{}.{}", s.rust, m.name))?;
            }
        }
        self.entry.doc = names.to_c(&self.entry.doc, names::ENTRY.0)?;
        Ok(())
    }
}

fn dropped(what: &str, name: &str) -> String {
    format!(
        "the {what} {name} is public in proxy-golang-abi and missing in the header: \
         name it in xtask/src/gen/names.rs, or make it something cbindgen can write"
    )
}

fn run_cbindgen(source: &Source) -> Result<String> {
    let mut config = Config {
        language: Language::C,
        style: Style::Type,
        no_includes: true,
        documentation_style: DocumentationStyle::C99,
        line_length: 1_000_000,
        ..Config::default()
    };
    let structs = source.structs.iter().map(|s| s.0.clone());
    let newtypes = source.newtypes.iter().map(|s| s.0.clone());
    config.export.include = structs
        .chain(newtypes)
        .chain(source.aliases.clone())
        .collect();
    let mut builder = Builder::new().with_config(config);
    for file in &source.files {
        builder = builder.with_src(file);
    }
    let bindings = builder
        .generate()
        .context("cbindgen could not read proxy-golang-abi")?;
    let mut bytes = Vec::new();
    bindings.write(&mut bytes);
    String::from_utf8(bytes).context("cbindgen writes UTF-8")
}

/// Reads what cbindgen writes: comment lines, then a `typedef` or a `#define`.
fn parse(text: &str) -> Result<Model> {
    let mut codes: Vec<(Codes, String)> = Vec::new();
    let mut structs = Vec::new();
    let mut free = Vec::new();
    let mut entry = None;
    let mut doc: Vec<&str> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("//") {
            doc.push(comment.trim());
            continue;
        }
        let doc = std::mem::take(&mut doc).join("\n");
        if line.trim().is_empty() {
            continue;
        }
        if line == "typedef struct {" {
            structs.push(parse_struct(&mut lines, doc)?);
        } else if let Some(rest) = line.strip_prefix("typedef ") {
            let rest = rest.trim_end_matches(';');
            if rest.contains("(*") {
                let name = format!("{}_fn", names::ENTRY.1);
                let decl = rest.replace(names::ENTRY.0, &name);
                ensure!(decl != rest, "a function type that names.rs lacks: {rest}");
                entry = Some(Member { name, decl, doc });
            } else if !rest.ends_with(']') {
                let (int, rust) = rest.rsplit_once(' ').context("a typedef has two words")?;
                let group = Codes {
                    rust: rust.to_owned(),
                    doc,
                    constants: Vec::new(),
                };
                codes.push((group, int.to_owned()));
            }
        } else if let Some(rest) = line.strip_prefix("#define ") {
            let (name, value) = rest
                .split_once(' ')
                .with_context(|| format!("a macro without a value: {line}"))?;
            constant(&mut codes, &mut free, name, value, doc)?;
        } else {
            bail!("cbindgen wrote a line that xtask does not know: {line}");
        }
    }
    let mut model = Model {
        codes: Vec::new(),
        structs,
        free,
        entry: entry.context("the entry function's type is missing")?,
    };
    let ints: Vec<_> = codes
        .iter()
        .map(|(c, int)| (c.rust.clone(), int.clone()))
        .collect();
    model.codes = codes.into_iter().map(|(c, _)| c).collect();
    let structs = model.structs.iter_mut().flat_map(|s| &mut s.members);
    for m in structs.chain([&mut model.entry]) {
        m.decl = c_types(&m.decl, &ints);
    }
    Ok(model)
}

fn parse_struct<'a>(lines: &mut impl Iterator<Item = &'a str>, doc: String) -> Result<Struct> {
    let mut members = Vec::new();
    let mut member_doc = Vec::new();
    for line in lines {
        if let Some(rust) = line.strip_prefix("} ") {
            let rust = rust.trim_end_matches(';').to_owned();
            return Ok(Struct {
                c: names::c_struct(&rust),
                rust,
                doc,
                members,
            });
        }
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("//") {
            member_doc.push(comment.trim());
            continue;
        }
        let decl = line.trim_end_matches(';').to_owned();
        members.push(Member {
            name: member_name(&decl)?,
            decl,
            doc: std::mem::take(&mut member_doc).join("\n"),
        });
    }
    bail!("a struct without an end in cbindgen's output")
}

fn member_name(decl: &str) -> Result<String> {
    let name = match decl.split_once("(*") {
        Some((_, rest)) => rest.split_once(')').map(|(name, _)| name),
        None => decl
            .split('[')
            .next()
            .and_then(|d| d.rsplit([' ', '*']).next()),
    };
    Ok(name
        .with_context(|| format!("a member without a name: {decl}"))?
        .to_owned())
}

fn constant(
    codes: &mut [(Codes, String)],
    free: &mut Vec<Constant>,
    name: &str,
    value: &str,
    doc: String,
) -> Result<()> {
    let group = codes.iter_mut().find_map(|(c, _)| {
        let rest = name.strip_prefix(&c.rust)?.strip_prefix('_')?;
        Some((c, rest.to_owned()))
    });
    let Some((group, short)) = group else {
        let by_us = |full: &str| full.replace("::", "_") == name;
        if NOT_IN_C.iter().any(|(full, _)| by_us(full)) {
            return Ok(());
        }
        free.push(Constant {
            rust: name.to_owned(),
            c: free_name(name)?,
            text: value.to_owned(),
            value: Some(integer(value)?),
            doc,
        });
        return Ok(());
    };
    let rule = NEWTYPES.iter().find(|n| n.rust == group.rust);
    let rule = rule.with_context(|| {
        format!(
            "{}: give the newtype a prefix in NEWTYPES of xtask/src/gen/names.rs",
            group.rust
        )
    })?;
    let special = rule.special.iter().find(|(n, _)| *n == short);
    let number = integer(value)?;
    group.constants.push(Constant {
        rust: format!("{}::{short}", group.rust),
        c: special.map_or_else(|| format!("{}{short}", rule.prefix), |s| s.1.to_owned()),
        text: match rule.form {
            Form::Signed if number < 0 => format!("({number})"),
            Form::Signed => number.to_string(),
            Form::Unsigned => format!("{number}u"),
            Form::Hex(digits) => format!("0x{number:0digits$x}u"),
        },
        value: Some(number),
        doc,
    });
    Ok(())
}

fn integer(value: &str) -> Result<i64> {
    value
        .parse()
        .with_context(|| format!("a constant that is no whole number: {value}"))
}

fn free_name(rust: &str) -> Result<String> {
    FREE.iter()
        .find(|(r, _)| *r == rust)
        .map(|(_, c)| (*c).to_owned())
        .with_context(|| format!("{rust}: give the constant a C name in FREE of names.rs"))
}

/// Replaces the crate's type names by C ones: newtypes by their integers, structs by their C names.
fn c_types(decl: &str, ints: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in decl.chars().chain(['\0']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            let int = ints.iter().find(|(rust, _)| *rust == word);
            let known = STRUCTS.iter().find(|l| l.rust == word);
            match (int, known) {
                (Some((_, int)), _) => out.push_str(int),
                (None, Some(layout)) => out.push_str(layout.c),
                (None, None) => out.push_str(&word),
            }
            word.clear();
        }
        if c != '\0' {
            out.push(c);
        }
    }
    out
}
