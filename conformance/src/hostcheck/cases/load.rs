//! Libraries: checked, loaded, refused, kept.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::own::{self, Own};
use super::prelude::*;

const PLAIN: &[(&str, &str)] = &[("a", "subscribe all\npend none\n")];

/// A guest with a symbol that it exports and nobody else may find.
const MARKED: &str = r#"
#include "proxy_golang.h"
int pxg_only_of_marked;
static const pxg_str filters[] = {{(const uint8_t *)"probe", 5, 0}};
static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) { return out->config = 1, PXG_OK; }
static void config_drop(uint64_t ctx, uint64_t config) {}
static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) { out->action = PXG_ACT_CONTINUE; }
static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {}
static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {}
int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  out->size = sizeof *out, out->major = host->major, out->flags = PXG_GUEST_ABORTS;
  out->filters = filters, out->n_filters = 1, out->on_config_new = config_new, out->on_config_drop = config_drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}
"#;

/// The functions that were called, from the folders of this case's hosts.
fn calls(cx: &Cx) -> Vec<String> {
    let mut names = Vec::new();
    for dir in std::fs::read_dir(&cx.shared().dir)
        .into_iter()
        .flatten()
        .flatten()
    {
        let own = dir
            .file_name()
            .to_string_lossy()
            .starts_with(&cx.name().replace('/', "-"));
        if own && let Ok(records) = crate::hostcheck::record::read_dir(&dir.path()) {
            names.extend(records.into_iter().map(|r| r.function));
        }
    }
    names
}

/// The lines that name `file` in the map of a process of the host's; None if it has ended.
fn mapped(pid: u32, file: &str) -> Option<Vec<String>> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let of_file = all.lines().filter(|l| l.contains(file));
    (!all.is_empty()).then(|| of_file.map(str::to_string).collect())
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "load/symbols",
            1,
            &["PXG-LOAD-003"],
            "a symbol that nobody has is found at load; a library's own symbols are found by nobody else",
        )
        .script("a request-headers: dlsym pxg_only_of_marked; continue")
        .alone()
        .run(|cx| async move {
            let workshop = &cx.shared().workshop;
            // A call that is only bound when it is made, if the host lets it.
            let lazy = workshop.library(
                "lazy",
                "#include \"proxy_golang.h\"\nint nobody_has_this(void);\n\
                 int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *g) {\n\
                   if (!h->size) return nobody_has_this();\n  (void)g;\n  return PXG_E_INTERNAL;\n}\n",
                &["-Wl,-z,lazy"],
            )?;
            let setup = own::chain_of(&cx, &lazy, PLAIN)?;
            own::refused(&cx, "PXG-LOAD-003", "an unresolved symbol", &setup, &["nobody_has_this"]).await?;
            let marked = workshop.library("marked", MARKED, &[])?;
            let mut setup = own::chain(&cx, PLAIN)?;
            own::also(&cx, &mut setup, ("marked", &marked), "two", "");
            let own = Own::start(&cx, &setup).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            let found: Vec<_> = x.records.iter().filter(|r| r.function == "dlsym").filter_map(|r| r.status).collect();
            cx.equal("PXG-LOAD-003", "the library's symbol, looked for in the whole process", found, vec![-8]);
            own.end("PXG-LOAD-003").await
        }),
        Case::new(
            "load/other-file",
            1,
            &["PXG-LOAD-005", "PXG-LOAD-007"],
            "another file under the same path is another library; the old one stays as it was",
        )
        .script("a request-headers: continue")
        .alone()
        .not_layered("what is under the known path is the layer, whose file stays the same")
        .run(|cx| async move {
            let workshop = &cx.shared().workshop;
            let place = own::variant(&cx, "library=updated+inode=1")?;
            let setup = own::chain_of(&cx, &place, PLAIN)?;
            let own = Own::start(&cx, &setup).await?;
            let x = own.cx.exchange(Request::get("/")).await?;
            let Some(pid) = x.records.first().map(|r| r.pid) else {
                anyhow::bail!("no event came");
            };
            let name = place.display().to_string();
            let before = mapped(pid, &name).map_or(0, |m| m.len());
            let inode = std::fs::metadata(&place)?.ino();
            let next = workshop.dir().join("next");
            std::fs::copy(&cx.shared().probe, &next)?;
            std::fs::rename(&next, &place)?;
            let taken = own.reload(&setup).await?;
            cx.equal("PXG-LOAD-007", "the reload with another file under the same path", taken, Some(true));
            let x = own.cx.exchange(Request::get("/")).await?;
            // Each process of the host loads what it needs.
            let mut loads = BTreeMap::new();
            for r in own.all().iter().filter(|r| r.is("init", Edge::Enter)) {
                *loads.entry((r.pid, r.library.clone())).or_insert(0) += 1;
            }
            let files: BTreeSet<_> = loads.keys().map(|(_, library)| library.clone()).collect();
            let all_once = files.len() == 2 && loads.values().all(|n| *n == 1);
            cx.check("PXG-LOAD-007", all_once, || format!("libraries that were initialised: {loads:?}, expected two, each once in a process"));
            // The new file may be loaded under another text of its path, and then has no name in the records.
            let first = Some(format!("updated-{inode}"));
            let by: Vec<_> = x.records.iter().filter(|r| r.is("on_event", Edge::Enter)).map(|r| r.library.clone()).collect();
            cx.check("PXG-LOAD-007", !by.is_empty() && !by.contains(&first), || {
                format!("streams after the update run the library {by:?}, expected another than {first:?}")
            });
            let old = format!(" {inode} ");
            // A process of the host that served the old one may have ended.
            let kept = mapped(pid, &name).map(|m| m.iter().filter(|l| l.contains(&old)).count());
            cx.check("PXG-LOAD-005", before > 0 && kept.is_none_or(|n| n >= before), || {
                format!("{before} mappings of the old file before the update, {kept:?} after it")
            });
            let unloaded: Vec<_> = own.all().iter().filter(|r| r.function == "unload").map(|r| r.pid).collect();
            let in_use = unloaded.iter().filter(|p| x.records.iter().any(|r| r.pid == **p) || **p == own.running.host.pid).count();
            cx.equal("PXG-LOAD-005", "destructors that ran in processes that go on", in_use, 0);
            own.end("PXG-LOAD-005").await
        }),
        Case::new(
            "load/removed",
            1,
            &["PXG-LOAD-005"],
            "a library that no configuration names any more stays loaded",
        )
        .script("* request-headers: continue")
        .alone()
        .run(|cx| async move {
            let other = own::variant(&cx, "library=second")?;
            let alone = own::chain(&cx, PLAIN)?;
            let mut both = alone.clone();
            own::also(&cx, &mut both, ("other", &other), "two", "subscribe all\npend none\n");
            let own = Own::start(&cx, &both).await?;
            let x = own.cx.exchange(Request::get("/two")).await?;
            cx.equal("PXG-LOAD-009", "the reload", own.reload(&alone).await?, Some(true));
            own.cx.exchange(Request::get("/")).await?;
            let dropped = || own.all().iter().any(|r| r.is("on_config_drop", Edge::Exit) && r.library.is_some());
            own.cx.wait("PXG-CFG-005", "on_config_drop of what was removed", dropped).await;
            let name = other.display().to_string();
            // Of a process that has ended nothing is to be seen.
            let kept = x.records.first().and_then(|r| mapped(r.pid, &name)).is_none_or(|m| !m.is_empty());
            cx.check("PXG-LOAD-005", kept, || {
                "the library is not mapped any more after its last configuration was removed".into()
            });
            own.end("PXG-LOAD-005").await
        }),
        Case::new(
            "load/failures",
            1,
            &["PXG-LOAD-009"],
            "a failed init and a refused configuration are told with file, status and text, and nothing is served",
        )
        .alone()
        .run(|cx| async move {
            for (status, name) in [("-7", "VERSION"), ("-4", "UNSUPPORTED"), ("-9", "INTERNAL"), ("-1000", "INTERNAL")] {
                let lib = own::variant(&cx, &format!("init={status}"))?;
                let file = lib.file_name().map(|f| regex::escape(&f.to_string_lossy())).unwrap_or_default();
                let setup = own::chain_of(&cx, &lib, PLAIN)?;
                own::refused(&cx, "PXG-LOAD-009", &format!("init answers {status}"), &setup,
                    &[&file, name, "this probe is there to refuse"]).await?;
            }
            for (status, name) in [("-3", "ARG"), ("-4", "UNSUPPORTED"), ("-8", "NOTFOUND"), ("-9", "INTERNAL"), ("-1000", "INTERNAL")] {
                let head = format!("refuse {status} its\\sown\\swords\n");
                let setup = own::chain(&cx, &[("a", &head)])?;
                own::refused(&cx, "PXG-LOAD-009", &format!("on_config_new answers {status}"), &setup,
                    &["pxg_probe", name, "its own words"]).await?;
            }
            let calls = calls(&cx);
            cx.check("PXG-LOAD-009", !calls.iter().any(|c| c == "on_event"), || "a refused library was called".into());
            Ok(())
        }),
        Case::new(
            "load/refused-update",
            1,
            &["PXG-LOAD-009", "PXG-CFG-001"],
            "an update that is refused leaves the old configuration serving, and is told",
        )
        .script("a request-headers: set x-served yes")
        .needs(&[Feature::CONFIG_REJECT])
        .alone()
        .run(|cx| async move {
            let good = own::chain(&cx, PLAIN)?;
            let own = Own::start(&cx, &good).await?;
            let lib = own::variant(&cx, "init=-9")?;
            for (what, setup, words) in [
                ("a refused configuration", own::chain(&cx, &[("a", "refuse -3 not\\sthis\\sone\n")])?, ["not this one", "ARG"]),
                ("a library whose init fails", own::chain_of(&cx, &lib, PLAIN)?, ["there to refuse", "INTERNAL"]),
            ] {
                let from = own.running.host.output.len();
                let taken = own.reload(&setup).await?;
                cx.equal("PXG-LOAD-009", &format!("the reload with {what}"), taken, Some(false));
                let text = own.running.host.output.since(from).join("\n");
                own::says(&cx, "PXG-LOAD-009", what, &text, &words)?;
                let x = own.cx.exchange(Request::get("/")).await?;
                cx.equal("PXG-LOAD-009", "x-served after it", x.up_get("x-served"), Some("yes".into()));
            }
            own.end("PXG-LOAD-009").await
        }),
        Case::new(
            "load/table",
            1,
            &["PXG-LOAD-010"],
            "a table without a required hook, without filters, or with equal or empty names is refused before a hook is called",
        )
        .alone()
        .run(|cx| async move {
            for (n, what) in [
                (1, "no on_config_new"), (2, "no on_config_drop"), (3, "no on_event"), (4, "no on_cancel"), (5, "no on_stream_end"),
                (6, "no filters"), (7, "an empty filter name"), (8, "two filters of one name"), (9, "filters at NULL"),
                (10, "a table of 16 bytes"), (11, "another major version"), (12, "an undefined flag"),
            ] {
                let lib = own::variant(&cx, &format!("table={n}"))?;
                let file = lib.file_name().map(|f| regex::escape(&f.to_string_lossy())).unwrap_or_default();
                own::refused(&cx, "PXG-LOAD-010", what, &own::chain_of(&cx, &lib, PLAIN)?, &[&file]).await?;
            }
            let hooks: Vec<String> = calls(&cx).into_iter().filter(|c| c.starts_with("on_")).collect();
            cx.equal("PXG-LOAD-010", "hooks called in refused libraries", hooks, Vec::new());
            Ok(())
        }),
        Case::new(
            "load/second-go-runtime",
            5,
            &["PXG-LOAD-008"],
            "a second Go runtime in the process is told, with both files",
        )
        .alone()
        .not_layered("the host loads the layer, and need not know that Go is behind it")
        .go()
        .run(|cx| async move {
            let workshop = &cx.shared().workshop;
            let Some(first) = workshop.go_probe()? else {
                return Err(crate::hostcheck::setup::NoOption("go".into()).into());
            };
            let second = workshop.dir().join("libpxg_second_go.so");
            std::fs::copy(&first, &second)?;
            let mut setup = own::chain_of(&cx, &first, PLAIN)?;
            own::also(&cx, &mut setup, ("second", &second), "other", PLAIN[0].1);
            for i in &mut setup.instances {
                i.filter = "go-probe".into();
                i.config.clear();
            }
            let own = Own::start(&cx, &setup).await?;
            let said = own.output();
            let both = said.lines().any(|l| l.contains("libpxg_probe_go.so") && l.contains("libpxg_second_go.so"));
            cx.check("PXG-LOAD-008", both, || format!("no line names both libraries of Go:\n{said}"));
            own.stop("PXG-LOAD-008").await
        }),
        Case::new(
            "load/files",
            1,
            &["PXG-LOAD-011"],
            "a text, a library for another machine and one without the entry are refused before they are loaded",
        )
        .alone()
        .not_layered("the host looks into the file of the layer")
        .run(|cx| async move {
            let workshop = &cx.shared().workshop;
            let mark = workshop.dir().join("constructed");
            let without = workshop.library(
                "without",
                &format!(
                    "#include <fcntl.h>\n__attribute__((constructor)) static void made(void) {{ open({:?}, O_CREAT, 0644); }}\n\
                     int pxg_guest_init_v2;\n",
                    mark.display().to_string()
                ),
                &[],
            )?;
            let text = workshop.dir().join("libtext.so");
            std::fs::write(&text, "#!/bin/sh\necho no library\n")?;
            let mut bytes = std::fs::read(&without)?;
            // e_machine: one that this machine is not.
            let other: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
            bytes[18..20].copy_from_slice(&other.to_le_bytes());
            let machine = workshop.dir().join("libmachine.so");
            std::fs::write(&machine, &bytes)?;
            let cut = workshop.dir().join("libcut.so");
            std::fs::write(&cut, &std::fs::read(&without)?[..40])?;
            for (what, lib, words) in [
                ("a text", &text, &["libtext", "ELF"][..]),
                ("another machine", &machine, &["libmachine", "aarch64|arm|x86|machine|183|62"]),
                ("no entry", &without, &["libwithout", "pxg_guest_init_v1"]),
                ("an ELF header cut off", &cut, &["libcut"]),
            ] {
                own::refused(&cx, "PXG-LOAD-011", what, &own::chain_of(&cx, lib, PLAIN)?, words).await?;
            }
            cx.check("PXG-LOAD-011", !mark.exists(), || {
                "a library without the entry was loaded before it was refused: its constructor ran".into()
            });
            let missing = own::chain_of(&cx, Path::new("/nonexistent/libnone.so"), PLAIN)?;
            own::refused(&cx, "PXG-LOAD-009", "no file", &missing, &["libnone"]).await?;
            Ok(())
        }),
    ]
}
