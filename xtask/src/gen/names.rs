//! What each item of the ABI crate is called in C, and where in the headers it stands. The only table of names.

/// How a constant is written in C.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// `1`, and `(-1)`.
    Signed,
    /// `1u`.
    Unsigned,
    /// `0x0001u`, with at least so many digits.
    Hex(usize),
}

/// A `#[repr(transparent)]` newtype: a plain integer in C, with its constants as macros.
pub(super) struct Newtype {
    pub(super) rust: &'static str,
    pub(super) prefix: &'static str,
    /// Constants that have another prefix.
    pub(super) special: &'static [(&'static str, &'static str)],
    pub(super) form: Form,
}

const fn newtype(rust: &'static str, prefix: &'static str, form: Form) -> Newtype {
    Newtype {
        rust,
        prefix,
        special: &[],
        form,
    }
}

pub(super) const NEWTYPES: &[Newtype] = &[
    Newtype {
        rust: "Status",
        prefix: "PXG_E_",
        special: &[("OK", "PXG_OK"), ("FULL", "PXG_FULL")],
        form: Form::Signed,
    },
    Newtype {
        rust: "StrFlags",
        prefix: "PXG_BUF_",
        special: &[
            ("ABSENT", "PXG_STR_ABSENT"),
            ("SENSITIVE", "PXG_STR_SENSITIVE"),
        ],
        form: Form::Hex(1),
    },
    newtype("OpKind", "PXG_OP_", Form::Signed),
    newtype("OpFlags", "PXG_OPF_", Form::Hex(1)),
    newtype("Target", "PXG_TARGET_", Form::Unsigned),
    newtype("Phase", "PXG_PHASE_", Form::Signed),
    newtype("EventFlags", "PXG_EV_", Form::Hex(4)),
    newtype("Action", "PXG_ACT_", Form::Signed),
    newtype("BodyMode", "PXG_BODY_", Form::Signed),
    newtype("ResultFlags", "PXG_RES_", Form::Hex(1)),
    newtype("ReplyFlags", "PXG_REPLY_", Form::Hex(1)),
    newtype("ConfigInFlags", "PXG_CFG_IN_", Form::Hex(1)),
    newtype("ConfigFlags", "PXG_CFG_", Form::Hex(1)),
    newtype("AttrFlags", "PXG_ATTR_", Form::Hex(1)),
    newtype("GuestFlags", "PXG_GUEST_", Form::Hex(1)),
    newtype("EndReason", "PXG_END_", Form::Signed),
    newtype("DirectionEnd", "PXG_DIREND_", Form::Signed),
    newtype("LogLevel", "PXG_LOG_", Form::Signed),
    newtype("Feature", "PXG_F_", Form::Signed),
    newtype("MetricKind", "PXG_METRIC_", Form::Signed),
];

/// Constants outside newtypes: Rust name, C name. Strings and numbers.
pub(super) const FREE: &[(&str, &str)] = &[
    ("VERSION_MAJOR", "PXG_VERSION_MAJOR"),
    ("VERSION_MINOR", "PXG_VERSION_MINOR"),
    ("GUEST_INIT_SYMBOL", "PXG_GUEST_INIT_SYMBOL"),
    ("DIR_REQUEST", "PXG_DIR_REQUEST"),
    ("DIR_RESPONSE", "PXG_DIR_RESPONSE"),
    ("METRICS_V1_ID", "PXG_METRICS_V1_ID"),
];

/// The type of the entry function: Rust name, C name of the function. The pointer type has `_fn` behind it.
pub(super) const ENTRY: (&str, &str) = ("GuestInitV1", "pxg_guest_init_v1");

/// Public items that have no place in C, each with the reason.
pub(super) const NOT_IN_C: &[(&str, &str)] = &[
    ("FeatureSet", "written out as uint64_t[4]"),
    ("Feature::ALL", "names for logs and tools, in Rust"),
    (
        "Feature::PENDING",
        "a table for checks of configurations, in Rust",
    ),
    ("Str::EMPTY", "a Rust convenience: all zero in C"),
    ("Str::ABSENT", "a Rust convenience: the flag alone in C"),
    ("Buf::EMPTY", "a Rust convenience: all zero in C"),
    ("Op::ZERO", "a Rust convenience: all zero in C"),
];

/// Modules that describe the ABI instead of being part of it.
pub(super) const TOOL_MODULES: &[&str] = &["layout"];

/// A piece of a header.
pub(super) enum Piece {
    /// A banner.
    Section(&'static str),
    /// Constants outside newtypes, by their Rust names.
    Free(&'static [&'static str]),
    /// A newtype's constants.
    Codes(&'static str),
    /// A struct.
    Struct(&'static str),
    /// C that no item of the crate stands for.
    Text(&'static str),
}

/// A header.
pub(super) struct Header {
    pub(super) path: &'static str,
    /// Its name inside the Go module.
    pub(super) go_name: &'static str,
    pub(super) guard: &'static str,
    /// What stands between the licence line and the guard.
    pub(super) top: &'static str,
    /// What stands behind the guard, up to `extern "C"`.
    pub(super) prelude: &'static str,
    pub(super) pieces: &'static [Piece],
}

use Piece::{Codes, Free, Section, Struct, Text};

pub(super) const HEADERS: &[Header] = &[
    Header {
        path: "include/proxy_golang.h",
        go_name: "proxy_golang.h",
        guard: "PROXY_GOLANG_H",
        top: include_str!("top.h"),
        prelude: "#include <stdint.h>\n\n#if !defined(__LP64__)\n#error \"proxy_golang v1 is defined for LP64 targets only\"\n#endif\n",
        pieces: &[
            Section("Version and entry"),
            Free(&["VERSION_MAJOR", "VERSION_MINOR", "GUEST_INIT_SYMBOL"]),
            Section("Status codes: int32_t"),
            Codes("Status"),
            Section("Leaf structs: strings, fields, buffers, operations"),
            Codes("StrFlags"),
            Struct("Str"),
            Struct("Field"),
            Struct("Buf"),
            Codes("OpKind"),
            Codes("OpFlags"),
            Codes("Target"),
            Struct("Op"),
            Section("Phases, events"),
            Codes("Phase"),
            Text(
                "/* The bit of a phase in a phase mask: pxg_config_out.subscribe, pxg_result.unsubscribe and others. */\n#define PXG_PHASE_BIT(p) (1ull << (p))\n",
            ),
            Codes("EventFlags"),
            Codes("EndReason"),
            Codes("DirectionEnd"),
            Text(
                "/* The parts of LOG's arg: why the stream ended, how the request ended, how the response ended. */\n#define PXG_ARG_END(arg) ((arg) & 0xffu)\n#define PXG_ARG_REQUEST_END(arg) ((arg) >> 8 & 0xfu)\n#define PXG_ARG_RESPONSE_END(arg) ((arg) >> 12 & 0xfu)\n",
            ),
            Struct("Event"),
            Section("Results, replies"),
            Codes("Action"),
            Codes("BodyMode"),
            Free(&["DIR_REQUEST", "DIR_RESPONSE"]),
            Codes("ReplyFlags"),
            Struct("Reply"),
            Codes("ResultFlags"),
            Struct("EventResult"),
            Section("Configuration"),
            Codes("AttrFlags"),
            Struct("AttrWant"),
            Struct("Projection"),
            Codes("ConfigInFlags"),
            Struct("ConfigIn"),
            Codes("ConfigFlags"),
            Struct("ConfigOut"),
            Section("Features"),
            Codes("Feature"),
            Section("The two tables"),
            Codes("LogLevel"),
            Struct("Page"),
            Struct("Host"),
            Codes("GuestFlags"),
            Struct("Guest"),
        ],
    },
    Header {
        path: "include/proxy_golang/ext/metrics.h",
        go_name: "proxy_golang_metrics.h",
        guard: "PROXY_GOLANG_EXT_METRICS_H",
        top: include_str!("top_metrics.h"),
        prelude: "#include \"proxy_golang.h\"\n",
        pieces: &[
            Free(&["METRICS_V1_ID"]),
            Codes("MetricKind"),
            Struct("MetricsV1"),
        ],
    },
];

/// Where the Go module keeps its copies of the headers; written if the folder exists.
pub(super) const GO_COPIES: &str = "guest-sdk/go/internal/cabi";

/// `ConfigIn` -> `config_in`. `EventResult` is `pxg_result`, the rest follows the rule.
pub(super) fn c_struct(rust: &str) -> String {
    if rust == "EventResult" {
        return "pxg_result".into();
    }
    let mut out = String::from("pxg");
    for c in rust.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
