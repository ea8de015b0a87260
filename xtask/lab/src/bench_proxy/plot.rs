//! The result as a picture: processor time per request over the plain proxy's, a panel for each section.

use std::fmt::Write as _;

use super::result::Row;
use super::{Class, Report, Section, Title};

const WIDTH: f64 = 960.0;
/// Where bars begin and end.
const LEFT: f64 = 310.0;
const RIGHT: f64 = 770.0;
const LINE: f64 = 24.0;
const BAR: f64 = 12.0;
const MARGIN: f64 = 24.0;

/// Colours for a light and for a dark page. The picture brings its background, for a page may have another one than the
/// reader's system says.
const STYLE: &str = "
  svg { font: 13px system-ui, sans-serif }
  .page { fill: #ffffff } text { fill: #1f2328 } .soft { fill: #59636e } .head { font-weight: 600; font-size: 14px }
  .grid { stroke: #d1d9e0 } .one { stroke: #59636e } .range { stroke: #1f2328; stroke-width: 1.5 }
  .guest { fill: #2f81f7 } .native { fill: #8c959f } .other { fill: #d29922 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #e6edf3 } .soft { fill: #9198a1 }
    .grid { stroke: #30363d } .one { stroke: #9198a1 } .range { stroke: #e6edf3 }
    .guest { fill: #388bfd } .native { fill: #6e7681 } .other { fill: #bb8009 }
  }
";

/// The picture.
pub(super) fn svg(report: &Report, variants: &[Title]) -> String {
    let proxy = report.about.proxy;
    let mut body = String::new();
    let mut y = MARGIN;
    let _ = write!(
        body,
        "{}{}",
        text(
            MARGIN,
            y + 4.0,
            "head",
            &format!("Processor time per request, as a ratio to plain {proxy}")
        ),
        legend(y + LINE, proxy)
    );
    y += 2.0 * LINE;
    for section in report.about.sections {
        let rows = report.rows.iter().filter(|row| row.section == section.name);
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            body += &panel(section, &rows, variants, &mut y);
        }
    }
    let foot = format!("{}; {}", report.machine, report.versions.join(", "));
    y += LINE;
    body += &text(MARGIN, y, "soft", &foot);
    y += LINE * 0.8;
    let foot = format!(
        "median of {} paired rounds; the line over a bar is the 95 % interval of the median",
        report.rounds
    );
    body += &text(MARGIN, y, "soft", &foot);
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" \
         width=\"{WIDTH:.0}\" height=\"{height:.0}\">\n<title>Processor time per request over plain \
         {proxy}'s</title>\n<style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n"
    )
}

fn legend(y: f64, proxy: &str) -> String {
    let native = format!("{proxy}'s own, native");
    let mut all = String::new();
    let mut x = MARGIN;
    for (class, what, width) in [
        ("guest", "guests of proxy_golang", 180.0),
        ("native", native.as_str(), 160.0),
        ("other", "the alternatives", 140.0),
    ] {
        let _ = writeln!(
            all,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{:.1}\" width=\"12\" height=\"12\"/>",
            y - 6.0
        );
        all += &text(x + 18.0, y + 4.0, "", what);
        x += width;
    }
    all
}

fn class(row: &Row, variants: &[Title]) -> &'static str {
    let variant = row.name.rsplit('/').next();
    let found = variants.iter().find(|v| Some(v.name) == variant);
    match found.map(|v| v.class) {
        Some(Class::Native) => "native",
        Some(Class::Guest) => "guest",
        _ => "other",
    }
}

fn panel(section: &Section, rows: &[&Row], variants: &[Title], y: &mut f64) -> String {
    let mut all = String::new();
    *y += LINE;
    all += &text(MARGIN, *y + 4.0, "head", section.title);
    *y += LINE;
    let greatest = rows
        .iter()
        .map(|row| row.cpu.interval[1].max(row.cpu.median));
    let (top, step) = scale(greatest.fold(1.1, f64::max));
    // A little below 1 is within the noise and has its place, too.
    let least = rows
        .iter()
        .map(|row| row.cpu.interval[0])
        .fold(1.0, f64::min);
    let bottom = least.min(1.0 - (top - 1.0) * 0.04);
    let at = |ratio: f64| LEFT + (ratio - bottom) / (top - bottom) * (RIGHT - LEFT);
    #[allow(clippy::cast_precision_loss)] // a number of rows
    let end = *y + LINE * rows.len() as f64;
    let mut tick = 1.0;
    while tick <= top + step / 2.0 {
        let class = if tick == 1.0 { "one" } else { "grid" };
        let _ = writeln!(
            all,
            "<line class=\"{class}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{end:.1}\"/>",
            at(tick),
            *y - 6.0
        );
        let digits = if step < 0.1 { 2 } else { 1 };
        let _ = writeln!(
            all,
            "<text class=\"soft\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{tick:.digits$}</text>",
            at(tick),
            end + 14.0
        );
        tick += step;
    }
    for row in rows {
        let middle = *y + LINE / 2.0;
        all += &text(MARGIN, middle + 4.0, "", row.title);
        let (from, to) = (
            at(1.0).min(at(row.cpu.median)),
            at(1.0).max(at(row.cpu.median)),
        );
        let _ = writeln!(
            all,
            "<rect class=\"{}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>",
            class(row, variants),
            middle - BAR / 2.0,
            (to - from).max(1.0)
        );
        let [low, high] = row.cpu.interval.map(at);
        let _ = writeln!(
            all,
            "<path class=\"range\" fill=\"none\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {0:.1}V{1:.1}M{high:.1} \
             {0:.1}V{1:.1}\"/>",
            middle - 4.0,
            middle + 4.0
        );
        let [low, high] = row.cpu.interval;
        let value = format!("{:.3}  [{low:.3}, {high:.3}]", row.cpu.median);
        all += &text(RIGHT + 20.0, middle + 4.0, "", &value);
        *y += LINE;
    }
    *y += LINE;
    all
}

/// Where an axis from 1 to at least `greatest` ends, and how far its ticks are apart.
fn scale(greatest: f64) -> (f64, f64) {
    let steps = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
    let step = steps
        .into_iter()
        .find(|step| (greatest - 1.0) / step <= 8.0);
    let step = step.unwrap_or((greatest - 1.0) / 8.0);
    (1.0 + ((greatest - 1.0) / step).ceil() * step, step)
}

fn text(x: f64, y: f64, class: &str, text: &str) -> String {
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{escaped}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_reaches_beyond_the_greatest_value() {
        for greatest in [1.1, 1.93, 2.6, 1.3001, 40.0, 300.0] {
            let (top, step) = scale(greatest);
            let ticks = (top - 1.0) / step;
            assert!(top >= greatest && ticks < 9.5, "{greatest}: {top} {step}");
        }
    }

    #[test]
    fn text_is_escaped() {
        assert!(text(0.0, 0.0, "", "a < b & c").contains("a &lt; b &amp; c"));
    }
}
