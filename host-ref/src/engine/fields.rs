//! Header fields: the view that guests get, the edits that they ask for, and a list of the engine's own.

use smallvec::SmallVec;

use crate::ffi::FieldStore;
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

    /// What [`Fields::view`] appends, where the list keeps it in that form anyway: then nothing is built for a call.
    #[inline]
    fn ready(&self) -> Option<&[FieldView<'_>]> {
        None
    }

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

/// A list of fields in one arena: viewing it costs nothing, editing it no allocation once it has room.
#[derive(Clone, Debug, Default)]
pub struct FieldList {
    store: FieldStore,
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
            store: FieldStore::with_capacity(fields, bytes),
        }
    }

    /// Appends a field; `name` in lower case.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.store.push(name, value, false);
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.views().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store.views().is_empty()
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.store.views().iter().map(|f| (f.name(), f.value()))
    }

    /// The first value of `name`.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.store
            .find(0, name)
            .map(|at| self.store.views()[at].value())
    }

    /// Removes the fields `name` from `from` on.
    #[inline]
    fn remove(&mut self, mut from: usize, name: &[u8]) {
        while let Some(at) = self.store.find(from, name) {
            self.store.remove(at);
            from = at;
        }
    }

    fn set(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        if let Some(at) = self.store.find(0, name) {
            self.store.set_value(at, value, sensitive);
            return self.remove(at + 1, name);
        }
        self.store.push(name, value, sensitive);
        if name.first() == Some(&b':') {
            self.store.move_up(self.len() - 1, 0);
        }
    }

    /// Applies a batch with edits by index: what it removes stays in its place, marked, until the batch is done.
    fn apply_by_index(&mut self, edits: &[Edit<'_>]) {
        let viewed = self.len();
        let mut gone = SmallVec::<[bool; 64]>::from_elem(false, viewed);
        let mut in_front = 0;
        for edit in edits {
            match *edit {
                Edit::Set { name, .. } | Edit::Delete { name } => {
                    for (field, gone) in self.store.views().iter().zip(&mut gone) {
                        *gone |= field.name() == name;
                    }
                }
                Edit::DeleteAt { index } if index < viewed => gone[index] = true,
                _ => {}
            }
            match *edit {
                Edit::Set {
                    name,
                    value,
                    sensitive,
                }
                | Edit::Add {
                    name,
                    value,
                    sensitive,
                } => {
                    self.store.push(name, value, sensitive);
                    gone.push(false);
                }
                Edit::SetAt {
                    index,
                    value,
                    sensitive,
                } if index < viewed && !gone[index] => {
                    self.store.set_value(index, value, sensitive);
                }
                _ => {}
            }
        }
        self.store.remove_marked(&gone);
        // Pseudo-headers that the batch set again stand last.
        for at in 0..self.len() {
            if self.store.views()[at].name().first() == Some(&b':') {
                self.store.move_up(at, in_front);
                in_front += 1;
            }
        }
    }
}

impl Fields for FieldList {
    fn view<'a>(&'a self, out: &mut Views<'a>) {
        out.extend_from_slice(self.store.views());
    }

    #[inline]
    fn ready(&self) -> Option<&[FieldView<'_>]> {
        Some(self.store.views())
    }

    fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.get(name)
    }

    fn is_empty(&self) -> bool {
        self.store.views().is_empty()
    }

    fn apply(&mut self, edits: &[Edit<'_>]) {
        let by_index = |edit: &Edit<'_>| matches!(edit, Edit::SetAt { .. } | Edit::DeleteAt { .. });
        if edits.iter().any(by_index) {
            return self.apply_by_index(edits);
        }
        for edit in edits {
            match *edit {
                Edit::Set {
                    name,
                    value,
                    sensitive,
                } => self.set(name, value, sensitive),
                Edit::Add {
                    name,
                    value,
                    sensitive,
                } => self.store.push(name, value, sensitive),
                Edit::Delete { name } => self.remove(0, name),
                Edit::SetAt { .. } | Edit::DeleteAt { .. } => {}
            }
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
