use crate::{AttrFlags, BodyMode, ConfigFlags, ConfigInFlags, Str};

/// An attribute that a configuration wants with its events.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttrWant {
    /// Its name, from the spec's list or the host's own. Borrowed.
    pub name: Str,
    /// Mask of the phases whose events shall carry it.
    pub phases: u64,
    /// `PXG_ATTR_*`.
    pub flags: AttrFlags,
    /// Zero.
    pub reserved0: u32,
}

/// A field that is all a configuration needs to see in some phases: others may be left out of the view.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// The field's name, lower case. Borrowed.
    pub name: Str,
    /// Mask of the phases it is for.
    pub phases: u64,
}

/// A configuration to be made. Every pointer is a view that dies when `on_config_new` returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConfigIn {
    /// Size of the struct as the host knows it, in bytes.
    pub size: u32,
    /// `PXG_CFG_IN_*`.
    pub flags: ConfigInFlags,
    /// What the host can do for the streams of this configuration: a subset of its table's features.
    pub features: [u64; 4],
    /// Which of the library's filters.
    pub filter: Str,
    /// Name of this instance, for logs and metrics.
    pub name: Str,
    /// The operator's configuration, byte for byte.
    pub bytes: Str,
    /// For a route's override: the value of the configuration it overrides, alive at least as long; 0 for none.
    pub parent: u64,
}

/// What a configuration wants. The host zeroes it, sets `size` and lends scratch memory; it copies everything before
/// its next call into the guest (PXG-CFG-002).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConfigOut {
    /// Size of the struct, in bytes.
    pub size: u32,
    /// `PXG_CFG_*`.
    pub flags: ConfigFlags,
    /// The guest's value for this configuration; never 0.
    pub config: u64,
    /// Mask of the phases that are delivered. Body phases: may be turned on.
    pub subscribe: u64,
    /// Mask of the phases that may answer PENDING.
    pub pend_phases: u64,
    /// Body mode per direction; UNSET is SKIP.
    pub body_mode: [BodyMode; 2],
    /// Most bytes of a body held per direction; 0 is the host's default, more than its limit is its limit.
    pub max_body: [u64; 2],
    /// A wish for the deadline of a PENDING in nanoseconds; 0 is the host's default.
    pub pend_ns: u64,
    /// The attributes, in the order in which events shall carry them. Borrowed.
    pub attrs: *const AttrWant,
    /// Number of `attrs`.
    pub n_attrs: u64,
    /// The fields that suffice, if not all are needed. Borrowed.
    pub projection: *const Projection,
    /// Number of `projection`; 0 delivers all fields.
    pub n_projection: u64,
    /// When the answer is negative: why, for the operator. Borrowed.
    pub error: Str,
    /// \[in-call\] Lent by the host: at least 4096 bytes, 16-aligned.
    pub scratch: *mut u8,
    /// Capacity of `scratch`, in bytes.
    pub scratch_cap: u64,
}
