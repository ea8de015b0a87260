//! Rules of the ABI that the header itself can break.

use super::cbind::{Member, Model, Struct};

const INTEGERS: &[&str] = &[
    "uint8_t", "uint16_t", "uint32_t", "uint64_t", "int32_t", "int64_t",
];
const TAGS: &[&str] = &[
    "[config-thread]",
    "[loop-thread]",
    "[any-thread]",
    "[in-call]",
];
/// Structs that are elements of arrays or parts of others, so that they cannot say their size.
const WITHOUT_SIZE: &[&str] = &[
    "pxg_str",
    "pxg_field",
    "pxg_buf",
    "pxg_op",
    "pxg_attr_want",
    "pxg_projection",
];

/// What is wrong, each with the rule it breaks.
pub(super) fn faults(model: &Model) -> Vec<String> {
    let mut faults = Vec::new();
    for s in &model.structs {
        faults.extend(of_struct(s));
    }
    let entry = &model.entry;
    faults.extend(of_member(entry).map(|f| format!("{}: {f}", entry.name)));
    for c in model.free.iter().filter(|c| c.c.ends_with("_ID")) {
        let id = c.text.trim_matches('"');
        let revision = id
            .rsplit_once('/')
            .map(|(_, revision)| revision.parse::<u32>());
        if !matches!(revision, Some(Ok(_))) || !(id.starts_with("pxg.") || id.starts_with("draft."))
        {
            faults.push(format!(
                "{}: the id {id} is no `pxg.<name>/<revision>` or `draft.<name>/<revision>` (PXG-EXT-001)",
                c.c
            ));
        }
    }
    faults
}

fn of_struct(s: &Struct) -> Vec<String> {
    let mut faults = Vec::new();
    let first = s.members.first().map(|m| m.decl.as_str());
    if first != Some("uint32_t size") && !WITHOUT_SIZE.contains(&s.c.as_str()) {
        faults.push(format!(
            "{} does not begin with `uint32_t size` (PXG-ABI-002)",
            s.c
        ));
    }
    for m in &s.members {
        faults.extend(of_member(m).map(|f| format!("{}.{}: {f}", s.c, m.name)));
    }
    faults
}

fn of_member(m: &Member) -> impl Iterator<Item = String> {
    let mut faults = Vec::new();
    let Some((result, rest)) = m.decl.split_once("(*") else {
        faults.extend(of_type(&m.decl, false));
        return faults.into_iter();
    };
    // A pointer to nothing in particular is for tables of extensions, which begin with their size.
    if result.trim() != "const void *" {
        faults.extend(of_type(result, true));
    }
    let parameters = rest.split_once(")(").map_or("", |(_, p)| p);
    for parameter in parameters.trim_end_matches(')').split(',') {
        faults.extend(of_type(parameter, true));
    }
    if !TAGS.iter().any(|tag| m.doc.contains(tag)) {
        faults.push(format!(
            "its documentation has none of the tags {TAGS:?} (PXG-THR-001)"
        ));
    }
    faults.into_iter()
}

/// A parameter, a result or a member: `const pxg_str *chunks`.
fn of_type(decl: &str, passed: bool) -> Option<String> {
    let pointer = decl.contains('*');
    let words = decl.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let base = words.filter(|w| !w.is_empty()).find(|w| *w != "const")?;
    match base {
        "void" if pointer => Some("an opaque value typed as a pointer (PXG-ABI-009)".into()),
        "void" => None,
        _ if INTEGERS.contains(&base) => None,
        _ if base.starts_with("pxg_") && (pointer || !passed) => None,
        _ if base.starts_with("pxg_") => Some(format!("{base} passed by value (PXG-ABI-009)")),
        _ => Some(format!("{base} is no fixed-width integer (PXG-ABI-006)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(decl: &str, doc: &str) -> String {
        let (name, decl, doc) = ("m".into(), decl.into(), doc.into());
        of_member(&Member { name, decl, doc }).collect()
    }

    #[test]
    fn the_header_breaks_no_rule() {
        assert_eq!(faults(&Model::read().unwrap()), Vec::<String>::new());
    }

    #[test]
    fn what_breaks_a_rule_is_named_with_it() {
        assert!(
            member("bool draining", "").contains("bool is no fixed-width integer (PXG-ABI-006)")
        );
        assert!(member("long n", "").contains("PXG-ABI-006"));
        assert!(member("void *ctx", "").contains("PXG-ABI-009"));
        let tag = "[any-thread]";
        assert!(
            member("int32_t (*f)(uint64_t ctx, pxg_str name)", tag)
                .contains("pxg_str passed by value")
        );
        assert!(member("void (*f)(void *ctx)", tag).contains("PXG-ABI-009"));
        assert!(member("pxg_str (*f)(uint64_t ctx)", tag).contains("passed by value"));
        assert!(member("void (*f)(uint64_t ctx)", "").contains("none of the tags"));
        assert_eq!(
            member(
                "const void *(*get_ext)(uint64_t ctx, const uint8_t *id, uint64_t len)",
                tag
            ),
            ""
        );
        let mut s = Struct {
            rust: "X".into(),
            c: "pxg_x".into(),
            doc: String::new(),
            members: Vec::new(),
        };
        assert!(of_struct(&s)[0].contains("PXG-ABI-002"));
        s.c = "pxg_op".into();
        assert!(of_struct(&s).is_empty());
    }
}
