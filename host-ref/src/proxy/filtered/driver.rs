//! The second gear: filters that look at bodies, hold something, reply, or reset. Feeds frames to the engine and sends on
//! what comes out, at the pace of the slower side. `feed` is what goes in, `parts` what comes out.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use http::header::HeaderValue;
use http_body::Frame;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::super::body::{Sender, Timer};
use super::super::fields::Message;
use super::super::upstream::{Answer, HostReply, Lease};
use super::Begin;
use super::task::{Rest, Task};
use crate::engine::Part;

type Call = Pin<Box<dyn Future<Output = Result<Answer, HostReply>>>>;

/// What is left to do for an exchange.
pub(super) struct Driver {
    pub(super) task: Task,
    /// The client's body, until it has been read or is forwarded.
    pub(super) client: Option<Incoming>,
    pub(super) client_bytes: u64,
    /// Whether the request's head has been decided on: only then may the client be told to send its body.
    pub(super) head_out: bool,
    pub(super) request: Option<Sender>,
    pub(super) call: Option<Call>,
    pub(super) upstream: Option<(Incoming, Lease)>,
    pub(super) upstream_bytes: u64,
    pub(super) response: Option<Sender>,
    pub(super) began: bool,
    pub(super) switches: Option<(OnUpgrade, HeaderValue)>,
    pub(super) idle: Timer,
    pub(super) total: Timer,
    /// Whether the engine may have parts that there was no room for, per direction.
    pub(super) blocked: [bool; 2],
    pub(super) begin: Option<Begin>,
}

/// What a [`Driver`] waits for.
pub(super) enum Event {
    ClientFrame(Option<Result<Frame<Bytes>, hyper::Error>>),
    Answer(Result<Answer, HostReply>),
    UpstreamFrame(Option<Result<Frame<Bytes>, hyper::Error>>),
    /// A time limit of the route.
    Timeout,
    /// Nobody reads the response any more.
    ClientGone,
    /// There may be something to take from the engine.
    Look,
}

impl Driver {
    /// For a request of which the engine has the head.
    pub(super) fn new(task: Task, client: Option<Incoming>) -> Self {
        let idle = task.x.route().and_then(|r| r.timeouts.idle.limit());
        Self {
            client,
            client_bytes: 0,
            head_out: false,
            request: None,
            call: None,
            upstream: None,
            upstream_bytes: 0,
            response: None,
            began: false,
            switches: None,
            idle: Timer::new(idle, None),
            total: Timer::new(None, task.until),
            blocked: [false; 2],
            begin: None,
            task,
        }
    }

    /// For a request that the first gear has sent, or tried to.
    pub(super) fn sent(task: Task) -> Self {
        Self {
            head_out: true,
            ..Self::new(task, None)
        }
    }

    /// For a response of which the engine has the head, and gave out `part`.
    pub(super) fn answered(task: Task, rest: Rest, part: Option<Part<Message>>) -> Self {
        let mut driver = Self {
            upstream: rest.body,
            switches: rest.switches,
            ..Self::sent(task)
        };
        if let Some(part) = part {
            driver.take_response_part(part);
        }
        driver
    }

    /// Drives until the client's side can begin; what is left then goes on as a task of its own.
    pub(super) async fn drive(mut self) -> Begin {
        let response = self.run_to_head().await?;
        let x = Rc::clone(&self.task.x);
        if self.has_work() {
            tokio::task::spawn_local(self.run_to_end());
        } else if let Some(filtered) = x.filtered.get() {
            // The end of a forwarded body would wake the connection's task for nothing.
            filtered.driver.take();
        }
        Ok(response)
    }
}
