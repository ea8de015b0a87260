//! A server of Envoy's external processing (`envoy.service.ext_proc.v3.ExternalProcessor`) that sets one field in each
//! request, as the guests do that it is compared with: one thread, one small message in, one out.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const FIELD: &str = "x-bench";
const VALUE: &str = "0123456789abcdef";

/// The protocol's messages, as far as they are used here; the others' fields are skipped in reading.
mod messages {
    use prost::{Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ProcessingRequest {
        #[prost(oneof = "Event", tags = "2, 4")]
        pub(super) event: Option<Event>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(super) enum Event {
        #[prost(message, tag = "2")]
        RequestHeaders(HttpHeaders),
        #[prost(message, tag = "4")]
        RequestBody(HttpBody),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct HttpHeaders {
        #[prost(message, optional, tag = "1")]
        pub(super) headers: Option<HeaderMap>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct HeaderMap {
        #[prost(message, repeated, tag = "1")]
        pub(super) headers: Vec<HeaderValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct HeaderValue {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(bytes = "vec", tag = "3")]
        pub(super) raw_value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct HttpBody {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) body: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ProcessingResponse {
        #[prost(oneof = "Answer", tags = "1, 3")]
        pub(super) answer: Option<Answer>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(super) enum Answer {
        #[prost(message, tag = "1")]
        RequestHeaders(CommonAnswer),
        #[prost(message, tag = "3")]
        RequestBody(CommonAnswer),
    }

    /// `HeadersResponse` and `BodyResponse`, which are the same but for their names.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct CommonAnswer {
        #[prost(message, optional, tag = "1")]
        pub(super) response: Option<CommonResponse>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct CommonResponse {
        #[prost(message, optional, tag = "2")]
        pub(super) header_mutation: Option<HeaderMutation>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct HeaderMutation {
        #[prost(message, repeated, tag = "1")]
        pub(super) set_headers: Vec<HeaderValueOption>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct HeaderValueOption {
        #[prost(message, optional, tag = "1")]
        pub(super) header: Option<HeaderValue>,
    }
}

use messages::{
    Answer, CommonAnswer, CommonResponse, Event, HeaderMutation, HeaderValue, HeaderValueOption,
    ProcessingRequest, ProcessingResponse,
};

/// Sets the field, to this value.
fn set(value: impl Into<Vec<u8>>) -> CommonAnswer {
    let header = HeaderValue {
        key: FIELD.into(),
        raw_value: value.into(),
    };
    let header_mutation = HeaderMutation {
        set_headers: vec![HeaderValueOption {
            header: Some(header),
        }],
    };
    CommonAnswer {
        response: Some(CommonResponse {
            header_mutation: Some(header_mutation),
        }),
    }
}

fn answer(request: ProcessingRequest) -> Result<ProcessingResponse, Status> {
    let answer = match request.event {
        Some(Event::RequestHeaders(_)) => Answer::RequestHeaders(set(VALUE)),
        Some(Event::RequestBody(body)) => Answer::RequestBody(set(body.body.len().to_string())),
        None => {
            return Err(Status::unimplemented(
                "only request headers and request bodies are processed: set the other processing modes to SKIP",
            ));
        }
    };
    Ok(ProcessingResponse {
        answer: Some(answer),
    })
}

type Answers = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

/// The method `Process`.
struct Process;

impl StreamingService<ProcessingRequest> for Process {
    type Response = ProcessingResponse;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let answers = request.into_inner().map(|request| answer(request?));
        let answers: Answers = Box::pin(answers);
        Box::pin(async move { Ok(Response::new(answers)) })
    }
}

#[derive(Clone)]
struct Processor;

impl NamedService for Processor {
    const NAME: &'static str = "envoy.service.ext_proc.v3.ExternalProcessor";
}

impl Service<http::Request<Body>> for Processor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != "/envoy.service.ext_proc.v3.ExternalProcessor/Process" {
                let status = Status::unimplemented(request.uri().path());
                return Ok(status.into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.streaming(Process, request).await)
        })
    }
}

/// Serves until the process is ended.
pub(crate) fn serve(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket)
            .with_context(|| format!("listen on {}", socket.display()))?;
        println!("listening");
        std::io::stdout().flush()?;
        tonic::transport::Server::builder()
            .add_service(Processor)
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .context("serve")
    })
}
