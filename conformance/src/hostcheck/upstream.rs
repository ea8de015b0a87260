//! The upstream: HTTP/1.1 on loopback. It answers as the case that a request names has told it, and keeps what it saw.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::changes::Changes;
use super::message::{BodyReader, Framing, Head, chunk, last_chunk};
use super::record::CASE_FIELD;

/// A step of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Bytes as they are.
    Send(Vec<u8>),
    /// Until the request has come whole.
    WholeRequest,
    /// Until the case opens the gate.
    Gate(String),
    /// Ends the connection with a reset.
    Reset,
    /// Closes the connection.
    Close,
    /// Sends back what comes, for tunnels.
    Echo,
}

/// How a request is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) steps: Vec<Step>,
    head: Vec<u8>,
}

impl Answer {
    /// A response with a status and no more; add fields, then one of the bodies.
    pub(crate) fn status(status: u16) -> Self {
        Self {
            steps: vec![Step::WholeRequest],
            head: format!("HTTP/1.1 {status} Whatever\r\n").into_bytes(),
        }
    }

    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.head
            .extend(format!("{name}: {value}\r\n").chars().map(|c| c as u8));
        self
    }

    /// Answers before the request is whole.
    pub(crate) fn early(mut self) -> Self {
        self.steps.retain(|s| !matches!(s, Step::WholeRequest));
        self
    }

    fn head_done(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        if !head.is_empty() {
            head.extend_from_slice(b"\r\n");
            self.steps.push(Step::Send(head));
        }
    }

    /// A body of this length.
    pub(crate) fn body(self, body: &[u8]) -> Self {
        let mut a = self.field("content-length", &body.len().to_string());
        a.head_done();
        if !body.is_empty() {
            a.steps.push(Step::Send(body.to_vec()));
        }
        a
    }

    /// A chunked body, each chunk sent by itself.
    pub(crate) fn chunks(self, chunks: &[&[u8]]) -> Self {
        self.chunks_and_trailers(chunks, &[])
    }

    /// A chunked body with trailers.
    pub(crate) fn chunks_and_trailers(self, chunks: &[&[u8]], trailers: &[(&str, &str)]) -> Self {
        let mut a = self.field("transfer-encoding", "chunked");
        if !trailers.is_empty() {
            let names: Vec<&str> = trailers.iter().map(|t| t.0).collect();
            a = a.field("trailer", &names.join(", "));
        }
        a.head_done();
        a.steps.extend(chunks.iter().map(|c| Step::Send(chunk(c))));
        a.steps.push(Step::Send(last_chunk(trailers)));
        a
    }

    /// The head ends here, and the case adds steps.
    pub(crate) fn head(mut self) -> Self {
        self.head_done();
        self
    }

    /// One more step.
    pub(crate) fn then(mut self, s: Step) -> Self {
        self.head_done();
        self.steps.push(s);
        self
    }

    pub(crate) fn send(self, bytes: &[u8]) -> Self {
        self.then(Step::Send(bytes.to_vec()))
    }

    pub(crate) fn gate(self, name: &str) -> Self {
        self.then(Step::Gate(name.into()))
    }

    /// Steps before everything else.
    pub(crate) fn first(mut self, s: Step) -> Self {
        self.head_done();
        self.steps.insert(0, s);
        self
    }
}

/// A request that came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// It came to its end.
    pub(crate) complete: bool,
    /// The connection was closed or reset before that, or before the answer had gone.
    pub(crate) broken: bool,
}

impl Seen {
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.head.get(name)
    }

    pub(crate) fn text(&self) -> String {
        self.body.iter().map(|b| char::from(*b)).collect()
    }
}

#[derive(Default)]
struct OfCase {
    answer: Option<Answer>,
    seen: Vec<Rc<RefCell<Seen>>>,
    gates: Vec<String>,
}

/// What the upstream knows of all cases.
#[derive(Clone)]
pub(crate) struct Upstream(Rc<Inner>);

#[derive(Default)]
struct Inner {
    cases: RefCell<HashMap<String, OfCase>>,
    /// A gate was opened.
    opened: Notify,
    /// A request came, or more of one.
    changes: Changes,
}

impl Upstream {
    /// Listens; the server runs on this thread's local tasks.
    pub(crate) async fn listen(changes: Changes) -> Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let up = Self(Rc::new(Inner {
            changes,
            ..Inner::default()
        }));
        let server = up.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let server = server.clone();
                tokio::task::spawn_local(async move { server.connection(stream).await });
            }
        });
        Ok((up, address))
    }

    pub(crate) fn answer(&self, case: &str, a: Answer) {
        self.0
            .cases
            .borrow_mut()
            .entry(case.into())
            .or_default()
            .answer = Some(a);
    }

    pub(crate) fn open(&self, case: &str, gate: &str) {
        self.0
            .cases
            .borrow_mut()
            .entry(case.into())
            .or_default()
            .gates
            .push(gate.into());
        self.0.opened.notify_waiters();
    }

    /// The requests of a case that came so far.
    pub(crate) fn seen(&self, case: &str) -> Vec<Seen> {
        self.0
            .cases
            .borrow()
            .get(case)
            .map(|c| c.seen.iter().map(|s| s.borrow().clone()).collect())
            .unwrap_or_default()
    }

    async fn gate(&self, case: &str, gate: &str) {
        loop {
            let opened = self.0.opened.notified();
            if self
                .0
                .cases
                .borrow()
                .get(case)
                .is_some_and(|c| c.gates.iter().any(|g| g == gate))
            {
                return;
            }
            opened.await;
        }
    }

    async fn connection(&self, mut stream: TcpStream) {
        let (mut read, mut write) = stream.split();
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let (head, n) = loop {
                if let Some(h) = Head::parse(&buffer) {
                    break h;
                }
                let mut part = [0u8; 16384];
                match read.read(&mut part).await {
                    Ok(n) if n > 0 => buffer.extend_from_slice(&part[..n]),
                    _ => return,
                }
            };
            buffer.drain(..n);
            let case = head.get(CASE_FIELD).unwrap_or_default();
            let mut body = BodyReader::new(Framing::of_request(&head));
            let method = head.method().to_string();
            let seen = Rc::new(RefCell::new(Seen {
                head,
                ..Seen::default()
            }));
            let answer = {
                let mut cases = self.0.cases.borrow_mut();
                let c = cases.entry(case.clone()).or_default();
                c.seen.push(seen.clone());
                c.answer.clone()
            }
            .unwrap_or_else(|| Answer::status(200).body(b"hello"));
            let progress = Rc::new(Notify::new());
            let echo = Rc::new(RefCell::new(None::<Vec<u8>>));
            let upgraded = answer.steps.iter().any(|s| matches!(s, Step::Echo));
            let mut closing = false;
            {
                // Reads the request while the answer goes out.
                let reading = async {
                    loop {
                        body.feed(&mut buffer);
                        {
                            let mut s = seen.borrow_mut();
                            let have = s.body.len();
                            s.body.extend_from_slice(&body.body[have..]);
                            s.trailers.clone_from(&body.trailers);
                            s.complete = body.done;
                            s.broken |= body.broken.is_some();
                        }
                        progress.notify_waiters();
                        self.0.changes.tell();
                        if body.done && upgraded {
                            *echo.borrow_mut() = Some(std::mem::take(&mut buffer));
                            return true;
                        }
                        if body.done || body.broken.is_some() {
                            return true;
                        }
                        let mut part = vec![0u8; 65536];
                        match read.read(&mut part).await {
                            Ok(n) if n > 0 => buffer.extend_from_slice(&part[..n]),
                            _ => {
                                seen.borrow_mut().broken = true;
                                progress.notify_waiters();
                                self.0.changes.tell();
                                return false;
                            }
                        }
                    }
                };
                let answering = async {
                    for step in &answer.steps {
                        match step {
                            Step::Send(b) => {
                                // A response to HEAD has no body: only the head goes out.
                                if method == "HEAD" && !b.starts_with(b"HTTP/1.1 ") {
                                    continue;
                                }
                                if write.write_all(b).await.is_err() {
                                    seen.borrow_mut().broken = true;
                                    self.0.changes.tell();
                                    return false;
                                }
                                tokio::task::yield_now().await;
                            }
                            Step::WholeRequest => {
                                while !seen.borrow().complete && !seen.borrow().broken {
                                    progress.notified().await;
                                }
                            }
                            Step::Gate(g) => self.gate(&case, g).await,
                            Step::Reset => {
                                let _ = write.as_ref().set_zero_linger();
                                return false;
                            }
                            Step::Close => return false,
                            Step::Echo => return true,
                        }
                    }
                    true
                };
                let (mut read_on, mut write_on) = (None, None);
                tokio::pin!(reading, answering);
                while write_on.is_none() || read_on.is_none() {
                    tokio::select! {
                        biased;
                        r = &mut reading, if read_on.is_none() => read_on = Some(r),
                        w = &mut answering, if write_on.is_none() => {
                            write_on = Some(w);
                            if !w { break; }
                        }
                    }
                    // A connection that the host has closed takes no answer.
                    if read_on == Some(false) && write_on.is_none() {
                        break;
                    }
                }
                closing |= write_on != Some(true) || read_on != Some(true);
            }
            if closing {
                return;
            }
            if upgraded {
                let rest = echo.borrow_mut().take().unwrap_or_default();
                let _ = write.write_all(&rest).await;
                let mut part = [0u8; 16384];
                while let Ok(n) = read.read(&mut part).await {
                    if n == 0 || write.write_all(&part[..n]).await.is_err() {
                        break;
                    }
                    seen.borrow_mut().body.extend_from_slice(&part[..n]);
                    self.0.changes.tell();
                }
                return;
            }
        }
    }
}
