//! A queue of body bytes that is cut and moved without copying.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes in pieces, oldest first.
#[derive(Clone, Debug, Default)]
pub struct BodyBuf {
    chunks: VecDeque<Bytes>,
    len: u64,
}

impl BodyBuf {
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends; an empty piece vanishes.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len() as u64;
            self.chunks.push_back(bytes);
        }
    }

    /// Takes the oldest piece.
    pub fn pop(&mut self) -> Option<Bytes> {
        let bytes = self.chunks.pop_front()?;
        self.len -= bytes.len() as u64;
        Some(bytes)
    }

    /// Moves the first `n` bytes to the end of `to`; fewer if there are fewer.
    pub fn move_to(&mut self, mut n: u64, to: &mut Self) {
        while n > 0 {
            let Some(mut head) = self.pop() else { return };
            let len = head.len() as u64;
            if len > n {
                to.push(head.split_to(usize::try_from(n).unwrap_or(usize::MAX)));
                self.len += head.len() as u64;
                self.chunks.push_front(head);
                return;
            }
            n -= len;
            to.push(head);
        }
    }

    /// Discards the first `n` bytes.
    pub fn discard(&mut self, n: u64) {
        self.move_to(n, &mut Self::default());
    }

    /// Discards everything.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.len = 0;
    }

    /// The pieces.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|c| &c[..])
    }

    /// Makes the pieces at most `max` (at least 1) by joining the oldest ones: what is shown is retained anyway, and
    /// a view has at most 64 pieces (PXG-BODY-008).
    #[inline]
    pub fn coalesce(&mut self, max: usize) {
        if self.chunks.len() > max.max(1) {
            self.join_oldest(max);
        }
    }

    fn join_oldest(&mut self, max: usize) {
        let excess = self.chunks.len() - max.max(1);
        // Half of the pieces at once, so that a stream of tiny ones costs a copy per byte and halving, not per piece.
        let join = (excess + 1).max(max / 2 + 1).min(self.chunks.len());
        let size = self.chunks.iter().take(join).map(Bytes::len).sum();
        let mut joined = BytesMut::with_capacity(size);
        for piece in self.chunks.drain(..join) {
            joined.extend_from_slice(&piece);
        }
        self.chunks.push_front(joined.freeze());
    }
}

impl FromIterator<Bytes> for BodyBuf {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        let mut buf = Self::default();
        for piece in pieces {
            buf.push(piece);
        }
        buf
    }
}
