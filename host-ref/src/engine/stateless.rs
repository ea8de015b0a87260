//! What of a result can be judged without its stream: grammar, ownership of fields, ranges.
//!
//! `complete` and `apply` ask before they accept, so that a guest can still mend its result (PXG-ASY-020); the
//! engine asks for every result before anything of it is visible.

use proxy_golang_abi::{ReplyFlags, Status, Target};

use super::grammar;
use super::outcome::{Fault, OpKind, Outcome, Reply};

/// What is wrong with `outcome` whatever the state of its stream.
///
/// # Errors
/// ARG, with what was found.
pub fn check(outcome: &Outcome<'_>) -> Result<(), Fault> {
    let ops = outcome.ops.iter().enumerate();
    let op = ops.filter_map(|(i, op)| Some(format!("result.ops[{i}]: {}", refuse_edit(&op.kind)?)));
    let reply = outcome.reply.iter().filter_map(|reply| refuse_reply(reply));
    match op.chain(reply).next() {
        None => Ok(()),
        Some(text) => Err(Fault::new(Status::ARG, text)),
    }
}

/// Why a field operation is illegal on every message.
pub(super) fn refuse_edit(kind: &OpKind<'_>) -> Option<String> {
    match *kind {
        OpKind::Set {
            target,
            name,
            value,
        } if name.first() == Some(&b':') => refuse_pseudo(target, name, value),
        OpKind::Set { name, value, .. } | OpKind::Add { name, value, .. } => {
            refuse_field(name, value)
        }
        OpKind::Delete { name, .. } => refuse_field(name, b""),
        OpKind::SetAt { value, .. } if !grammar::is_value(value) => {
            Some(format!("{} is not a field value", show(value)))
        }
        OpKind::Metadata { namespace, key, .. } => refuse_metadata(namespace, key),
        _ => None,
    }
}

/// Why a name of metadata is illegal (spec 16.5). An empty namespace is the guest's own.
pub(super) fn refuse_metadata(namespace: &[u8], key: &[u8]) -> Option<String> {
    let is_name = |text: &[u8], more: &[u8]| {
        let legal = |b: &u8| b.is_ascii_alphanumeric() || b"_-/".contains(b) || more.contains(b);
        (1..=128).contains(&text.len()) && text.iter().all(legal)
    };
    if !namespace.is_empty() && !is_name(namespace, b"") {
        Some(format!(
            "{} is not a namespace of metadata",
            show(namespace)
        ))
    } else if !is_name(key, b".") {
        Some(format!("{} is not a key of metadata", show(key)))
    } else {
        None
    }
}

/// Why a pseudo-header must not be set on any message.
fn refuse_pseudo(target: Target, name: &[u8], value: &[u8]) -> Option<String> {
    let known = matches!(
        name,
        b":method" | b":scheme" | b":authority" | b":path" | b":status"
    );
    if target == Target::TRAILERS || !known {
        Some(format!(
            "{} is not a pseudo-header of this message",
            show(name)
        ))
    } else if !grammar::is_pseudo_value(name, value) {
        Some(format!("{} is not a value of {}", show(value), show(name)))
    } else {
        None
    }
}

/// Why a reply is illegal on every stream.
pub(super) fn refuse_reply(reply: &Reply<'_>) -> Option<String> {
    if !(200..=599).contains(&reply.status) {
        return Some(format!(
            "a reply with status {}; 200 to 599 are legal",
            reply.status
        ));
    }
    if reply.flags.0 & ReplyFlags::GRPC.0 != 0 && !(0..=16).contains(&reply.grpc_status) {
        return Some(format!(
            "a reply with grpc_status {}; 0 to 16 are legal",
            reply.grpc_status
        ));
    }
    let refused = |(name, value): &(&[u8], &[u8])| refuse_field(name, value);
    let why = reply
        .fields
        .iter()
        .chain(&reply.trailers)
        .find_map(refused)?;
    Some(format!("a reply's field: {why}"))
}

/// Why a field of a guest must not go on the wire, if so.
#[inline]
fn refuse_field(name: &[u8], value: &[u8]) -> Option<String> {
    (!grammar::is_field(name, value)).then(|| why_illegal(name, value))
}

#[cold]
fn why_illegal(name: &[u8], value: &[u8]) -> String {
    if !grammar::is_name(name) {
        format!("{} is not a field name in lower case", show(name))
    } else if grammar::is_host_owned(name) {
        format!("{} is the host's own field", show(name))
    } else {
        format!(
            "the value of {} has a control byte or blanks at its ends: {}",
            show(name),
            show(value)
        )
    }
}

/// Bytes of a guest for a log: quoted, escaped, at most 100.
pub(super) fn show(bytes: &[u8]) -> String {
    let more = if bytes.len() > 100 { "..." } else { "" };
    format!("\"{}{more}\"", bytes[..bytes.len().min(100)].escape_ascii())
}
