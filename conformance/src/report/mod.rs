//! Reports: for people, and for machines.

pub(crate) mod badge;
pub(crate) mod html;
pub(crate) mod human;
pub(crate) mod machine;
pub(crate) mod verify;
