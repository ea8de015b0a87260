//! Random scenarios: which one follows from the seed and its number alone.

use proxy_golang_abi::feature::Feature;

use crate::host::messages::Rng;
use crate::scenario::{
    Bytes, Drive, HostShape, Lines, OWN_CONFS, Open, Scenario, Step, SubjectShape,
};
use crate::subject::Subject;

/// So many executions share a host, which lives in one process.
pub(super) const BATCH: u64 = 16;

fn rng(seed: u64, what: u64, n: u64) -> Rng {
    let mut r = Rng::new(seed ^ what.rotate_left(32) ^ n.wrapping_mul(0x9e37_79b9));
    Rng::new(r.next())
}

fn one_in(r: &mut Rng, n: usize) -> bool {
    r.below(n) == 0
}

fn pick<'a, T: ?Sized>(r: &mut Rng, of: &[&'a T]) -> &'a T {
    of[r.below(of.len())]
}

/// The host of the batch of this number.
pub(super) fn host(seed: u64, batch: u64) -> HostShape {
    let r = &mut rng(seed, 1, batch);
    let mut h = HostShape {
        collects: batch % 4 == 3,
        workers: [2, 2, 1, 4][r.below(4)],
        small_values: one_in(r, 5),
        tail: [0, 0, 8, 64, 512][r.below(5)],
        log_level: [0, 0, 2, 5][r.below(4)],
        ..HostShape::default()
    };
    // The first hosts are full ones, so that what any host shows is seen early.
    if batch > 1 && !one_in(r, 3) {
        let most = [1, 3, 12][r.below(3)];
        h.without = (0..=r.below(most))
            .map(|_| Feature::ALL[r.below(Feature::ALL.len())].1.to_string())
            .collect();
        h.without.sort();
        h.without.dedup();
        for entry in ["log", "get_ext", "page"] {
            if one_in(r, 6) {
                h.null.push(entry.to_string());
            }
        }
    }
    h
}

/// So many words of the library's own are used.
pub(super) const WORDS: usize = 300;

/// The execution of this number. `library`: words that the guest may know.
pub(super) fn scenario(seed: u64, n: u64, subjects: &[Subject], library: &[String]) -> Scenario {
    let host = host(seed, n / BATCH);
    let r = &mut rng(seed, 2, n);
    let mut words = words(subjects);
    words.extend_from_slice(library);
    // A filter may wait for good for what these say.
    let asked = |w: &String| {
        let mut fields = subjects
            .iter()
            .flat_map(|s| s.fields.iter().chain(&s.companion));
        fields.any(|f| f.0.eq_ignore_ascii_case(w))
    };
    words.retain(|w| !OWNED.contains(&w.as_str()) && !asked(w));
    words.sort();
    words.dedup();
    let lanes = if one_in(r, 4) {
        host.loop_threads().min(2)
    } else {
        1
    };
    let mut g = Generator { r, words };
    let lanes = (0..lanes).map(|l| g.lane(l, subjects.len())).collect();
    Scenario {
        shows: None,
        host,
        subjects: subjects.iter().map(SubjectShape::from).collect(),
        lanes,
    }
}

/// Fields whose values follow from the message: random ones would be a fault of the host's.
const OWNED: [&str; 5] = [
    "connection",
    "content-length",
    "host",
    "transfer-encoding",
    "upgrade",
];

/// What the configurations speak of: likely names and values of fields.
fn words(subjects: &[Subject]) -> Vec<String> {
    let mut out = Vec::new();
    for s in subjects {
        let text = String::from_utf8_lossy(&s.config).into_owned();
        out.extend(
            text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
                .filter(|w| (2..40).contains(&w.len()))
                .map(str::to_ascii_lowercase)
                .take(40),
        );
    }
    out
}

const NAMES: [&str; 20] = [
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-type",
    "cookie",
    "etag",
    "expect",
    "if-none-match",
    "origin",
    "referer",
    "server",
    "set-cookie",
    "te",
    "traceparent",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-request-id",
];
const VALUES: [&str; 11] = [
    "",
    "1",
    "*/*",
    "text/plain",
    "application/json",
    "application/grpc",
    "Bearer abc.def.ghi",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "a=1; b=2",
    "gzip, br",
    "no-store",
];
const METHODS: [&str; 8] = [
    "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW",
];
const PATHS: [&str; 8] = [
    "/",
    "/index.html",
    "/a/../b",
    "/%00/%ff",
    "*",
    "/a?b=c&d=%20",
    "//",
    "/pkg.Service/Method",
];
const STATUSES: [&str; 10] = [
    "200", "201", "204", "206", "301", "304", "404", "429", "500", "503",
];

struct Generator<'r> {
    r: &'r mut Rng,
    words: Vec<String>,
}

impl Generator<'_> {
    fn odds(&mut self, n: usize) -> bool {
        one_in(self.r, n)
    }

    fn lane(&mut self, lane: u32, subjects: usize) -> Vec<Step> {
        let streams = 1 + u32::try_from(self.r.below(4)).unwrap_or(0);
        let mut steps = Vec::new();
        let mut confs: Vec<u32> = Vec::new();
        // Numbers from here on are configurations of this lane.
        let own = OWN_CONFS * (lane + 1);
        let mut open: Vec<u32> = Vec::new();
        let mut next = 0;
        for _ in 0..streams * 4 + 2 {
            if next < streams && (open.is_empty() || self.odds(2)) {
                let conf = if !confs.is_empty() && self.odds(2) {
                    confs[self.r.below(confs.len())]
                } else {
                    u32::try_from(self.r.below(subjects.max(1))).unwrap_or(0)
                };
                steps.push(Step::Open(Box::new(self.open(next, conf))));
                open.push(next);
                next += 1;
            }
            if open.is_empty() {
                continue;
            }
            let at = self.r.below(open.len());
            let stream = open[at];
            match self.r.below(22) {
                0..=8 => steps.push(Step::Go {
                    stream,
                    events: 1 + u32::try_from(self.r.below(6)).unwrap_or(0),
                }),
                9..=11 => steps.push(Step::Wait { stream }),
                12 | 13 => {
                    steps.push(Step::Abort { stream });
                    open.remove(at);
                }
                14 | 15 => {
                    steps.push(Step::Finish { stream });
                    open.remove(at);
                }
                16 => steps.push(Step::Turn),
                17 => steps.push(Step::Pause {
                    us: [1, 100, 800, 5000][self.r.below(4)],
                }),
                18 if self.odds(3) => steps.push(Step::Collect { ms: 1 }),
                19 if lane == 0 => {
                    let conf = own + u32::try_from(confs.len()).unwrap_or(0);
                    confs.push(conf);
                    steps.push(Step::Configure {
                        conf,
                        subject: self.r.below(subjects.max(1)),
                    });
                }
                20 if !confs.is_empty() => {
                    let conf = confs[self.r.below(confs.len())];
                    steps.push(Step::Drop { conf });
                }
                21 if lane == 0 && self.odds(2) => {
                    let n = self.r.below(120);
                    steps.push(Step::Offer {
                        subject: self.r.below(subjects.max(1)),
                        bytes: Bytes(self.r.bytes(n)),
                        validate: self.odds(3),
                    });
                }
                _ => steps.push(Step::Go { stream, events: 1 }),
            }
        }
        steps
    }

    fn open(&mut self, stream: u32, conf: u32) -> Open {
        let upgraded = self.odds(30);
        let method = if upgraded {
            "GET"
        } else {
            pick(self.r, &METHODS)
        };
        let path = pick(self.r, &PATHS);
        let mut pseudo: Vec<(Bytes, Bytes)> = vec![
            (Bytes::from(":method"), Bytes::from(method)),
            (Bytes::from(":scheme"), Bytes::from("https")),
            (Bytes::from(":authority"), Bytes::from("example.test")),
            (Bytes::from(":path"), Bytes::from(path)),
        ];
        if self.odds(12) {
            // HTTP/1.0 knows no authority.
            pseudo.remove(2);
        }
        let turn = self.r.below(pseudo.len());
        pseudo.rotate_left(turn);
        let with_body = !upgraded && !matches!(method, "GET" | "HEAD" | "DELETE") || self.odds(20);
        let request = self.message(pseudo, with_body && !upgraded);
        let status = if upgraded {
            "101"
        } else {
            pick(self.r, &STATUSES)
        };
        let body = !upgraded && method != "HEAD" && !matches!(status, "204" | "304");
        let body = body && !self.odds(4);
        let response = self.message(vec![(Bytes::from(":status"), Bytes::from(status))], body);
        Open {
            stream,
            conf,
            request,
            response,
            upgraded,
            drive: self.drive(),
        }
    }

    fn drive(&mut self) -> Drive {
        Drive {
            left: self.odds(4),
            struct_tail: if self.odds(3) {
                8 * self.r.below(17)
            } else {
                0
            },
            wild_empty: self.odds(3),
            scratch_more: self
                .odds(3)
                .then(|| [0, 64, 4096, 64 << 10][self.r.below(4)]),
            chunks: self.odds(2).then(|| 1 + self.r.below(64)),
            max_body: self
                .odds(3)
                .then(|| [4, 100, 1000, 20 << 10][self.r.below(4)]),
            abort_pending: self.odds(12),
            late_end: self.odds(3),
            local_origin: self.odds(20),
            unknown_flags: if self.odds(12) { 0x8000_4000 } else { 0 },
            lies: if self.odds(25) {
                vec![1000]
            } else {
                Vec::new()
            },
            abort_at: self.odds(12).then(|| 1 + self.r.below(8)),
            turns: self.odds(3).then(|| self.r.next()),
            borrow_grace_ms: if self.odds(25) { 3 } else { 0 },
        }
    }

    fn name(&mut self) -> Bytes {
        if !self.words.is_empty() && self.odds(3) {
            let n = self.r.below(self.words.len());
            return Bytes::from(self.words[n].as_str());
        }
        if self.odds(6) {
            let n = 1 + self.r.below(30);
            let name: String = (0..n)
                .map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789-_"[self.r.below(38)]))
                .collect();
            return Bytes::from(name.as_str());
        }
        Bytes::from(pick(self.r, &NAMES))
    }

    fn value(&mut self) -> Bytes {
        match self.r.below(12) {
            0 => {
                let n = self.r.below(60);
                let mut b = self.r.bytes(n);
                b.retain(|b| !(b.is_ascii_control() || *b == b' '));
                Bytes(b)
            }
            1 => Bytes(vec![b'v'; self.r.below(300)]),
            2 if self.odds(6) => Bytes(vec![b'V'; 1000 + self.r.below(60_000)]),
            3 => Bytes(vec![b'a', b'\t', 0xff]),
            4 if !self.words.is_empty() => {
                let n = self.r.below(self.words.len());
                Bytes::from(self.words[n].as_str())
            }
            _ => Bytes::from(pick(self.r, &VALUES)),
        }
    }

    fn fields(&mut self, most: usize) -> Vec<(Bytes, Bytes)> {
        let n = self.r.below(most + 1);
        let mut out: Vec<(Bytes, Bytes)> = (0..n).map(|_| (self.name(), self.value())).collect();
        // The same name more than once.
        if out.len() > 1 && self.odds(3) {
            let from = self.r.below(out.len());
            let value = self.value();
            out.push((out[from].0.clone(), value));
        }
        out
    }

    fn message(&mut self, mut fields: Vec<(Bytes, Bytes)>, body: bool) -> Lines {
        let most = if self.odds(15) { 150 } else { 8 };
        fields.extend(self.fields(most));
        let mut reads: Vec<Bytes> = Vec::new();
        if body {
            let n = match self.r.below(8) {
                0 => 0,
                1 => 1 + self.r.below(30),
                _ => 1 + self.r.below(5),
            };
            let most =
                [1, 8, 300, 3000, if self.odds(8) { 100_000 } else { 5000 }][self.r.below(5)];
            for _ in 0..n {
                let len = self.r.below(most + 1);
                reads.push(if self.odds(3) {
                    Bytes(self.r.bytes(len))
                } else {
                    Bytes(vec![b'b'; len])
                });
            }
        }
        let trailers = (body && self.odds(3)).then(|| self.fields(3));
        // A length is never wrong: a host would not let that through.
        if !reads.is_empty() && trailers.is_none() && self.odds(2) {
            let n: usize = reads.iter().map(|r| r.0.len()).sum();
            fields.push((
                Bytes::from("content-length"),
                Bytes::from(n.to_string().as_str()),
            ));
        }
        Lines {
            fields,
            reads,
            trailers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_is_the_same_scenario() {
        for n in 0..200 {
            let a = scenario(7, n, &[], &[]);
            assert_eq!(a, scenario(7, n, &[], &[]));
            assert_eq!(a.host, host(7, n / BATCH));
            assert!(a.len() > 0);
            assert_eq!(Scenario::parse(&a.to_text().unwrap()).unwrap(), a);
        }
        assert_ne!(scenario(7, 1, &[], &[]), scenario(8, 1, &[], &[]));
        assert_ne!(scenario(7, 1, &[], &[]), scenario(7, 2, &[], &[]));
    }

    #[test]
    fn hosts_differ_and_exist() {
        let hosts: Vec<HostShape> = (0..60).map(|b| host(1, b)).collect();
        assert!(hosts.iter().any(|h| !h.without.is_empty()));
        assert!(hosts.iter().any(|h| !h.null.is_empty()));
        assert!(hosts.iter().any(|h| h.collects));
        assert!(hosts[0].without.is_empty() && hosts[0].null.is_empty());
    }
}
