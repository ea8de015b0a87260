//! Whole messages: one method that gets headers, body and trailers as plain Rust values and changes what it likes.
//!
//! The simplest filter there is, at the price of copies; it costs one crossing for each message. Anything finer (replies,
//! streaming, async) is for the phase traits.
//!
//! ```
//! use proxy_golang_guest::prelude::*;
//! use proxy_golang_guest::whole::{Message, WholeRequest, WholeRequests};
//!
//! struct Shout;
//! impl WholeRequest for Shout {
//!     fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Self)
//!     }
//!     fn proxy_golang_request(&self, request: &mut Message) -> Result<(), FilterError> {
//!         request.body.make_ascii_uppercase();
//!         request.set("x-shouted", "yes");
//!         Ok(())
//!     }
//! }
//! proxy_golang_guest::export! { "shout" => WholeRequests<Shout> }
//! ```

use crate::prelude::*;

/// Names in lower case with their values.
pub type FieldList = Vec<(Vec<u8>, Vec<u8>)>;

/// A message, copied. Length and framing are the host's: the body may become longer or shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The headers, pseudo-headers first; these can be changed but not added or removed.
    pub headers: FieldList,
    /// The body.
    pub body: Vec<u8>,
    /// The trailers. Changing them needs the feature TRAILERS_OUT of the direction.
    pub trailers: FieldList,
}

impl Message {
    /// The value of the first header of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(n, _)| n == name.as_bytes())?;
        Some(&found.1)
    }

    /// Leaves exactly one header of that name, in the place of the first one.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        let value = value.into();
        let same = |field: &(Vec<u8>, Vec<u8>)| field.0 == name.as_bytes();
        match self.headers.iter().position(same) {
            Some(first) => {
                self.headers[first].1 = value;
                let mut index = 0;
                self.headers.retain(|field| {
                    index += 1;
                    index - 1 <= first || !same(field)
                });
            }
            None => self.headers.push((name.as_bytes().to_vec(), value)),
        }
    }

    /// Removes all headers of that name.
    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(n, _)| n != name.as_bytes());
    }
}

macro_rules! whole {
    ($trait:ident, $method:ident, $wrapper:ident, $phase_trait:ident, $phase_method:ident, $what:literal) => {
        #[doc = concat!("Changes whole ", $what, "s; export it as [`", stringify!($wrapper), "`].")]
        pub trait $trait: Sized + Send + Sync + 'static {
            /// As [`Filter::configure`].
            ///
            /// # Errors
            /// Refuses the configuration.
            fn configure(input: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError>;

            #[doc = concat!("Changes the ", $what, ".")]
            ///
            /// # Errors
            /// Fails the stream. So does a body longer than the limit (`Setup::max_body`), before this is called.
            fn $method(&self, message: &mut Message) -> Result<(), FilterError>;
        }

        #[doc = concat!("The filter that runs a [`", stringify!($trait), "`].")]
        pub struct $wrapper<T>(T);

        impl<T: $trait> Filter for $wrapper<T> {
            type Ctx = ();

            fn configure(input: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError> {
                T::configure(input, setup).map(Self)
            }
        }

        impl<T: $trait> $phase_trait for $wrapper<T> {
            const MODE: BodyMode = BodyMode::WHOLE;

            fn $phase_method(&self, (): &mut (), ev: &BodyEvent<'_>) -> Outcome {
                run(ev, |message| self.0.$method(message))
            }
        }
    };
}

whole!(
    WholeRequest,
    proxy_golang_request,
    WholeRequests,
    OnRequestBody,
    on_request_body,
    "request"
);
whole!(
    WholeResponse,
    proxy_golang_response,
    WholeResponses,
    OnResponseBody,
    on_response_body,
    "response"
);

fn run(
    ev: &BodyEvent<'_>,
    change: impl FnOnce(&mut Message) -> Result<(), FilterError>,
) -> Outcome {
    if ev.is_over_limit() {
        return Err(FilterError::new(format_args!(
            "the body is over the limit with {} bytes; raise max_body or take the body as a stream",
            ev.len()
        )));
    }
    let before = Message {
        headers: ev.headers().to_vec(),
        body: ev.to_vec(),
        trailers: ev.trailers().to_vec(),
    };
    let mut message = before.clone();
    change(&mut message)?;
    for name in changed(&before.headers, &message.headers) {
        let mut values = values(&message.headers, name);
        match values.next() {
            None => ev.remove_header(name),
            Some(first) => ev.set_header(name, first),
        }
        values.for_each(|more| ev.add_header(name, more));
    }
    for name in changed(&before.trailers, &message.trailers) {
        let mut values = values(&message.trailers, name);
        match values.next() {
            None => ev.remove_trailer(name),
            Some(first) => ev.set_trailer(name, first),
        }
        values.for_each(|more| ev.add_trailer(name, more));
    }
    if message.body != before.body {
        ev.replace(message.body);
    }
    Ok(Verdict::Continue)
}

fn values<'l>(list: &'l FieldList, name: &'l [u8]) -> impl Iterator<Item = &'l [u8]> {
    list.iter()
        .filter(move |(n, _)| n == name)
        .map(|(_, value)| value.as_slice())
}

/// The names whose values differ, each once.
fn changed<'l>(before: &'l FieldList, after: &'l FieldList) -> Vec<&'l [u8]> {
    let mut names: Vec<&[u8]> = Vec::new();
    for (name, _) in before.iter().chain(after) {
        if !names.contains(&name.as_slice()) {
            names.push(name);
        }
    }
    names.retain(|name| !values(before, name).eq(values(after, name)));
    names
}
