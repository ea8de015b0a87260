/* SPDX-License-Identifier: Apache-2.0 */

/* Queues of shared bytes: what arrives is read once into a block, and every place, view and socket points into it. */

#include "minihost.h"

void *must(void *memory) {
  if (!memory) {
    fputs("pxg-minihost: out of memory\n", stderr);
    abort();
  }
  return memory;
}

void *zalloc(size_t n) { return must(calloc(1, n ? n : 1)); }

char *copy_text(const void *ptr, size_t len) {
  char *copy = must(malloc(len + 1));
  if (len) memcpy(copy, ptr, len);
  copy[len] = 0;
  return copy;
}

block *block_new(size_t len) {
  block *b = must(malloc(sizeof *b + len));
  atomic_init(&b->refs, 1);
  b->release = NULL;
  return b;
}

block *block_owned(void (*release)(uint64_t), uint64_t ctx) {
  block *b = block_new(0);
  b->release = release;
  b->ctx = ctx;
  return b;
}

void block_ref(block *b) {
  if (b) atomic_fetch_add(&b->refs, 1);
}

void block_unref(block *b) {
  if (!b || atomic_fetch_sub(&b->refs, 1) != 1) return;
  if (b->release) b->release(b->ctx);
  free(b);
}

void bytes_add(bytes *to, slice s) {
  if (!s.len) {
    block_unref(s.owner);
    return;
  }
  if (to->first + to->n == to->cap) {
    if (to->first) {
      memmove(to->at, to->at + to->first, to->n * sizeof *to->at);
      to->first = 0;
    } else {
      to->cap = to->cap ? to->cap * 2 : 4;
      to->at = must(realloc(to->at, to->cap * sizeof *to->at));
    }
  }
  to->at[to->first + to->n++] = s;
  to->len += s.len;
}

void bytes_copy(bytes *to, const void *ptr, size_t len) {
  if (!len) return;
  block *b = block_new(len);
  memcpy(b->data, ptr, len);
  bytes_add(to, (slice){b, b->data, len});
}

void bytes_move(bytes *to, bytes *from, uint64_t len) {
  while (len && from->n) {
    slice *s = &from->at[from->first];
    size_t n = s->len <= len ? s->len : (size_t)len;
    slice part = {s->owner, s->ptr, n};
    if (n == s->len) {
      from->first++;
      from->n--;
    } else {
      block_ref(s->owner);
      s->ptr += n;
      s->len -= n;
    }
    from->len -= n;
    len -= n;
    bytes_add(to, part);
  }
  if (!from->n) from->first = 0;
}

void bytes_drop(bytes *from, uint64_t len) {
  bytes gone = {0};
  bytes_move(&gone, from, len);
  bytes_free(&gone);
}

void bytes_limit(bytes *b, size_t most) {
  if (b->n <= most) return;
  /* The head is coalesced, so that the newest bytes are copied last and a byte is copied rarely. */
  size_t join = b->n - most / 2, len = 0;
  slice *at = b->at + b->first;
  for (size_t i = 0; i < join; i++) len += at[i].len;
  block *one = block_new(len);
  size_t pos = 0;
  for (size_t i = 0; i < join; i++) {
    memcpy(one->data + pos, at[i].ptr, at[i].len);
    pos += at[i].len;
    block_unref(at[i].owner);
  }
  at[join - 1] = (slice){one, one->data, len};
  b->first += join - 1;
  b->n -= join - 1;
}

void bytes_free(bytes *b) {
  for (size_t i = 0; i < b->n; i++) block_unref(b->at[b->first + i].owner);
  free(b->at);
  *b = (bytes){0};
}
