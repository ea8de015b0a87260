//! Links in Markdown: every relative one leads to a file, and every anchor to a heading or an `id` in it. A page of the
//! book that its table of contents lacks is not rendered, so it counts as a broken link, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{Run, files};
use crate::root::root;

const BOOK: &str = "docs/src";

/// What a page offers and asks for.
#[derive(Default)]
struct Page {
    anchors: BTreeSet<String>,
    /// Line and destination.
    links: Vec<(usize, String)>,
}

pub(super) fn check(c: &Run) -> Result<()> {
    let mut pages = BTreeMap::new();
    for file in files(&[".md"])? {
        let text = std::fs::read_to_string(root().join(&file));
        let text = text.with_context(|| format!("read {}", file.display()))?;
        pages.insert(file, read(&text));
    }
    let mut broken = Vec::new();
    let mut links = 0;
    for (file, page) in &pages {
        for (line, link) in &page.links {
            links += 1;
            if let Err(why) = follow(file, link, &pages, |path| root().join(path).exists()) {
                broken.push(format!("{}:{line}: {link}: {why}", file.display()));
            }
        }
    }
    broken.extend(outside_the_book(&pages));
    c.say(&format!("{} files, {links} links", pages.len()))?;
    for line in &broken {
        c.say(line)?;
    }
    ensure!(broken.is_empty(), "{} broken links", broken.len());
    Ok(())
}

fn read(text: &str) -> Page {
    let mut page = Page::default();
    let mut heading: Option<String> = None;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let options =
        Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_STRIKETHROUGH;
    for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap_or_default());
                let n = times.entry(slug.clone()).or_default();
                page.anchors.insert(match *n {
                    0 => slug,
                    n => format!("{slug}-{n}"),
                });
                *n += 1;
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                let line = text[..range.start].matches('\n').count() + 1;
                page.links.push((line, dest_url.into_string()));
            }
            Event::Text(t) | Event::Code(t) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&t);
                }
            }
            Event::Html(html) | Event::InlineHtml(html) => {
                let mut rest = &*html;
                while let Some((_, behind)) = rest.split_once("id=\"") {
                    let (id, behind) = behind.split_once('"').unwrap_or((behind, ""));
                    page.anchors.insert(id.to_owned());
                    rest = behind;
                }
            }
            _ => {}
        }
    }
    page
}

/// The anchor that GitHub and mdBook make of a heading.
fn slug(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.collect()
}

fn follow(
    file: &Path,
    link: &str,
    pages: &BTreeMap<PathBuf, Page>,
    exists: impl Fn(&Path) -> bool,
) -> Result<(), String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    let target = if path.is_empty() {
        file.to_owned()
    } else {
        let folder = file.parent().unwrap_or(Path::new(""));
        normal(&folder.join(path)).ok_or("leads out of the repository")?
    };
    if !exists(&target) {
        return Err(format!("there is no {}", target.display()));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    match pages.get(&target) {
        Some(page) if page.anchors.contains(anchor) => Ok(()),
        Some(_) => Err(format!("{} has no anchor #{anchor}", target.display())),
        // A line of a source file.
        None if anchor.starts_with('L') => Ok(()),
        None => Err(format!("{} is no page with anchors", target.display())),
    }
}

/// The path without `.` and `..`; `None` if it leaves the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

fn outside_the_book(pages: &BTreeMap<PathBuf, Page>) -> Vec<String> {
    let contents = Path::new(BOOK).join("SUMMARY.md");
    let Some(summary) = pages.get(&contents) else {
        return Vec::new();
    };
    let listed: BTreeSet<_> = summary
        .links
        .iter()
        .filter_map(|(_, link)| normal(&Path::new(BOOK).join(link)))
        .collect();
    pages
        .keys()
        .filter(|p| p.starts_with(BOOK) && **p != contents && !listed.contains(*p))
        .map(|p| format!("{}: not listed in {}", p.display(), contents.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_and_anchors() {
        let text = "# 1.2 `Life` of a *guest*, in C++\n\n## Again\n\n## Again\n\n<a id=\"pxg-mem-001\"></a>\n\n\
                    [a](b.md#x) ![i](i.png)\n\n`[not](a-link.md)`\n\n| t |\n|---|\n| <a id=\"in-table\"></a>x |\n";
        let page = read(text);
        let anchors = [
            "12-life-of-a-guest-in-c",
            "again",
            "again-1",
            "pxg-mem-001",
            "in-table",
        ];
        for anchor in anchors {
            assert!(
                page.anchors.contains(anchor),
                "{anchor}: {:?}",
                page.anchors
            );
        }
        assert_eq!(
            page.links,
            [(9, "b.md#x".to_owned()), (9, "i.png".to_owned())]
        );

        let pages = BTreeMap::from([(PathBuf::from("spec/a.md"), page)]);
        let follow = |link| {
            let here = |p: &Path| ["spec/a.md", "x.rs"].iter().any(|e| p == Path::new(e));
            follow(Path::new("spec/b.md"), link, &pages, here)
        };
        for good in [
            "a.md",
            "a.md#again-1",
            "../spec/./a.md",
            "../x.rs#L3",
            "https://x.y/z#q",
        ] {
            assert_eq!(follow(good), Ok(()), "{good}");
        }
        assert!(follow("c.md").unwrap_err().contains("no spec/c.md"));
        assert!(
            follow("a.md#again-2")
                .unwrap_err()
                .contains("no anchor #again-2")
        );
        assert!(
            follow("../../a.md")
                .unwrap_err()
                .contains("out of the repository")
        );
        assert!(follow("#here").unwrap_err().contains("no spec/b.md"));
    }

    #[test]
    fn a_page_outside_the_table_of_contents_is_found() {
        let page = |text: &str| read(text);
        let pages = BTreeMap::from([
            (
                "docs/src/SUMMARY.md".into(),
                page("[a](a.md)\n[b](sub/b.md)\n"),
            ),
            ("docs/src/a.md".into(), page("")),
            ("docs/src/sub/b.md".into(), page("")),
            ("docs/src/lost.md".into(), page("")),
            ("spec/c.md".into(), page("")),
        ]);
        let found = outside_the_book(&pages);
        assert_eq!(
            found,
            ["docs/src/lost.md: not listed in docs/src/SUMMARY.md"]
        );
    }
}
