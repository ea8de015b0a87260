//! Tokens: who may end them, and how.

use std::collections::{HashMap, HashSet, VecDeque};

use proxy_golang_conformance::parts::judge::Context;
use proxy_golang_conformance::parts::model::Outcome;

use crate::place::View;

/// Values of ended tokens and streams that are remembered.
const REMEMBERED: usize = 1 << 18;

/// Where in its life a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// `on_event` has not returned.
    Issued,
    /// `complete` was answered OK before `on_event` returned.
    Early,
    Pending,
    Completed,
    /// `on_event` returned something else than PENDING.
    Returned,
    Cancelled,
}

pub(crate) struct Token {
    pub(crate) stream: u64,
    pub(crate) dir: usize,
    pub(crate) life: Life,
    pub(crate) context: Context,
    pub(crate) view: View,
    /// What was accepted and has not taken effect.
    pub(crate) kept: Option<Box<Outcome>>,
    /// What a `complete` that has not returned carries.
    pub(crate) flying: Option<Box<Outcome>>,
    /// The kept or flying result broke no rule.
    pub(crate) clean: bool,
    /// An event was taken as proof that the flying one was accepted.
    pub(crate) assumed: bool,
    /// `complete` was answered STALE while it was live: `on_cancel` must follow.
    pub(crate) stale: bool,
    /// When it became PENDING.
    pub(crate) since: u64,
    /// The deadline that the guest wished for, in nanoseconds.
    pub(crate) wish: u64,
}

/// Values that have been, up to a bound.
#[derive(Default)]
pub(crate) struct Memory {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Memory {
    pub(crate) fn insert(&mut self, v: u64) {
        if self.set.insert(v) {
            self.order.push_back(v);
            if self.order.len() > REMEMBERED
                && let Some(old) = self.order.pop_front()
            {
                self.set.remove(&old);
            }
        }
    }

    pub(crate) fn has(&self, v: u64) -> bool {
        self.set.contains(&v)
    }
}

/// The tokens of a library.
#[derive(Default)]
pub(crate) struct Tokens {
    live: HashMap<u64, Token>,
    old: Memory,
}

impl Tokens {
    pub(crate) fn get_mut(&mut self, v: u64) -> Option<&mut Token> {
        self.live.get_mut(&v)
    }

    pub(crate) fn issue(&mut self, v: u64, t: Token) {
        self.live.insert(v, t);
    }

    /// Whether the value was issued before.
    pub(crate) fn was(&self, v: u64) -> bool {
        self.live.contains_key(&v) || self.old.has(v)
    }

    /// Forgets everything but the value.
    pub(crate) fn retire(&mut self, v: u64) {
        if self.live.remove(&v).is_some() {
            self.old.insert(v);
        }
    }

    pub(crate) fn of_stream(&self, stream: u64) -> Vec<u64> {
        self.live
            .iter()
            .filter(|(_, t)| t.stream == stream)
            .map(|(v, _)| *v)
            .collect()
    }

    pub(crate) fn pending(&self) -> impl Iterator<Item = (&u64, &Token)> {
        self.live.iter().filter(|(_, t)| t.life == Life::Pending)
    }
}
