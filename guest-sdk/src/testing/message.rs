//! Requests and responses, as a test writes and reads them.

use crate::raw::mini::FieldList;

/// A request or a response: fields, body and trailers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub(crate) fields: FieldList,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: FieldList,
}

/// A request with method and path; authority `test`, scheme `https`.
#[must_use]
pub fn request(method: &str, path: &str) -> Message {
    Message::default()
        .header(":method", method)
        .header(":scheme", "https")
        .header(":authority", "test")
        .header(":path", path)
}

/// `request("GET", path)`.
#[must_use]
pub fn get(path: &str) -> Message {
    request("GET", path)
}

/// A response with that status.
#[must_use]
pub fn response(status: u16) -> Message {
    Message::default().header(":status", status.to_string())
}

impl Message {
    /// Appends a header; names in lower case.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.fields
            .push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Appends a trailer.
    #[must_use]
    pub fn trailer(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.trailers
            .push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    fn first<'m>(list: &'m FieldList, name: &str) -> Option<&'m str> {
        let (_, value) = list.iter().find(|(n, _)| n == name.as_bytes())?;
        Some(std::str::from_utf8(value).expect("the value is UTF-8; read `fields()` for raw bytes"))
    }

    /// The first header of that name.
    ///
    /// # Panics
    /// If the value is not UTF-8.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        Self::first(&self.fields, name)
    }

    /// The first trailer of that name, as [`Message::get`].
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn get_trailer(&self, name: &str) -> Option<&str> {
        Self::first(&self.trailers, name)
    }

    /// A response's status; 0 if there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.get(":status")
            .and_then(|s| s.parse().ok())
            .unwrap_or(0)
    }

    /// All headers, raw.
    #[must_use]
    pub fn fields(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.fields
    }

    /// All trailers, raw.
    #[must_use]
    pub fn trailers(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.trailers
    }

    /// The body.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The body as text, other bytes replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
