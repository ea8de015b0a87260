//! The boundary to guests in shared libraries: what comes over it, what does not, and who may call when.

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod memory;
mod results;

use std::sync::Arc;

use bytes::Bytes;
use proxy_golang_abi::feature::{Feature, set_of};
use proxy_golang_abi::{Action, BodyMode, LogLevel, Phase, Status, Target};
use proxy_golang_host::engine::{
    BodyLength, Chain, Cx, EventView, FieldList, FieldView, Fields, Filter, Hub, HubLimits, OpKind,
    Part, Payload, Stream, StreamLimits, Views, Worker,
};
use proxy_golang_host::ffi::MetricValue;
use proxy_golang_host::loader::Host;
use support::*;

const LOG: Phase = Phase::LOG;
const WAKE: Phase = Phase::WAKE;

fn status(user: u64) -> Status {
    Status(i32::try_from(user.cast_signed()).expect("a status"))
}

/// A host, and a stream's worker on its hub.
struct Site {
    host: Arc<Host>,
    log: Log,
    worker: Worker,
}

impl Site {
    fn new() -> Self {
        let hub = Hub::new(1, HubLimits::default());
        let (host, log) = host_of(Arc::clone(&hub));
        Self {
            host,
            log,
            worker: Worker::new(hub, 0, || 0),
        }
    }

    /// A request through the filter, with the number of a case.
    fn request(&mut self, filter: &Arc<Filter>, case: u64) -> Stream<FieldList> {
        let mut stream = Stream::new(
            Chain::new(vec![Arc::clone(filter)]),
            1,
            StreamLimits::default(),
        );
        let mut head = FieldList::new();
        for (name, value) in [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/"),
        ] {
            head.push(name.as_bytes(), value.as_bytes());
        }
        head.push(b"case", case.to_string().as_bytes());
        stream.request_head(&mut self.cx(), head, BodyLength::None);
        stream
    }

    fn cx(&mut self) -> Cx<'_> {
        Cx {
            worker: &mut self.worker,
            attrs: &(),
        }
    }

    fn deliver(&mut self, stream: &mut Stream<FieldList>) {
        while let Some(mail) = self.worker.take_mail() {
            stream.deliver(&mut self.cx(), mail);
        }
    }

    fn end(&mut self, mut stream: Stream<FieldList>) {
        stream.close(&mut self.cx(), proxy_golang_abi::EndReason::CLIENT_ABORT);
    }

    /// The request's head, if it was given out.
    fn head(&mut self, stream: &mut Stream<FieldList>) -> Option<FieldList> {
        match stream.request_part(&mut self.cx())? {
            Part::Head { head, .. } => Some(head),
            _ => panic!("expected a head"),
        }
    }
}
