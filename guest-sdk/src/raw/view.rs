//! Views of the host's memory, with the lifetime of the call in their types.

use std::marker::PhantomData;

use proxy_golang_abi as abi;

use super::host::Host;

/// The bytes of a string that the host lent for `'v`.
///
/// # Safety
/// `s` must be a view that stays valid for `'v`.
#[inline(always)]
pub(super) unsafe fn bytes<'v>(s: &abi::Str) -> &'v [u8] {
    if s.len == 0 {
        return &[];
    }
    // SAFETY: the caller's: `len` bytes at `ptr` are valid for 'v, and nobody writes them (host contract).
    unsafe { std::slice::from_raw_parts(s.ptr, s.len as usize) }
}

/// The elements of an array that the host lent for `'v`.
///
/// # Safety
/// `n` elements at `ptr` must be a view that stays valid for `'v`; `ptr` may be null if `n` is 0.
#[inline(always)]
pub(super) unsafe fn slice<'v, T>(ptr: *const T, n: u64) -> &'v [T] {
    if n == 0 {
        return &[];
    }
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(ptr, n as usize) }
}

/// One header or trailer field, in the host's memory.
#[derive(Clone, Copy)]
pub struct Field<'v>(&'v abi::Field);

impl<'v> Field<'v> {
    /// The name in lower case; pseudo-headers begin with a colon.
    #[inline(always)]
    #[must_use]
    pub fn name(&self) -> &'v [u8] {
        // SAFETY: a `Field` is only made from a view of lifetime 'v.
        unsafe { bytes(&self.0.name) }
    }

    /// Whether this is the name (lower case). The fastest way to ask.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, name: impl AsRef<[u8]>) -> bool {
        let name = name.as_ref();
        if name.is_empty() || self.0.name.len as usize != name.len() {
            return false;
        }
        // SAFETY: as in `name`. Over the length that is known at compile time, so that the comparison is inlined.
        unsafe { std::slice::from_raw_parts(self.0.name.ptr, name.len()) == name }
    }

    /// The value, as the host holds it.
    #[inline(always)]
    #[must_use]
    pub fn value(&self) -> &'v [u8] {
        // SAFETY: as in `name`.
        unsafe { bytes(&self.0.value) }
    }

    /// Length of the value in bytes.
    #[inline(always)]
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.0.value.len as usize
    }

    /// The value if it is UTF-8.
    #[must_use]
    pub fn value_str(&self) -> Option<&'v str> {
        std::str::from_utf8(self.value()).ok()
    }

    /// Whether the value must never be logged, traced or indexed.
    #[must_use]
    pub fn is_sensitive(&self) -> bool {
        self.0.value.flags.0 & abi::StrFlags::SENSITIVE.0 != 0
    }
}

/// Header or trailer fields in the host's memory: reading them copies and allocates nothing.
#[derive(Clone, Copy)]
pub struct Fields<'v>(&'v [abi::Field]);

impl<'v> Fields<'v> {
    /// # Safety
    /// As for `slice`, and each string of each field must be a view of the same lifetime.
    #[inline(always)]
    pub(super) unsafe fn new(ptr: *const abi::Field, n: u64) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { slice(ptr, n) })
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The field at an index: the index that the `_at` operations take.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<Field<'v>> {
        self.0.get(index).map(Field)
    }

    /// All fields, pseudo-headers first.
    #[inline(always)]
    #[must_use]
    pub fn iter(&self) -> FieldIter<'v> {
        FieldIter(self.0.iter())
    }

    /// The value of the first field of that name (lower case).
    #[inline]
    #[must_use]
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&'v [u8]> {
        let name = name.as_ref();
        self.iter().find(|f| f.is(name)).map(|f| f.value())
    }

    /// The value of the first field of that name, if there is one and it is UTF-8.
    #[must_use]
    pub fn get_str(&self, name: impl AsRef<[u8]>) -> Option<&'v str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// The values of all fields of that name, in their order.
    pub fn get_all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'v [u8]> + use<'v, 'n> {
        self.iter().filter(move |f| f.is(name)).map(|f| f.value())
    }

    /// The index of the first field of that name.
    #[must_use]
    pub fn position(&self, name: impl AsRef<[u8]>) -> Option<usize> {
        let name = name.as_ref();
        self.iter().position(|f| f.is(name))
    }

    /// Whether there is a field of that name.
    #[must_use]
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.position(name).is_some()
    }

    /// A copy that outlives the call.
    #[must_use]
    pub fn to_vec(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.iter()
            .map(|f| (f.name().to_vec(), f.value().to_vec()))
            .collect()
    }
}

impl<'v> IntoIterator for Fields<'v> {
    type Item = Field<'v>;
    type IntoIter = FieldIter<'v>;

    fn into_iter(self) -> FieldIter<'v> {
        self.iter()
    }
}

impl std::fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = if self.is_sensitive() {
            "<sensitive>".into()
        } else {
            String::from_utf8_lossy(self.value())
        };
        write!(f, "{}: {value}", String::from_utf8_lossy(self.name()))
    }
}

impl std::fmt::Debug for Fields<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterates over [`Fields`].
#[derive(Clone)]
pub struct FieldIter<'v>(std::slice::Iter<'v, abi::Field>);

impl<'v> Iterator for FieldIter<'v> {
    type Item = Field<'v>;

    #[inline(always)]
    fn next(&mut self) -> Option<Field<'v>> {
        self.0.next().map(Field)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for FieldIter<'_> {}

/// What the operator configured. All of it is a view that dies when `configure` returns.
pub struct ConfigInput<'v> {
    raw: &'v abi::ConfigIn,
    host: Host,
    parent: Option<&'v (dyn std::any::Any + Send + Sync)>,
    // Keeps a view of one call from being used as one of another.
    _call: PhantomData<&'v ()>,
}

impl<'v> ConfigInput<'v> {
    /// # Safety
    /// `raw` and all that it points to must be views valid for `'v`.
    pub(super) unsafe fn new(
        raw: &'v abi::ConfigIn,
        host: Host,
        parent: Option<&'v (dyn std::any::Any + Send + Sync)>,
    ) -> Self {
        Self {
            raw,
            host,
            parent,
            _call: PhantomData,
        }
    }

    /// Which of the library's filters this is for.
    #[must_use]
    pub fn filter(&self) -> &'v [u8] {
        // SAFETY: a `ConfigInput` is only made from views valid for 'v.
        unsafe { bytes(&self.raw.filter) }
    }

    /// The instance's name, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'v [u8] {
        // SAFETY: as in `filter`.
        unsafe { bytes(&self.raw.name) }
    }

    /// The operator's configuration, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &'v [u8] {
        // SAFETY: as in `filter`.
        unsafe { bytes(&self.raw.bytes) }
    }

    /// The configuration as text.
    ///
    /// # Errors
    /// Names the offset of the first byte that is not UTF-8.
    pub fn text(&self) -> Result<&'v str, crate::ConfigError> {
        std::str::from_utf8(self.bytes()).map_err(|e| {
            crate::ConfigError::new(format!(
                "the configuration is not UTF-8 at byte {}; expected text",
                e.valid_up_to()
            ))
        })
    }

    /// Whether this is a validation only: no threads, sockets or other side effects (PXG-CFG-004).
    #[must_use]
    pub fn validate_only(&self) -> bool {
        self.raw.flags.0 & abi::ConfigInFlags::VALIDATE_ONLY.0 != 0
    }

    /// Whether the host has this feature for the streams of this configuration.
    #[must_use]
    pub fn has(&self, feature: abi::feature::Feature) -> bool {
        feature.is_in(&self.raw.features)
    }

    /// The features for the streams of this configuration.
    #[must_use]
    pub fn features(&self) -> &'v abi::feature::FeatureSet {
        &self.raw.features
    }

    /// For a route's override: the configuration that it overrides, if that is one of the same filter.
    #[must_use]
    pub fn parent<F: crate::Filter>(&self) -> Option<&'v F> {
        self.parent?.downcast_ref()
    }

    /// The host, to log to and to define metrics with; a filter may keep it.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }
}
