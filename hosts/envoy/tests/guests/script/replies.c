/* Streamed replies: a thread for each, which writes at the pace of the client. */
#include <string.h>

#include "script.h"

typedef struct writer {
  struct writer *next;
  const script *script;
  uint64_t stream, pieces, size;
  int writable, gone;
} writer;

static writer *writers;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

void tell_writer(uint64_t stream, int gone) {
  pthread_mutex_lock(&lock);
  for (writer *w = writers; w; w = w->next) {
    if (w->stream != stream) continue;
    w->writable = 1;
    w->gone |= gone;
  }
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

static void await_room(writer *w) {
  pthread_mutex_lock(&lock);
  while (!w->writable && !w->gone) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}

static void forget(writer *w) {
  pthread_mutex_lock(&lock);
  for (writer **at = &writers; *at; at = &(*at)->next) {
    if (*at == w) {
      *at = w->next;
      break;
    }
  }
  pthread_mutex_unlock(&lock);
  free(w);
}

static void release_piece(uint64_t ctx) { free((void *)(uintptr_t)ctx); }

/* Writes the pieces at the pace of the client: after FULL it waits for WRITABLE. */
static void *write_reply(void *arg) {
  writer *w = arg;
  uint64_t full = 0, sent = 0;
  int32_t status = PXG_OK;
  for (uint64_t i = 0; i < w->pieces && status >= 0; i++) {
    char *piece = malloc(w->size);
    memset(piece, 'a' + (int)(i % 26), w->size);
    pxg_op o;
    memset(&o, 0, sizeof o);
    o.kind = PXG_OP_BODY_WRITE;
    o.flags = i + 1 == w->pieces ? PXG_OPF_END : 0;
    o.val = pxgg_owned(pxgg_str(piece, w->size), release_piece, (uint64_t)(uintptr_t)piece);
    pxg_result out;
    memset(&out, 0, sizeof out);
    out.size = sizeof out;
    out.action = PXG_ACT_CONTINUE;
    out.ops = &o;
    out.n_ops = 1;
    pthread_mutex_lock(&lock);
    w->writable = 0;
    pthread_mutex_unlock(&lock);
    status = host->apply(host->ctx, w->stream, &out);
    if (status >= 0) sent += w->size;
    if (status == PXG_FULL) {
      if (full++ == 0) record_status("full", w->script, 0, status);
      await_room(w);
    }
  }
  record_line("written", w->script, ",\"status\":%d,\"full\":%llu,\"sent\":%llu", status, (unsigned long long)full,
              (unsigned long long)sent);
  forget(w);
  return NULL;
}

void write_later(const script *s, uint64_t stream, uint64_t pieces, uint64_t size) {
  writer *w = calloc(1, sizeof *w);
  w->script = s;
  w->stream = stream;
  w->pieces = pieces;
  w->size = size;
  pthread_mutex_lock(&lock);
  w->next = writers;
  writers = w;
  pthread_mutex_unlock(&lock);
  detached(write_reply, w);
}
