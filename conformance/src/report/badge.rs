//! A badge, for a README: the verdict and the level.

use crate::verdict::{Report, Verdict};

/// About how wide a text of 11 px is.
fn width(text: &str) -> usize {
    let tenths: usize = text
        .chars()
        .map(|c| match c {
            'i' | 'l' | 'j' | '.' | ' ' | 't' | 'f' | 'r' | 'I' => 38,
            'm' | 'w' | 'M' | 'W' => 95,
            c if c.is_ascii_uppercase() => 74,
            _ => 65,
        })
        .sum();
    tenths.div_ceil(10)
}

/// The badge as SVG.
pub(crate) fn svg(r: &Report, whole: bool) -> String {
    let (right, colour) = match r.verdict {
        Verdict::Conformant if whole => (format!("conformant L{}", r.reached()), "#1a7f45"),
        // Some cases that pass make nothing conformant.
        Verdict::Conformant => ("selected cases pass".to_string(), "#5c636d"),
        Verdict::NotConformant => ("not conformant".to_string(), "#b3261e"),
        Verdict::Incomplete => ("incomplete".to_string(), "#8a5a00"),
        Verdict::SuiteError => ("suite error".to_string(), "#5c636d"),
    };
    let left = format!("proxy_golang {}", r.abi);
    let (a, b) = (width(&left) + 12, width(&right) + 12);
    let total = a + b;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" role="img" aria-label="{left}: {right}"><title>{left}: {right}</title><clipPath id="r"><rect width="{total}" height="20" rx="4"/></clipPath><g clip-path="url(#r)"><rect width="{a}" height="20" fill="#3b4048"/><rect x="{a}" width="{b}" height="20" fill="{colour}"/></g><g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11"><text x="{}" y="14" textLength="{}">{left}</text><text x="{}" y="14" textLength="{}">{right}</text></g></svg>
"##,
        a / 2,
        a - 12,
        a + b / 2,
        b - 12
    )
}
