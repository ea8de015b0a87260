//! A message's fields as the engine sees them: Envoy's own, in place, or a list of ours.

use std::cell::{Cell, UnsafeCell};

use proxy_golang_host::engine::{Edit, FieldList, FieldView, Fields, Views};

use super::abi::Header;
use super::envoy::{Filter, HeaderOf};

/// What the heads of one worker share; it lives as long as the process.
#[derive(Default)]
pub(crate) struct Heads {
    /// Counts hooks: what Envoy lent in an earlier one may be gone.
    hooks: Cell<u64>,
    /// Room for arrays, used again.
    spare: Cell<Vec<Vec<Header>>>,
}

impl Heads {
    /// For a worker that has just been made.
    pub(crate) fn leak() -> &'static Self {
        Box::leak(Box::default())
    }

    /// A hook has begun, or something that can change fields has run.
    #[inline]
    pub(crate) fn next_hook(&self) {
        self.hooks.set(self.hooks.get() + 1);
    }

    /// Envoy's fields of a stream.
    #[inline]
    pub(crate) fn live(&'static self, filter: Filter, of: HeaderOf) -> Head {
        Head::Live(Live {
            filter,
            of,
            heads: self,
            array: UnsafeCell::default(),
            fresh: Cell::new(0),
        })
    }

    fn take_spare(&self) -> Vec<Header> {
        let mut spare = self.spare.take();
        let array = spare.pop();
        self.spare.set(spare);
        array.unwrap_or_else(|| Vec::with_capacity(64))
    }

    fn give_spare(&self, array: Vec<Header>) {
        let mut spare = self.spare.take();
        if spare.len() < 16 {
            spare.push(array);
        }
        self.spare.set(spare);
    }
}

/// A head, or trailers.
pub(crate) enum Head {
    /// Envoy's. Views are Envoy's own array, for its layout is that of `pxg_field`: nothing is copied.
    Live(Live),
    /// Ours: a reply's, or what left, kept for LOG.
    Kept(FieldList),
}

/// Fields of a stream that lives.
pub(crate) struct Live {
    filter: Filter,
    of: HeaderOf,
    heads: &'static Heads,
    /// Envoy's array, as of the hook `fresh`; written only while no view of it is out.
    array: UnsafeCell<Vec<Header>>,
    /// 0 when an edit has made it stale.
    fresh: Cell<u64>,
}

impl Drop for Live {
    fn drop(&mut self) {
        let array = std::mem::take(self.array.get_mut());
        if array.capacity() > 0 {
            self.heads.give_spare(array);
        }
    }
}

impl Live {
    fn views(&self) -> &[FieldView<'_>] {
        let now = self.heads.hooks.get();
        if self.fresh.get() != now {
            // SAFETY: a hook has passed, or an edit by `&mut self`, since views were made last: views do not outlive
            // either, as the engine shows them to guests only inside of one call.
            let array = unsafe { &mut *self.array.get() };
            if array.capacity() == 0 {
                *array = self.heads.take_spare();
            }
            self.filter.fields(self.of, array);
            self.fresh.set(now);
        }
        // SAFETY: `FieldView` is `pxg_field`, and Envoy's header has the same bits: a pointer, and a length whose upper half
        // is 0, as no list of fields is near 4 GiB; `pxg_str.flags` 0 is "nothing special". The bytes live until the next
        // edit or hook, and so longer than the views.
        unsafe {
            let array = &*self.array.get();
            std::slice::from_raw_parts(array.as_ptr().cast(), array.len())
        }
    }

    /// An edit is made.
    fn changed(&mut self) {
        self.fresh.set(0);
    }
}

impl Head {
    fn views(&self) -> &[FieldView<'_>] {
        match self {
            Self::Live(live) => live.views(),
            Self::Kept(list) => list.ready().unwrap_or(&[]),
        }
    }

    /// The fields in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.views().iter().map(|f| (f.name(), f.value()))
    }
}

/// A copy of what stands there now.
impl Clone for Head {
    fn clone(&self) -> Self {
        Self::Kept(match self {
            Self::Live(_) => self.iter().collect(),
            Self::Kept(list) => list.clone(),
        })
    }
}

/// The name that an edit is about; empty if it is about an index.
fn name<'e>(edit: &Edit<'e>) -> &'e [u8] {
    match *edit {
        Edit::Set { name, .. } | Edit::Add { name, .. } | Edit::Delete { name } => name,
        Edit::SetAt { .. } | Edit::DeleteAt { .. } => &[],
    }
}

impl Fields for Head {
    fn view<'a>(&'a self, out: &mut Views<'a>) {
        out.extend_from_slice(self.views());
    }

    fn ready(&self) -> Option<&[FieldView<'_>]> {
        Some(self.views())
    }

    fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    fn is_empty(&self) -> bool {
        self.views().is_empty()
    }

    fn apply(&mut self, edits: &[Edit<'_>]) {
        match self {
            Self::Kept(list) => list.apply(edits),
            Self::Live(live) => {
                let by_index =
                    |edit: &Edit<'_>| matches!(edit, Edit::SetAt { .. } | Edit::DeleteAt { .. });
                if edits.iter().any(by_index) {
                    live.apply_by_index(edits);
                } else {
                    live.apply_by_name(edits);
                }
                live.changed();
            }
        }
    }

    fn from_fields<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        Self::Kept(FieldList::from_fields(fields))
    }
}

impl Live {
    /// Edits by name, in place. Envoy looks for a name, be it there or not, by an index of all fields that it first has to
    /// build: as the names are known here, one that is not there is just appended.
    fn apply_by_name(&self, edits: &[Edit<'_>]) {
        if let [edit] = edits {
            return self.edit(edit, self.has(name(edit)));
        }
        // Which edits' names are there, found before the first one, which may move what the views point at.
        let few = edits.len() <= 64;
        let mut there = 0u64;
        if few {
            for (i, edit) in edits.iter().enumerate() {
                there |= u64::from(self.has(name(edit))) << i;
            }
        }
        for (i, edit) in edits.iter().enumerate() {
            let there = !few
                || there & (1 << i) != 0
                || edits[..i].iter().any(|done| name(done) == name(edit));
            self.edit(edit, there);
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.views().iter().any(|field| field.name() == name)
    }

    /// One edit by name; `there`: a field of this name may be.
    fn edit(&self, edit: &Edit<'_>, there: bool) {
        match *edit {
            Edit::Add { name, value, .. } => self.filter.add_field(self.of, name, value),
            Edit::Set { name, value, .. } if there => {
                self.filter.set_field(self.of, name, Some(value));
            }
            Edit::Set { name, value, .. } => self.filter.add_field(self.of, name, value),
            Edit::Delete { name } if there => self.filter.set_field(self.of, name, None),
            Edit::Delete { .. } | Edit::SetAt { .. } | Edit::DeleteAt { .. } => {}
        }
    }

    /// Envoy has no edits by index: the batch is applied to a copy, and the names whose values differ are written anew.
    fn apply_by_index(&self, edits: &[Edit<'_>]) {
        let before: FieldList = self.views().iter().map(|f| (f.name(), f.value())).collect();
        let mut after = before.clone();
        after.apply(edits);
        fn values<'l>(list: &'l FieldList, name: &[u8]) -> Vec<&'l [u8]> {
            let all = list.iter().filter(|(known, _)| *known == name);
            all.map(|(_, value)| value).collect()
        }
        let mut done: Vec<&[u8]> = Vec::new();
        for (name, _) in before.iter().chain(after.iter()) {
            if done.contains(&name) {
                continue;
            }
            done.push(name);
            let new = values(&after, name);
            if values(&before, name) == new {
                continue;
            }
            match new.split_first() {
                None => self.filter.set_field(self.of, name, None),
                Some((first, rest)) => {
                    self.filter.set_field(self.of, name, Some(first));
                    for value in rest {
                        self.filter.add_field(self.of, name, value);
                    }
                }
            }
        }
    }
}
