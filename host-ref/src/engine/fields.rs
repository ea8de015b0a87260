//! Header fields: the view that guests get, the edits that they ask for, and a list of the engine's own.

use smallvec::SmallVec;

pub use crate::ffi::FieldView;

/// Fields of one message as a guest sees them: no allocation up to 40.
pub type Views<'a> = SmallVec<[FieldView<'a>; 40]>;

/// One edit of a batch, already checked against the grammar and the view.
#[allow(missing_docs)] // the members are those of `pxg_op`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Leave exactly one field `name`, with `value`.
    Set {
        name: &'a [u8],
        value: &'a [u8],
        sensitive: bool,
    },
    /// Append a field.
    Add {
        name: &'a [u8],
        value: &'a [u8],
        sensitive: bool,
    },
    /// Remove all fields `name`.
    Delete { name: &'a [u8] },
    /// Replace the value at `index` of the view before the batch.
    SetAt {
        index: usize,
        value: &'a [u8],
        sensitive: bool,
    },
    /// Remove the field at `index` of the view before the batch.
    DeleteAt { index: usize },
}

/// The host's own model of a message's fields. The engine builds views of it and edits it; it never looks inside.
///
/// Pseudo-headers are fields whose names begin with `:` and come first in the view.
pub trait Fields: Clone {
    /// Appends every field to `out`: pseudo-headers first, then names in lower case, values of one name in order.
    fn view<'a>(&'a self, out: &mut Views<'a>);

    /// The first value of `name`.
    fn value(&self, name: &[u8]) -> Option<&[u8]>;

    /// Whether there is no field at all.
    fn is_empty(&self) -> bool;

    /// Applies a batch in order. Indices count in what [`Fields::view`] gave before the batch; a field that an
    /// earlier edit of the batch removed is skipped.
    fn apply(&mut self, edits: &[Edit<'_>]);

    /// A head from its pseudo-headers and fields, or trailers from fields; for local replies and new trailers.
    fn from_fields<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self;
}

/// A list of fields in one arena: viewing it costs a few stores per field, editing it no allocation once it has room.
#[derive(Clone, Debug, Default)]
pub struct FieldList {
    arena: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u32,
    name: u32,
    value: u32,
    live: bool,
    sensitive: bool,
}

impl Entry {
    #[inline]
    fn name<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.at as usize..][..self.name as usize]
    }

    fn value<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.at as usize + self.name as usize..][..self.value as usize]
    }

    /// Looks at the bytes only where the length does not tell.
    #[inline]
    fn is_named(&self, arena: &[u8], name: &[u8]) -> bool {
        self.name as usize == name.len() && self.name(arena) == name
    }
}

impl FieldList {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty list with room for so many fields and bytes of names and values.
    #[must_use]
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self {
            arena: Vec::with_capacity(bytes),
            entries: Vec::with_capacity(fields),
        }
    }

    /// Appends a field; `name` in lower case.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let entry = self.store(name, value, false);
        self.entries.push(entry);
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let both = |e: &Entry| (e.name(&self.arena), e.value(&self.arena));
        self.entries.iter().map(both)
    }

    /// The first value of `name`.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|e| e.is_named(&self.arena, name))
            .map(|e| e.value(&self.arena))
    }

    fn store(&mut self, name: &[u8], value: &[u8], sensitive: bool) -> Entry {
        let at = self.arena.len();
        self.arena.extend_from_slice(name);
        self.arena.extend_from_slice(value);
        // A message near 4 GiB of fields is far beyond every limit of a host.
        let cut = |n: usize| u32::try_from(n).expect("fields stay below 4 GiB");
        Entry {
            at: cut(at),
            name: cut(name.len()),
            value: cut(value.len()),
            live: true,
            sensitive,
        }
    }

    /// Marks all fields `name` as gone; whether there were any.
    fn remove(&mut self, name: &[u8]) -> bool {
        let mut found = false;
        for e in &mut self.entries {
            if e.is_named(&self.arena, name) {
                found |= e.live;
                e.live = false;
            }
        }
        found
    }
}

impl Fields for FieldList {
    fn view<'a>(&'a self, out: &mut Views<'a>) {
        out.extend(self.entries.iter().map(|e| {
            let field = FieldView::in_arena(&self.arena, e.at, e.name, e.value);
            if e.sensitive {
                field.sensitive()
            } else {
                field
            }
        }));
    }

    fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.get(name)
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn apply(&mut self, edits: &[Edit<'_>]) {
        let viewed = self.entries.len();
        let mut holes = false;
        // Pseudo-headers that the batch set; in front of the others once it is done, so that indices stand till then.
        let mut front = SmallVec::<[Entry; 4]>::new();
        for edit in edits {
            match *edit {
                Edit::Set {
                    name,
                    value,
                    sensitive,
                } => {
                    holes |= self.remove(name);
                    let entry = self.store(name, value, sensitive);
                    if name.first() == Some(&b':') {
                        front.retain(|e| !e.is_named(&self.arena, name));
                        front.push(entry);
                    } else {
                        self.entries.push(entry);
                    }
                }
                Edit::Add {
                    name,
                    value,
                    sensitive,
                } => {
                    let entry = self.store(name, value, sensitive);
                    self.entries.push(entry);
                }
                Edit::Delete { name } => holes |= self.remove(name),
                Edit::SetAt {
                    index,
                    value,
                    sensitive,
                } if index < viewed && self.entries[index].live => {
                    let name = self.entries[index].name(&self.arena).to_vec();
                    self.entries[index] = self.store(&name, value, sensitive);
                }
                Edit::DeleteAt { index } if index < viewed => {
                    self.entries[index].live = false;
                    holes = true;
                }
                Edit::SetAt { .. } | Edit::DeleteAt { .. } => {}
            }
        }
        if holes {
            self.entries.retain(|e| e.live);
        }
        if !front.is_empty() {
            self.entries.splice(0..0, front);
        }
    }

    fn from_fields<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut list = Self::new();
        for (name, value) in fields {
            list.push(name, value);
        }
        list
    }
}

impl<'a> FromIterator<(&'a [u8], &'a [u8])> for FieldList {
    fn from_iter<I: IntoIterator<Item = (&'a [u8], &'a [u8])>>(fields: I) -> Self {
        Self::from_fields(fields)
    }
}
