/* OWNED buffers: memory of this guest's that the host gives back by a call. */
#include <stdatomic.h>
#include <string.h>

#include "script.h"

static _Atomic uint64_t given, released;

static void release(uint64_t ctx) {
  char *text = (char *)(uintptr_t)ctx;
  /* Whoever still reads it sees that it is gone. */
  text[0] = '#';
  free(text);
  atomic_fetch_add(&released, 1);
}

pxg_buf owned(pxg_str text) {
  char *copy = malloc(text.len + 1);
  memcpy(copy, text.ptr, text.len);
  atomic_fetch_add(&given, 1);
  return pxgg_owned(pxgg_str(copy, text.len), release, (uint64_t)(uintptr_t)copy);
}

uint64_t owned_given(void) { return atomic_load(&given); }

uint64_t owned_released(void) { return atomic_load(&released); }
