//! Whole messages as plain values.

use proxy_golang_guest::prelude::*;
use proxy_golang_guest::testing::{End, TestHost, get, request, response};
use proxy_golang_guest::whole::{
    Message, WholeRequest, WholeRequests, WholeResponse, WholeResponses,
};
use proxy_golang_guest::{Library, library};

struct Edit;

fn edit(message: &mut Message) -> Result<(), FilterError> {
    if message.get("x-fail").is_some() {
        return Err(FilterError::new("as asked"));
    }
    message.set("x-twice", "one");
    message.remove("x-gone");
    message.headers.extend([
        (b"x-new".to_vec(), b"1".to_vec()),
        (b"x-new".to_vec(), b"2".to_vec()),
    ]);
    if message.get(":path").is_some() {
        message.set(":path", "/elsewhere");
    }
    message.trailers.retain(|(name, _)| name != b"x-old");
    message.trailers.push((b"x-sum".to_vec(), b"7".to_vec()));
    message.body.make_ascii_uppercase();
    message.body.extend_from_slice(b"!");
    Ok(())
}

impl WholeRequest for Edit {
    fn configure(_: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError> {
        setup.max_body(Direction::Request, 1000);
        Ok(Self)
    }
    fn proxy_golang_request(&self, request: &mut Message) -> Result<(), FilterError> {
        edit(request)
    }
}

impl WholeResponse for Edit {
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
    fn proxy_golang_response(&self, response: &mut Message) -> Result<(), FilterError> {
        edit(response)
    }
}

static LIBRARY: Library = library! {
    "requests" => WholeRequests<Edit>,
    "responses" => WholeResponses<Edit>,
};

#[test]
fn everything_of_a_message_can_be_changed_in_one_crossing() {
    for seed in 0..32 {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let message = |m: proxy_golang_guest::testing::Message| {
            m.header("x-twice", "1")
                .header("x-gone", "1")
                .header("x-twice", "2")
                .header("x-same", "s")
                .body("hello")
                .trailer("x-old", "1")
                .trailer("x-keep", "2")
        };
        for filter in ["requests", "responses"] {
            let config = host.configure(filter, "").unwrap();
            let done = config.exchange(message(request("POST", "/here")), message(response(200)));
            let (got, path) = match filter {
                "requests" => (done.upstream(), Some("/elsewhere")),
                _ => (done.client(), None),
            };
            assert_eq!(got.get(":path"), path);
            assert_eq!(got.text(), "HELLO!");
            let all: Vec<_> = got
                .fields()
                .iter()
                .filter(|(n, _)| n.starts_with(b"x-"))
                .collect();
            let want: [(&[u8], &[u8]); 4] = [
                (b"x-twice", b"one"),
                (b"x-same", b"s"),
                (b"x-new", b"1"),
                (b"x-new", b"2"),
            ];
            assert!(
                all.iter().map(|(n, v)| (&n[..], &v[..])).eq(want),
                "{all:?}"
            );
            assert_eq!(
                (
                    got.get_trailer("x-old"),
                    got.get_trailer("x-keep"),
                    got.get_trailer("x-sum")
                ),
                (None, Some("2"), Some("7"))
            );
            assert_eq!(done.events().len(), 1, "one crossing");
        }
    }
}

#[test]
fn a_message_without_a_body_is_seen_too() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("requests", "").unwrap();
    let done = config.exchange(get("/"), response(204));
    assert_eq!(done.upstream().text(), "!");
    assert_eq!(done.upstream().get("x-twice"), Some("one"));
}

#[test]
fn an_error_and_a_long_body_fail_the_stream() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("requests", "").unwrap();
    let done = config.exchange(get("/").header("x-fail", "1"), response(204));
    assert_eq!(done.end(), &End::Failed("as asked".to_owned()));
    let done = config.exchange(request("POST", "/").body("x".repeat(1001)), response(204));
    assert!(
        matches!(done.end(), End::Failed(text) if text.contains("over the limit")),
        "{:?}",
        done.end()
    );
}
