/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes that pass through: slices of blocks, of static memory, or of what the driver lent. */

#include <stdlib.h>

#include "pxg_internal.h"

pxg_block *pxg_block_new(size_t len) {
  pxg_block *b = malloc(sizeof *b + len);
  if (!b) return NULL;
  atomic_init(&b->refs, 1);
  b->release = NULL;
  b->ctx = 0;
  return b;
}

pxg_block *pxg_block_owned(void (*release)(uint64_t), uint64_t ctx) {
  pxg_block *b = pxg_block_new(0);
  if (b) b->release = release, b->ctx = ctx;
  return b;
}

void pxg_block_ref(pxg_block *b) {
  if (b) atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
}

void pxg_block_unref(pxg_block *b) {
  if (!b || atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) != 1) return;
  if (b->release) b->release(b->ctx);
  free(b);
}

void pxg_slice_drop(pxg_slice *s) {
  pxg_block_unref(s->owner);
  *s = (pxg_slice){0};
}

bool pxg_slice_own(pxg_slice *s) {
  if (!s->lent) return true;
  pxg_block *b = pxg_block_new(s->len);
  if (!b) return false;
  memcpy(b->data, s->ptr, s->len);
  *s = (pxg_slice){b->data, s->len, b, NULL, false};
  return true;
}

static pxg_slice *base(const pxg_bytes *b) { return b->far ? b->far : (pxg_slice *)(uintptr_t)b->near; }

pxg_slice *pxg_bytes_at(const pxg_bytes *b, size_t i) { return base(b) + b->first + i; }

static bool grow(pxg_bytes *b) {
  size_t cap = b->far ? b->cap : PXG_INLINE_SLICES;
  if (b->first + b->n < cap) return true;
  if (b->first) {
    memmove(base(b), base(b) + b->first, b->n * sizeof(pxg_slice));
    b->first = 0;
    return true;
  }
  pxg_slice *more = realloc(b->far, cap * 2 * sizeof *more);
  if (!more) return false;
  if (!b->far) memcpy(more, b->near, sizeof b->near);
  b->far = more;
  b->cap = cap * 2;
  return true;
}

bool pxg_bytes_add(pxg_bytes *to, pxg_slice s) {
  if (!s.len) {
    pxg_block_unref(s.owner);
    return true;
  }
  if (!grow(to)) {
    pxg_block_unref(s.owner);
    return false;
  }
  *pxg_bytes_at(to, to->n++) = s;
  to->len += s.len;
  return true;
}

/* Takes up to `len` bytes off the front, as one slice. */
static pxg_slice shift(pxg_bytes *from, uint64_t len) {
  pxg_slice *s = pxg_bytes_at(from, 0), part = *s;
  if (s->len <= len) {
    from->first++;
    if (!--from->n) from->first = 0;
  } else {
    part.len = (size_t)len;
    pxg_block_ref(s->owner);
    s->ptr += len;
    s->len -= (size_t)len;
  }
  from->len -= part.len;
  return part;
}

bool pxg_bytes_move(pxg_bytes *to, pxg_bytes *from, uint64_t len) {
  bool ok = true;
  while (len && from->n) {
    pxg_slice part = shift(from, len);
    len -= part.len;
    ok = pxg_bytes_add(to, part) && ok;
  }
  return ok;
}

bool pxg_bytes_copy(pxg_bytes *to, const pxg_bytes *from) {
  for (size_t i = 0; i < from->n; i++) {
    pxg_slice s = *pxg_bytes_at(from, i);
    pxg_block_ref(s.owner);
    if (!pxg_bytes_add(to, s)) return false;
  }
  return true;
}

bool pxg_bytes_own(pxg_bytes *b) {
  for (size_t i = 0; i < b->n; i++)
    if (!pxg_slice_own(pxg_bytes_at(b, i))) return false;
  return true;
}

/* The head is coalesced, so that the newest bytes are copied last and a byte is copied rarely. */
bool pxg_bytes_limit(pxg_bytes *b, size_t most) {
  if (b->n <= most) return true;
  size_t join = b->n - most / 2, len = 0, at = 0;
  for (size_t i = 0; i < join; i++) len += pxg_bytes_at(b, i)->len;
  pxg_block *one = pxg_block_new(len);
  if (!one) return false;
  for (size_t i = 0; i < join; i++) {
    pxg_slice *s = pxg_bytes_at(b, i);
    memcpy(one->data + at, s->ptr, s->len);
    at += s->len;
    pxg_slice_drop(s);
  }
  b->first += join - 1;
  b->n -= join - 1;
  *pxg_bytes_at(b, 0) = (pxg_slice){one->data, len, one, NULL, false};
  return true;
}

void pxg_bytes_drop(pxg_bytes *from, uint64_t len) {
  while (len && from->n) {
    pxg_slice part = shift(from, len);
    len -= part.len;
    pxg_block_unref(part.owner);
  }
}

void pxg_bytes_free(pxg_bytes *b) {
  for (size_t i = 0; i < b->n; i++) pxg_block_unref(pxg_bytes_at(b, i)->owner);
  if (b->far) free(b->far);
  b->far = NULL;
  b->first = b->n = b->cap = 0;
  b->len = 0;
}
