//! Exchanges to put through a guest: ordinary ones, and those at the edges of what HTTP allows.

use super::model::{Field, field};

/// A small generator of numbers: the same seed gives the same run.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// One message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) fields: Vec<Field>,
    /// The body as it arrives, read by read.
    pub(crate) reads: Vec<Vec<u8>>,
    pub(crate) trailers: Option<Vec<Field>>,
}

impl Message {
    pub(crate) fn ends_at_headers(&self) -> bool {
        self.reads.is_empty() && self.trailers.is_none()
    }

    fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.fields.push(field(name, value));
        self
    }

    fn body(mut self, reads: Vec<Vec<u8>>, length: bool) -> Self {
        if length {
            let n: usize = reads.iter().map(Vec::len).sum();
            self.fields.push(field("content-length", n.to_string()));
        }
        self.reads = reads;
        self
    }

    fn trailers(mut self, t: Vec<Field>) -> Self {
        self.trailers = Some(t);
        self
    }
}

/// A request and its response.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) name: &'static str,
    pub(crate) request: Message,
    pub(crate) response: Message,
    pub(crate) upgraded: bool,
}

fn request(method: &str, path: &str) -> Message {
    Message::default()
        .with(":method", method)
        .with(":scheme", "https")
        .with(":authority", "example.test")
        .with(":path", path)
        .with("user-agent", "pxg-conformance")
        .with("accept", "*/*")
}

fn response(status: &str) -> Message {
    Message::default()
        .with(":status", status)
        .with("content-type", "text/plain")
        .with("server", "upstream")
}

fn exchange(name: &'static str, request: Message, response: Message) -> Exchange {
    Exchange {
        name,
        request,
        response,
        upgraded: false,
    }
}

/// A request without a body, and a response with a short one.
pub(crate) fn get() -> Exchange {
    exchange(
        "get",
        request("GET", "/index.html?q=1").with("cookie", "a=1; b=2"),
        response("200").body(vec![b"hello, world\n".to_vec()], true),
    )
}

/// Bodies in both directions, in several reads.
pub(crate) fn post(sizes: &[usize]) -> Exchange {
    let reads = |seed: usize| -> Vec<Vec<u8>> {
        let mut at = seed;
        sizes
            .iter()
            .map(|n| {
                (0..*n)
                    .map(|_| {
                        at += 1;
                        b"the quick brown fox "[at % 20]
                    })
                    .collect()
            })
            .collect()
    };
    exchange(
        "post",
        request("POST", "/upload")
            .with("content-type", "text/plain")
            .body(reads(0), true),
        response("201").body(reads(7), true),
    )
}

/// One of each shape: without bodies, with bodies in chunks of these sizes, with trailers.
pub(crate) fn shapes(sizes: &[usize]) -> [Exchange; 3] {
    [get(), post(sizes), chunked()]
}

/// Bodies without a length, with trailers.
pub(crate) fn chunked() -> Exchange {
    let tail = || vec![field("x-checksum", "abc"), field("x-empty", "")];
    exchange(
        "chunked with trailers",
        request("PUT", "/chunked")
            .body(
                vec![b"one ".to_vec(), b"two ".to_vec(), b"three".to_vec()],
                false,
            )
            .trailers(tail()),
        response("200")
            .body(vec![b"alpha ".to_vec(), b"beta".to_vec()], false)
            .trailers(tail()),
    )
}

pub(crate) fn grpc() -> Exchange {
    exchange(
        "grpc",
        request("POST", "/pkg.Service/Method")
            .with("content-type", "application/grpc+proto")
            .with("te", "trailers")
            .body(vec![vec![0, 0, 0, 0, 5, 1, 2, 3, 4, 5]], false),
        Message::default()
            .with(":status", "200")
            .with("content-type", "application/grpc+proto")
            .body(vec![vec![0, 0, 0, 0, 3, 9, 9, 9]], false)
            .trailers(vec![field("grpc-status", "0"), field("grpc-message", "")]),
    )
}

fn head() -> Exchange {
    exchange(
        "head",
        request("HEAD", "/"),
        response("200").with("content-length", "1234"),
    )
}

fn no_content() -> Exchange {
    exchange(
        "204",
        request("DELETE", "/thing/1"),
        Message::default().with(":status", "204"),
    )
}

fn upgrade() -> Exchange {
    let mut e = exchange(
        "upgrade",
        request("GET", "/socket")
            .with("connection", "upgrade")
            .with("upgrade", "websocket"),
        Message::default()
            .with(":status", "101")
            .with("upgrade", "websocket"),
    );
    e.upgraded = true;
    e
}

fn connect() -> Exchange {
    let mut e = exchange(
        "connect",
        Message::default()
            .with(":method", "CONNECT")
            .with(":authority", "db.test:5432"),
        Message::default().with(":status", "200"),
    );
    e.upgraded = true;
    e
}

/// An HTTP/1.0 request without a host.
fn no_authority() -> Exchange {
    exchange(
        "http/1.0 without a host",
        Message::default()
            .with(":method", "GET")
            .with(":scheme", "http")
            .with(":path", "/"),
        response("200"),
    )
}

/// Empty, repeated, binary and long values, and many fields.
pub(crate) fn odd(rng: &mut Rng) -> Exchange {
    let mut q = request("GET", "/%00/%ff?a=%0a")
        .with("x-empty", "")
        .with("x-twice", "1")
        .with("x-twice", "2")
        .with("x-twice", "")
        .with("x-latin", [0xe9, 0xff, 0x80])
        .with("x-nul", [b'a', 0, b'b'])
        .with("authorization", "Bearer abc.def.ghi")
        .with("x-tab", "a\tb");
    let mut long = vec![b'x'; 60_000];
    long[30_000] = 0xff;
    q = q.with("x-long", long);
    for i in 0..120 {
        q = q.with(&format!("x-many-{i}"), rng.next().to_string());
    }
    // Pseudo-headers come first, in any order; the rest has no order but among values of one name.
    let n = rng.below(4);
    q.fields[..4].rotate_left(n);
    for f in &mut q.fields {
        if f.name == b"authorization" || f.name == b"cookie" {
            f.flags = 2;
        }
    }
    exchange(
        "odd fields",
        q,
        response("500")
            .with("set-cookie", "a=1")
            .with("set-cookie", "b=2; Path=/")
            .with("x-nul", [0, 0])
            .with("x-empty", ""),
    )
}

/// A body with NULs, bytes that are no UTF-8, and matches across reads.
pub(crate) fn binary(rng: &mut Rng) -> Exchange {
    let reads = vec![
        rng.bytes(1),
        rng.bytes(300),
        vec![0; 5],
        rng.bytes(4095),
        rng.bytes(17),
    ];
    exchange(
        "binary bodies",
        request("POST", "/bin")
            .with("content-type", "application/octet-stream")
            .body(reads.clone(), false),
        response("200").body(reads, false),
    )
}

/// Bodies of `n` bytes: longer than a limit.
pub(crate) fn large(n: usize) -> Exchange {
    let read = vec![b'L'; 16 << 10];
    let reads: Vec<Vec<u8>> = (0..n.div_ceil(read.len())).map(|_| read.clone()).collect();
    exchange(
        "large bodies",
        request("POST", "/large").body(reads.clone(), true),
        response("200").body(reads, true),
    )
}

/// Each of them once.
pub(crate) fn all(rng: &mut Rng) -> Vec<Exchange> {
    vec![
        get(),
        post(&[100, 1, 700]),
        chunked(),
        grpc(),
        head(),
        no_content(),
        upgrade(),
        connect(),
        no_authority(),
        odd(rng),
        binary(rng),
    ]
}

/// Messages that a host should not let through and that a guest must survive all the same.
pub(crate) fn broken(rng: &mut Rng) -> Vec<Exchange> {
    let bare = exchange("no fields at all", Message::default(), Message::default());
    let mut empty_path = get();
    for f in &mut empty_path.request.fields {
        if f.name == b":path" {
            f.value.clear();
        }
    }
    empty_path.name = "an empty path";
    let mut random = get();
    random.name = "random values";
    for f in &mut random.request.fields {
        let n = rng.below(300);
        f.value = rng.bytes(n);
    }
    for f in &mut random.response.fields {
        let n = rng.below(30);
        f.value = rng.bytes(n);
    }
    let mut names = get();
    names.name = "random names";
    for i in 0..20 {
        let n = rng.below(40);
        names.request.fields.push(Field {
            name: rng.bytes(n),
            value: vec![b'v'; i],
            flags: 0,
        });
    }
    vec![bare, empty_path, random, names]
}
