//! Fields kept in the form in which guests see them, so that showing them costs nothing.

use std::ptr::null;

use proxy_golang_abi as abi;

use super::view::FieldView;

/// A list of fields over one arena of bytes: an array of the ABI's own structs.
///
/// Every pointer in `fields` leads to as many initialised bytes of `arena` as its length says, or is null with the
/// length 0. Bytes of the arena are written once, before a pointer to them exists.
#[derive(Default)]
pub(crate) struct FieldStore {
    arena: Vec<u8>,
    fields: Vec<abi::Field>,
    /// For each field a byte of its name's hash: what is looked through first for a name.
    tags: Vec<u8>,
}

// SAFETY: the pointers lead into the store's own arena, which only `&mut self` changes.
unsafe impl Send for FieldStore {}
// SAFETY: as above.
unsafe impl Sync for FieldStore {}

impl FieldStore {
    pub(crate) fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self {
            arena: Vec::with_capacity(bytes),
            fields: Vec::with_capacity(fields),
            tags: Vec::with_capacity(fields),
        }
    }

    /// The fields as guests see them.
    #[inline]
    pub(crate) fn views(&self) -> &[FieldView<'_>] {
        // SAFETY: `FieldView` is transparent over `abi::Field`; what the pointers lead to lives and is not written while
        // the store is borrowed.
        unsafe { std::slice::from_raw_parts(self.fields.as_ptr().cast(), self.fields.len()) }
    }

    /// The first field `name` from `from` on.
    pub(crate) fn find(&self, mut from: usize, name: &[u8]) -> Option<usize> {
        let tag = tag(name);
        loop {
            let at = from + memchr::memchr(tag, self.tags.get(from..)?)?;
            if self.views().get(at)?.name() == name {
                return Some(at);
            }
            from = at + 1;
        }
    }

    /// Appends a field.
    #[inline]
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        self.reserve(name.len() + value.len());
        let field = abi::Field {
            name: self.store(name),
            value: marked(self.store(value), sensitive),
        };
        self.fields.push(field);
        self.tags.push(tag(name));
    }

    /// Gives the field at `index` another value.
    #[inline]
    pub(crate) fn set_value(&mut self, index: usize, value: &[u8], sensitive: bool) {
        self.reserve(value.len());
        let value = marked(self.store(value), sensitive);
        self.fields[index].value = value;
    }

    /// Takes the field at `index` out.
    #[inline]
    pub(crate) fn remove(&mut self, index: usize) {
        self.fields.remove(index);
        self.tags.remove(index);
    }

    /// Takes out every field whose mark is set.
    pub(crate) fn remove_marked(&mut self, marks: &[bool]) {
        let stays = |at: usize| !marks.get(at).copied().unwrap_or(false);
        let mut at = 0..;
        self.fields.retain(|_| at.next().is_none_or(stays));
        let mut at = 0..;
        self.tags.retain(|_| at.next().is_none_or(stays));
    }

    /// Moves the field at `from` up to `to`, before what stands there.
    pub(crate) fn move_up(&mut self, from: usize, to: usize) {
        self.fields[to..=from].rotate_right(1);
        self.tags[to..=from].rotate_right(1);
    }

    /// Room for `n` more bytes, so that [`FieldStore::store`] has it.
    #[inline]
    fn reserve(&mut self, n: usize) {
        if self.arena.capacity() - self.arena.len() < n {
            self.grow(n);
        }
    }

    #[cold]
    fn grow(&mut self, n: usize) {
        let wanted = (self.arena.len() + n)
            .max(2 * self.arena.capacity())
            .max(256);
        let mut arena = Vec::with_capacity(wanted);
        arena.extend_from_slice(&self.arena);
        let (old, new) = (self.arena.as_ptr(), arena.as_mut_ptr());
        for field in &mut self.fields {
            for part in [&mut field.name, &mut field.value] {
                if !part.ptr.is_null() {
                    let offset = part.ptr.addr() - old.addr();
                    part.ptr = new.wrapping_add(offset).cast_const();
                }
            }
        }
        self.arena = arena;
    }

    /// Copies bytes into the arena, which has room for them.
    #[inline]
    fn store(&mut self, bytes: &[u8]) -> abi::Str {
        // A message near 4 GiB of fields is far beyond every limit of a host.
        let len = u32::try_from(bytes.len()).expect("fields stay below 4 GiB");
        let at = self.arena.len();
        assert!(self.arena.capacity() - at >= bytes.len(), "reserved before");
        // SAFETY: there is room behind the initialised bytes, as just asserted; what is written there is initialised.
        // The buffer does not move, so that pointers into it stay valid.
        let ptr = unsafe {
            let to = self.arena.as_mut_ptr().add(at);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            self.arena.set_len(at + bytes.len());
            to
        };
        abi::Str {
            ptr: if len == 0 { null() } else { ptr },
            len,
            flags: abi::StrFlags(0),
        }
    }
}

/// Compacts: what was replaced or removed is not copied.
impl Clone for FieldStore {
    fn clone(&self) -> Self {
        let fields = self.views();
        let bytes = fields.iter().map(|f| f.name().len() + f.value().len());
        let mut copy = Self::with_capacity(fields.len(), bytes.sum());
        for field in fields {
            copy.push(field.name(), field.value(), field.is_sensitive());
        }
        copy
    }
}

impl std::fmt::Debug for FieldStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let fields = self.views().iter();
        f.debug_list()
            .entries(fields.map(|field| (text(field.name()), text(field.value()))))
            .finish()
    }
}

/// Names differ in their length and their ends more than in anything else.
#[inline]
fn tag(name: &[u8]) -> u8 {
    match *name {
        [] => 0,
        [only] => only,
        [first, .., last] => (name.len() as u8)
            .wrapping_mul(29)
            .wrapping_add(first.wrapping_mul(7))
            .wrapping_add(last),
    }
}

fn marked(mut value: abi::Str, sensitive: bool) -> abi::Str {
    if sensitive {
        value.flags = abi::StrFlags::SENSITIVE;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(store: &FieldStore) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pair = |f: &FieldView<'_>| (f.name().to_vec(), f.value().to_vec());
        store.views().iter().map(pair).collect()
    }

    #[test]
    fn the_views_follow_an_arena_that_moves() {
        let mut store = FieldStore::default();
        let mut expected = Vec::new();
        for n in 0..100_u8 {
            let (name, value) = (
                format!("x-{n}").into_bytes(),
                vec![b'v'; usize::from(n) * 7],
            );
            store.push(&name, &value, n % 2 == 0);
            expected.push((name, value));
        }
        assert_eq!(shown(&store), expected);
        let copy = store.clone();
        drop(store);
        assert_eq!(shown(&copy), expected);
        assert!(copy.views()[2].is_sensitive() && !copy.views()[1].is_sensitive());
    }

    #[test]
    fn fields_are_replaced_removed_and_put_in_front() {
        let mut store = FieldStore::with_capacity(1, 1);
        for name in [&b"a"[..], b"b", b"c", b"d"] {
            store.push(name, b"1", false);
        }
        store.set_value(1, b"a longer one", true);
        store.remove(0);
        store.remove_marked(&[false, true]);
        store.move_up(1, 0);
        let expected = [(&b"d"[..], &b"1"[..]), (b"b", b"a longer one")];
        let found = shown(&store);
        let found: Vec<_> = found.iter().map(|(n, v)| (&n[..], &v[..])).collect();
        assert_eq!(found, expected);
        assert_eq!(
            (store.find(0, b"d"), store.find(0, b"b")),
            (Some(0), Some(1))
        );
        assert_eq!((store.find(1, b"d"), store.find(0, b"a")), (None, None));
        store.set_value(0, b"", false);
        assert_eq!(store.views()[0].value(), b"");
    }
}
