//! Responses of the host's own: short texts for clients, details for the log.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Version};

use super::body::OutBody;
use super::exchange::{Ended, Exchange};
use super::site::Action;
use super::upstream::HostReply;
use crate::engine::Dir;

/// The response of a route without cluster.
pub(super) fn direct(exchange: &Exchange, action: &Action) -> Response<OutBody> {
    let Action::Direct {
        status,
        headers,
        body,
    } = action
    else {
        return host_reply(exchange, HostReply::new(500, "host.no_action"));
    };
    exchange.status.set(status.as_u16());
    exchange.set_details("host.direct_response");
    own_response(exchange, *status, headers.clone(), body.clone())
}

/// The host's own reply: a short text; the details are for the log.
pub(super) fn host_reply(exchange: &Exchange, reply: HostReply) -> Response<OutBody> {
    exchange.status.set(reply.status);
    exchange.set_details(reply.details);
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if matches!(reply.status, 400 | 413) && exchange.version != Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    own_response(exchange, status, headers, reply_text(status))
}

/// The text of a reply of the host's own.
pub(super) fn reply_text(status: StatusCode) -> Bytes {
    Bytes::from(format!("{status}\n"))
}

fn own_response(
    exchange: &Exchange,
    status: StatusCode,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response<OutBody> {
    exchange.set_ended(Dir::Response, Ended::Complete);
    let bodyless = matches!(status.as_u16(), 204 | 304);
    if !bodyless {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let mut response = Response::new(
        if bodyless || exchange.method == Method::HEAD || body.is_empty() {
            OutBody::Empty
        } else {
            exchange.count_body(Dir::Response, body.len() as u64);
            OutBody::Full(body)
        },
    );
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
