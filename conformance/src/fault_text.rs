//! What a wrong access means: which rule it breaks, in words.

use proxy_golang_abi::Phase;

use crate::finding::Finding;
use crate::host::model::phase_name;
use crate::symbols::Symbols;
use crate::sys::arena::Kind;
use crate::sys::shared::{FAULT_WORDS, Hook};

/// A recorded access.
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) write: bool,
    pub(crate) pc: u64,
    thread: u64,
    when: u64,
    start: u64,
    len: u64,
    kind: Option<Kind>,
    index: u32,
    phase: u32,
    hook: Hook,
    stream: u64,
    closed: u64,
    /// The number of the system call that made the access.
    call: Option<u64>,
    pub(crate) frames: Vec<u64>,
}

impl Fault {
    pub(crate) fn read(w: &[u64; FAULT_WORDS]) -> Self {
        let low = |v: u64| u32::try_from(v & 0xffff_ffff).unwrap_or(0);
        Self {
            at: w[0],
            write: w[1] != 0,
            pc: w[2],
            thread: w[3],
            when: w[4],
            start: w[5],
            len: w[6],
            kind: Kind::from(w[7] & 0xffff_ffff),
            index: low(w[7] >> 32),
            phase: low(w[8]),
            hook: Hook::from(low(w[8] >> 32)),
            stream: w[9],
            closed: w[11],
            call: w[14].checked_sub(1),
            frames: w[16..].to_vec(),
        }
    }

    fn offset(&self) -> i64 {
        self.at.wrapping_sub(self.start).cast_signed()
    }

    fn inside(&self) -> bool {
        (0..self.len.cast_signed()).contains(&self.offset())
    }

    /// The rule, and what happened in a few words. `by`: the function that made the access.
    fn rule(&self, by: Option<&str>) -> (&'static str, String) {
        use Kind::{
            Attr, Attrs, Chunk, Chunks, ConfigIn, ConfigOut, ConfigText, Event, Extension, Fields,
            GuestTable, HostTable, HostText, Name, Page, Result, Scratch, ScratchMore, ScratchOps,
            Value,
        };
        let what = self.what();
        let allocator = by.is_some_and(|f| {
            let f = f.trim_start_matches('_');
            [
                "libc_free",
                "free",
                "libc_realloc",
                "realloc",
                "malloc_usable_size",
                "int_free",
                "cfree",
            ]
            .contains(&f)
        });
        if allocator && (-64..0).contains(&self.offset()) {
            return (
                "PXG-MEM-008",
                format!("freed or resized {what}, which is the host's"),
            );
        }
        let Some(kind) = self.kind else {
            return ("PXG-MEM-002", format!("accessed {what}"));
        };
        if self.closed != 0 {
            return match kind {
                Scratch | ScratchMore | ScratchOps | Result | ConfigOut => (
                    "PXG-MEM-013",
                    format!("{what} used after its hook returned"),
                ),
                GuestTable => (
                    "PXG-LOAD-012",
                    "the pxg_guest of init used after init returned".to_string(),
                ),
                _ => (
                    "PXG-MEM-002",
                    format!("{what} used after its hook returned"),
                ),
            };
        }
        if self.inside() {
            return (
                "PXG-MEM-009",
                format!("wrote to {what}, which is read-only"),
            );
        }
        let way = if self.offset() < 0 {
            "before"
        } else {
            "behind"
        };
        match kind {
            Scratch | ScratchMore | ScratchOps => {
                ("PXG-MEM-010", format!("accessed memory {way} {what}"))
            }
            Result | ConfigOut | GuestTable if self.write => {
                ("PXG-ABI-004", format!("wrote {way} {what}"))
            }
            Event | ConfigIn | HostTable | Page | Extension | Result | ConfigOut | GuestTable => {
                ("PXG-ABI-003", format!("read {way} {what}"))
            }
            Fields | Chunks | Attrs | Name | Value | Chunk | Attr | ConfigText | HostText => {
                ("PXG-ABI-008", format!("accessed memory {way} {what}"))
            }
        }
    }

    fn what(&self) -> String {
        let list = ["", "trailer ", "peer ", "peer trailer "]
            .get((self.index >> 24) as usize)
            .copied()
            .unwrap_or_default();
        let i = self.index & 0xff_ffff;
        match self.kind {
            Some(Kind::Event) => "the pxg_event".into(),
            Some(Kind::ConfigIn) => "the pxg_config_in".into(),
            Some(Kind::HostTable) => "the pxg_host".into(),
            Some(Kind::Page) => "the pxg_page".into(),
            Some(Kind::Name) => format!("the name of {list}field {i}"),
            Some(Kind::Value) => format!("the value of {list}field {i}"),
            Some(Kind::Chunk) => format!("chunk {i} of the body"),
            Some(Kind::Attr) => format!("attribute {i}"),
            Some(Kind::Fields) => format!(
                "the array of {}",
                ["fields", "trailers", "peer_fields", "peer_trailers"][(self.index & 3) as usize]
            ),
            Some(Kind::Chunks) => "the array of chunks".into(),
            Some(Kind::Attrs) => "the array of attributes".into(),
            Some(Kind::ConfigText) => [
                "the filter's name",
                "the instance's name",
                "the configuration's bytes",
            ]
            .get(self.index as usize)
            .copied()
            .unwrap_or("a string of the configuration")
            .into(),
            Some(Kind::Result) => "the pxg_result".into(),
            Some(Kind::ConfigOut) => "the pxg_config_out".into(),
            Some(Kind::GuestTable) => "the pxg_guest".into(),
            Some(Kind::ScratchOps) => "scratch_ops".into(),
            Some(Kind::Scratch) => "scratch".into(),
            Some(Kind::ScratchMore) => "memory from scratch_more".into(),
            Some(Kind::HostText) => "a string of the host's".into(),
            Some(Kind::Extension) => "an extension's table".into(),
            None => "memory of the host".into(),
        }
    }

    pub(crate) fn finding(&self, symbols: &mut Symbols, loop_thread: Option<u64>) -> Finding {
        let (first, own) = symbols.sites(&self.frames);
        let (rule, title) = self.rule(first.as_ref().and_then(|s| s.function.as_deref()));
        let hook = match self.hook {
            Hook::Event => format!("on_event({})", phase_name(Phase(self.phase))),
            h => h.name().to_string(),
        };
        let mut detail = vec![format!(
            "{} at byte {} of {}, which has {}",
            if self.write { "write" } else { "read" },
            self.offset(),
            self.what(),
            self.len
        )];
        detail.push(if self.closed == 0 {
            format!("in {hook}, stream {:#x}", self.stream)
        } else {
            let late = self.when.saturating_sub(self.closed);
            format!(
                "{}.{:03} ms after {hook} returned, stream {:#x}",
                late / 1_000_000,
                late / 1000 % 1000,
                self.stream
            )
        });
        if let Some(n) = self.call {
            detail.push(format!("inside the system call {}", system_call(n)));
        }
        let thread = if Some(self.thread) == loop_thread {
            "the loop thread".to_string()
        } else {
            format!("thread {}", self.thread)
        };
        match (&own, &first) {
            (Some(own), Some(first)) if !first.in_guest || first.function != own.function => {
                detail.push(format!("by {thread}: {own}"));
                detail.push(format!("through {first}"));
            }
            (Some(own), _) => detail.push(format!("by {thread}: {own}")),
            (None, Some(first)) => detail.push(format!("by {thread}: {first}")),
            (None, None) => detail.push(format!("by {thread} at {:#x}", self.pc)),
        }
        Finding {
            rule: rule.to_string(),
            title,
            detail,
        }
    }
}

/// The name of a system call that takes memory, or its number.
fn system_call(n: u64) -> String {
    const NAMED: [(libc::c_long, &str); 16] = [
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_pread64, "pread64"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_readv, "readv"),
        (libc::SYS_writev, "writev"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_connect, "connect"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_getrandom, "getrandom"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_process_vm_readv, "process_vm_readv"),
        (libc::SYS_process_vm_writev, "process_vm_writev"),
    ];
    NAMED
        .iter()
        .find(|(number, _)| u64::try_from(*number) == Ok(n))
        .map_or_else(|| format!("number {n}"), |(_, name)| (*name).to_string())
}
