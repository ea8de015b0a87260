//! The HTTP library's header map as the engine's field list, edited in place.

use std::cell::RefCell;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};

use crate::engine::{Edit, FieldView, Fields, Views};

/// A message's head, or trailers.
///
/// A request's authority is kept as its `host` field, which is not shown beside `:authority`.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub start: Start,
    pub headers: HeaderMap,
}

/// What stands before the fields.
#[derive(Clone, Debug)]
pub(super) enum Start {
    Request {
        method: Method,
        uri: Uri,
        https: bool,
    },
    Response(StatusCode),
    /// Trailers.
    None,
}

/// A request's pseudo-headers in the order in which they are shown.
const PSEUDO: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];
/// Where `:authority` is among them.
const AUTHORITY: usize = 2;

fn scheme(https: bool) -> &'static [u8] {
    if https { b"https" } else { b"http" }
}

fn path(uri: &Uri) -> &[u8] {
    uri.path_and_query()
        .map_or("/", PathAndQuery::as_str)
        .as_bytes()
}

impl Message {
    pub(super) fn trailers(headers: HeaderMap) -> Self {
        Self {
            start: Start::None,
            headers,
        }
    }

    fn pseudo(&self, name: &[u8]) -> Option<&[u8]> {
        match (&self.start, name) {
            (Start::Request { method, .. }, b":method") => Some(method.as_str().as_bytes()),
            (Start::Request { https, .. }, b":scheme") => Some(scheme(*https)),
            (Start::Request { .. }, b":authority") => {
                let host = self.headers.get(header::HOST);
                Some(host.map_or(b"", HeaderValue::as_bytes))
            }
            (Start::Request { uri, .. }, b":path") => Some(path(uri)),
            (Start::Response(status), b":status") => Some(status.as_str().as_bytes()),
            _ => None,
        }
    }

    fn hides(&self, name: &HeaderName) -> bool {
        *name == header::HOST && matches!(self.start, Start::Request { .. })
    }

    /// The number of fields that [`Fields::view`] puts before the map's.
    fn pseudo_count(&self) -> usize {
        match self.start {
            Start::Request { .. } => 4,
            Start::Response(_) => 1,
            Start::None => 0,
        }
    }

    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) {
        match (&mut self.start, name) {
            (Start::Request { method, .. }, b":method") => {
                if let Ok(new) = Method::from_bytes(value) {
                    *method = new;
                }
            }
            (Start::Request { https, .. }, b":scheme") => *https = value == b"https",
            (Start::Request { .. }, b":authority") => {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    self.headers.insert(header::HOST, value);
                }
            }
            (Start::Request { uri, .. }, b":path") => {
                if let Ok(path) = PathAndQuery::try_from(value) {
                    *uri = Uri::from(path);
                }
            }
            (Start::Response(status), b":status") => {
                if let Ok(new) = StatusCode::from_bytes(value) {
                    *status = new;
                }
            }
            _ => {}
        }
    }

    fn edit(&mut self, edit: &Edit<'_>) {
        match *edit {
            Edit::Set { name, value, .. } if name.first() == Some(&b':') => {
                self.set_pseudo(name, value)
            }
            Edit::Set {
                name,
                value,
                sensitive,
            } => {
                if let Some((name, value)) = field(name, value, sensitive) {
                    self.headers.insert(name, value);
                }
            }
            Edit::Add {
                name,
                value,
                sensitive,
            } => {
                if let Some((name, value)) = field(name, value, sensitive) {
                    self.headers.append(name, value);
                }
            }
            Edit::Delete { name } => {
                with_name(name, |name| self.headers.remove(name));
            }
            Edit::SetAt { .. } | Edit::DeleteAt { .. } => {}
        }
    }

    /// Edits by index need the map as a list.
    fn edit_as_list(&mut self, edits: &[Edit<'_>]) {
        let skip = self.pseudo_count();
        let mut hidden = Vec::new();
        let mut list: Vec<Option<(HeaderName, HeaderValue)>> = Vec::new();
        for (name, value) in &self.headers {
            if self.hides(name) {
                hidden.push((name.clone(), value.clone()));
            } else {
                list.push(Some((name.clone(), value.clone())));
            }
        }
        let viewed = list.len();
        for edit in edits {
            match *edit {
                Edit::SetAt {
                    index,
                    value,
                    sensitive,
                } if index >= skip && index - skip < viewed => {
                    if let Some((name, old)) = &mut list[index - skip]
                        && let Some((_, new)) = field(name.as_str().as_bytes(), value, sensitive)
                    {
                        *old = new;
                    }
                }
                Edit::SetAt { index, value, .. } if index < skip => {
                    // A pseudo-header can be set, by whichever way it is named.
                    let name: &[u8] = match (&self.start, index) {
                        (Start::Response(_), _) => b":status",
                        (_, index) => PSEUDO[index],
                    };
                    self.set_pseudo(name, value);
                }
                Edit::DeleteAt { index } if index >= skip && index - skip < viewed => {
                    list[index - skip] = None
                }
                Edit::Set { name, .. } if name.first() == Some(&b':') => self.edit(edit),
                Edit::Set {
                    name,
                    value,
                    sensitive,
                } => {
                    let is = |f: &Option<(HeaderName, HeaderValue)>| {
                        f.as_ref()
                            .is_some_and(|(n, _)| n.as_str().as_bytes() == name)
                    };
                    for entry in list.iter_mut().filter(|f| is(f)) {
                        *entry = None;
                    }
                    // Behind the view: an index that comes later in the batch means what was there before.
                    list.push(field(name, value, sensitive));
                }
                Edit::Add {
                    name,
                    value,
                    sensitive,
                } => list.push(field(name, value, sensitive)),
                Edit::Delete { name } => {
                    for entry in &mut list {
                        if entry
                            .as_ref()
                            .is_some_and(|(n, _)| n.as_str().as_bytes() == name)
                        {
                            *entry = None;
                        }
                    }
                }
                Edit::SetAt { .. } | Edit::DeleteAt { .. } => {}
            }
        }
        // A `:authority` that the batch set is in the map already.
        let host = self
            .headers
            .remove(header::HOST)
            .filter(|_| !hidden.is_empty());
        self.headers.clear();
        for (name, value) in list.into_iter().flatten() {
            self.headers.append(name, value);
        }
        if let Some(host) = host {
            self.headers.insert(header::HOST, host);
        }
    }
}

thread_local! {
    /// Names that guests use, by a few of their bytes: the library parses a name byte by byte and copies it, and a guest
    /// uses the same few for every request. Who comes first stays, and lives as long as the process, so that a copy of the
    /// name counts no references.
    static NAMES: RefCell<[Option<HeaderName>; SLOTS]> =
        const { RefCell::new([const { None }; SLOTS]) };
}

/// Most names that a thread remembers.
const SLOTS: usize = 128;
/// The longest name that is remembered.
const MAX_NAME: usize = 64;

/// Shows the library's form of a name in lower case to `f`, if it is a name.
fn with_name<R>(name: &[u8], f: impl FnOnce(&HeaderName) -> R) -> Option<R> {
    let unknown = |f| HeaderName::from_lowercase(name).ok().as_ref().map(f);
    let [first, .., last] = *name else {
        return unknown(f);
    };
    let middle = usize::from(name[name.len() / 2]);
    let mixed = usize::from(first) ^ (usize::from(last) << 2) ^ (middle << 1);
    NAMES.with_borrow_mut(|names| {
        let slot = &mut names[(mixed ^ (name.len() * 5)) % SLOTS];
        match slot {
            Some(known) if known.as_str().as_bytes() == name => Some(f(known)),
            None if name.len() <= MAX_NAME => {
                let parsed = HeaderName::from_lowercase(name).ok()?;
                let kept = Box::leak(Box::<str>::from(parsed.as_str()));
                Some(f(slot.insert(HeaderName::from_static(kept))))
            }
            _ => unknown(f),
        }
    })
}

/// The engine has checked both against the grammar; what is refused all the same is left out.
fn field(name: &[u8], value: &[u8], sensitive: bool) -> Option<(HeaderName, HeaderValue)> {
    let name = with_name(name, HeaderName::clone)?;
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(sensitive);
    Some((name, value))
}

impl Fields for Message {
    fn view<'a>(&'a self, out: &mut Views<'a>) {
        let first = out.len();
        let mut hides_host = false;
        match &self.start {
            Start::Request { method, uri, https } => {
                // The authority is met below.
                let values = [method.as_str().as_bytes(), scheme(*https), b"", path(uri)];
                for (name, value) in PSEUDO.into_iter().zip(values) {
                    out.push(FieldView::new(name, value));
                }
                hides_host = true;
            }
            Start::Response(status) => {
                out.push(FieldView::new(b":status", status.as_str().as_bytes()));
            }
            Start::None => {}
        }
        // Slots that are there are filled faster than a vector that may grow.
        let pseudo = out.len();
        out.resize(pseudo + self.headers.len(), FieldView::new(b"", b""));
        let (before, slots) = out.split_at_mut(pseudo);
        let mut slots = slots.iter_mut();
        let mut host = None;
        for (name, value) in &self.headers {
            let name = name.as_str();
            if name == "host" && hides_host {
                host.get_or_insert(value);
                continue;
            }
            let Some(slot) = slots.next() else { break };
            *slot = FieldView::new(name.as_bytes(), value.as_bytes());
            if value.is_sensitive() {
                *slot = slot.sensitive();
            }
        }
        let unused = slots.len();
        if let Some(host) = host {
            before[first + AUTHORITY] = FieldView::new(PSEUDO[AUTHORITY], host.as_bytes());
        }
        out.truncate(out.len() - unused);
    }

    fn value(&self, name: &[u8]) -> Option<&[u8]> {
        match name {
            [b':', ..] => self.pseudo(name),
            b"content-type" => {
                let value = self.headers.get(header::CONTENT_TYPE);
                value.map(HeaderValue::as_bytes)
            }
            _ => {
                let name = std::str::from_utf8(name).ok()?;
                self.headers.get(name).map(HeaderValue::as_bytes)
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.headers.is_empty() && matches!(self.start, Start::None)
    }

    fn apply(&mut self, edits: &[Edit<'_>]) {
        let by_index = |edit: &Edit<'_>| matches!(edit, Edit::SetAt { .. } | Edit::DeleteAt { .. });
        if edits.iter().any(by_index) {
            self.edit_as_list(edits);
        } else {
            for edit in edits {
                self.edit(edit);
            }
        }
    }

    fn from_fields<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut message = Self::trailers(HeaderMap::new());
        for (name, value) in fields {
            if name == b":status" {
                message.start = Start::Response(StatusCode::from_bytes(value).unwrap_or_default());
            } else if let Some((name, value)) = field(name, value, false) {
                message.headers.append(name, value);
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::FieldList;

    fn request(fields: &[(&str, &str)]) -> Message {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        Message {
            start: Start::Request {
                method: Method::GET,
                uri: Uri::from_static("/a?b"),
                https: false,
            },
            headers,
        }
    }

    fn shown(message: &Message) -> Vec<(String, String)> {
        let mut views = Views::new();
        message.view(&mut views);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        views
            .iter()
            .map(|f| (text(f.name()), text(f.value())))
            .collect()
    }

    #[test]
    fn the_authority_is_shown_once() {
        let message = request(&[("host", "x:1"), ("accept", "*/*")]);
        let expected = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "x:1"),
            (":path", "/a?b"),
            ("accept", "*/*"),
        ];
        let shown = shown(&message);
        assert_eq!(
            shown
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn a_set_pseudo_header_is_what_goes_out() {
        let mut message = request(&[("host", "x")]);
        let set = |name: &'static str, value: &'static str| Edit::Set {
            name: name.as_bytes(),
            value: value.as_bytes(),
            sensitive: false,
        };
        message.apply(&[
            set(":path", "/new"),
            set(":authority", "y"),
            set(":method", "PUT"),
        ]);
        assert_eq!(message.value(b":path"), Some(&b"/new"[..]));
        assert_eq!(message.headers["host"], "y");
        let by_index = Edit::SetAt {
            index: 2,
            value: b"z",
            sensitive: false,
        };
        message.apply(&[by_index]);
        assert_eq!(message.value(b":authority"), Some(&b"z"[..]));
    }

    #[test]
    fn names_that_share_a_slot_stay_apart() {
        // More than there are slots, twice over, and one that is too long to be remembered.
        let names: Vec<_> = (0..3 * SLOTS).map(|n| format!("x-name-{n}")).collect();
        let long = "n".repeat(MAX_NAME + 1);
        for _ in 0..2 {
            for name in names.iter().chain([&long]) {
                let found = with_name(name.as_bytes(), HeaderName::clone);
                assert_eq!(found.unwrap().as_str(), name);
            }
        }
        assert!(with_name(b"Not-Lower", |_| ()).is_none());
        assert!(with_name(b"", |_| ()).is_none());
    }

    #[test]
    fn sensitive_values_stay_marked() {
        let mut message = request(&[]);
        message.apply(&[Edit::Add {
            name: b"authorization",
            value: b"secret",
            sensitive: true,
        }]);
        assert!(message.headers["authorization"].is_sensitive());
        let mut views = Views::new();
        message.view(&mut views);
        assert!(views.last().unwrap().is_sensitive());
    }

    /// Edits over few names, so that they meet.
    fn edits() -> impl Strategy<Value = Vec<(u8, usize, usize, u8)>> {
        proptest::collection::vec((0_u8..5, 0_usize..4, 0_usize..14, any::<u8>()), 0..8)
    }

    proptest! {
        /// The map and the engine's own list agree on what a batch does to each name.
        #[test]
        fn a_batch_does_what_it_does_to_a_list(
            fields in proptest::collection::vec((0_usize..4, any::<u8>()), 0..8),
            edits in edits(),
        ) {
            const NAMES: [&str; 4] = ["a", "b", "x-long-name", "accept"];
            let values: Vec<_> = (0..=255_u8).map(|n| format!("v{n}")).collect();
            let mut map = HeaderMap::new();
            for (name, value) in &fields {
                map.append(NAMES[*name], HeaderValue::from_str(&values[usize::from(*value)]).unwrap());
            }
            let mut message = Message::trailers(map);
            let mut views = Views::new();
            message.view(&mut views);
            let mut list: FieldList = views.iter().map(|f| (f.name(), f.value())).collect();
            let n = views.len();
            drop(views);
            let edits: Vec<Edit<'_>> = edits
                .iter()
                .filter_map(|(kind, name, index, value)| {
                    let (name, value) = (NAMES[*name].as_bytes(), values[usize::from(*value)].as_bytes());
                    Some(match kind {
                        0 => Edit::Set { name, value, sensitive: false },
                        1 => Edit::Add { name, value, sensitive: false },
                        2 => Edit::Delete { name },
                        3 if *index < n => Edit::SetAt { index: *index, value, sensitive: false },
                        4 if *index < n => Edit::DeleteAt { index: *index },
                        _ => return None,
                    })
                })
                .collect();
            message.apply(&edits);
            list.apply(&edits);
            for name in NAMES {
                let from_map: Vec<_> = message.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
                let from_list: Vec<_> =
                    list.iter().filter(|(n, _)| *n == name.as_bytes()).map(|(_, v)| v).collect();
                prop_assert_eq!(from_map, from_list, "{}", name);
            }
        }
    }
}
