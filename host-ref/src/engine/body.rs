//! A queue of body bytes that is cut and moved without copying.

use bytes::{Bytes, BytesMut};

/// Bytes in pieces, oldest first.
#[derive(Clone, Debug, Default)]
pub struct BodyBuf {
    /// Those before `first` have been taken. No ring: an empty one costs a stream less, and most stay empty.
    chunks: Vec<Bytes>,
    first: usize,
    len: u64,
}

impl BodyBuf {
    /// Number of bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends; an empty piece vanishes.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len() as u64;
            if self.chunks.len() == self.chunks.capacity() && self.first > self.chunks.len() / 2 {
                self.chunks.drain(..self.first);
                self.first = 0;
            }
            self.chunks.push(bytes);
        }
    }

    /// Takes the oldest piece.
    pub fn pop(&mut self) -> Option<Bytes> {
        let bytes = std::mem::take(self.chunks.get_mut(self.first)?);
        self.len -= bytes.len() as u64;
        self.first += 1;
        if self.first == self.chunks.len() {
            self.chunks.clear();
            self.first = 0;
        }
        Some(bytes)
    }

    /// Moves the first `n` bytes to the end of `to`; fewer if there are fewer.
    #[inline]
    pub fn move_to(&mut self, n: u64, to: &mut Self) {
        if n > 0 {
            self.move_some(n, to);
        }
    }

    fn move_some(&mut self, mut n: u64, to: &mut Self) {
        while n > 0 {
            let Some(head) = self.chunks.get_mut(self.first) else {
                return;
            };
            let len = head.len() as u64;
            if len > n {
                to.push(head.split_to(usize::try_from(n).unwrap_or(usize::MAX)));
                self.len -= n;
                return;
            }
            n -= len;
            to.push(self.pop().unwrap_or_default());
        }
    }

    /// Discards the first `n` bytes.
    pub fn discard(&mut self, n: u64) {
        self.move_to(n, &mut Self::default());
    }

    /// Discards everything.
    #[inline]
    pub fn clear(&mut self) {
        if !self.chunks.is_empty() {
            self.chunks.clear();
            self.first = 0;
            self.len = 0;
        }
    }

    /// Empties it, and gives its memory back if it has some.
    #[inline]
    pub fn renew(&mut self) {
        if self.chunks.capacity() > 0 {
            *self = Self::default();
        }
    }

    /// Replaces what may be lent by copies.
    pub fn own(&mut self) {
        for piece in &mut self.chunks[self.first..] {
            if !piece.is_unique() {
                *piece = Bytes::copy_from_slice(piece);
            }
        }
    }

    /// Gives memory back beyond what this many pieces need.
    pub fn shrink_to(&mut self, pieces: usize) {
        self.chunks.shrink_to(pieces);
    }

    /// The pieces.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks[self.first..].iter().map(|c| &c[..])
    }

    /// Makes the pieces at most `max` (at least 1) by joining the oldest ones: what is shown is retained anyway, and
    /// a view has at most 64 pieces (PXG-BODY-008).
    #[inline]
    pub fn coalesce(&mut self, max: usize) {
        if self.chunks.len() - self.first > max.max(1) {
            self.join_oldest(max);
        }
    }

    fn join_oldest(&mut self, max: usize) {
        let pieces = self.chunks.len() - self.first;
        let excess = pieces - max.max(1);
        // Half of the pieces at once, so that a stream of tiny ones costs a copy per byte and halving, not per piece.
        let join = (excess + 1).max(max / 2 + 1).min(pieces);
        let oldest = &self.chunks[self.first..self.first + join];
        let mut joined = BytesMut::with_capacity(oldest.iter().map(Bytes::len).sum());
        for piece in oldest {
            joined.extend_from_slice(piece);
        }
        let last = self.first + join - 1;
        self.chunks[last] = joined.freeze();
        self.chunks.drain(..last);
        self.first = 0;
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
