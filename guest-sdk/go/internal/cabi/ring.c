/* The way from a loop thread into Go that needs neither Go's scheduler nor a
 * system call: push on a list, one futex wake-up per batch at most. */
#include "pxgo.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t str_bytes(const pxg_field *f, uint64_t n) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < n; i++) sum += (uint64_t)f[i].name.len + f[i].value.len;
  return sum;
}

static uint8_t *put(pxg_str *to, const pxg_str *from, uint8_t *p) {
  if (from->len) memcpy(p, from->ptr, from->len);
  to->ptr = p;
  to->len = from->len;
  return p + from->len;
}

static uint8_t *put_fields(pxg_field *to, const pxg_field *from, uint64_t n, uint8_t *p) {
  for (uint64_t i = 0; i < n; i++) {
    p = put(&to[i].name, &from[i].name, p);
    p = put(&to[i].value, &from[i].value, p);
    to[i].name.flags = to[i].value.flags = 0; /* so that Go may read them as strings */
  }
  return p;
}

int pxgo_push_event(pxgo_host *h, const pxg_event *ev) {
  uint64_t body = 0, attr = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) body += ev->chunks[i].len;
  for (uint64_t i = 0; i < ev->n_attrs; i++) attr += ev->attrs[i].len;
  uint64_t arrays = (ev->n_fields + ev->n_trailers) * sizeof(pxg_field) + ev->n_attrs * sizeof(pxg_str);
  pxgo_job *j = malloc(sizeof *j + arrays + str_bytes(ev->fields, ev->n_fields) +
                       str_bytes(ev->trailers, ev->n_trailers) + attr + body);
  if (!j) return -1;
  pxg_field *fields = (pxg_field *)(j + 1), *trailers = fields + ev->n_fields;
  pxg_str *attrs = (pxg_str *)(trailers + ev->n_trailers);
  uint8_t *p = (uint8_t *)(attrs + ev->n_attrs);
  p = put_fields(fields, ev->fields, ev->n_fields, p);
  p = put_fields(trailers, ev->trailers, ev->n_trailers, p);
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    p = put(&attrs[i], &ev->attrs[i], p);
    attrs[i].flags = ev->attrs[i].flags;
  }
  j->body = p;
  j->body_len = body;
  for (uint64_t i = 0; i < ev->n_chunks; i++) {
    if (ev->chunks[i].len) memcpy(p, ev->chunks[i].ptr, ev->chunks[i].len);
    p += ev->chunks[i].len;
  }
  j->fields = fields, j->n_fields = ev->n_fields;
  j->trailers = trailers, j->n_trailers = ev->n_trailers;
  j->attrs = attrs, j->n_attrs = ev->n_attrs;
  j->phase = ev->phase, j->flags = ev->flags, j->worker = ev->worker, j->reserved0 = 0;
  j->config = ev->config, j->user = ev->user, j->stream = ev->stream, j->token = ev->token;
  j->body_offset = ev->body_offset;

  pxgo_ring *r = &h->ring[ev->worker];
  pxgo_job *head = __atomic_load_n(&r->head, __ATOMIC_RELAXED);
  do j->next = head;
  while (!__atomic_compare_exchange_n(&r->head, &head, j, 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  __atomic_store_n(&r->need_kick, 1, __ATOMIC_RELAXED);
  return 0;
}

void pxgo_job_free(pxgo_job *j) { free(j); }

int pxgo_work_left(pxgo_ring *r) {
  return __atomic_load_n(&r->head, __ATOMIC_SEQ_CST) != NULL || __atomic_load_n(&r->go_jobs, __ATOMIC_SEQ_CST) != 0;
}

void pxgo_kick(pxgo_ring *r) {
  __atomic_store_n(&r->need_kick, 0, __ATOMIC_SEQ_CST);
  if (pxgo_work_left(r) && __atomic_exchange_n(&r->sleeping, 0, __ATOMIC_SEQ_CST)) {
    __atomic_fetch_add(&r->kicks, 1, __ATOMIC_RELAXED);
    syscall(SYS_futex, &r->sleeping, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  }
}

/* Waits for work, takes all copied events and answers them as a list, oldest
 * first; NULL if only jobs of the Go side wait, which the caller looks for after
 * each return. */
pxgo_job *pxgo_wait(pxgo_ring *r) {
  pxgo_thread_policy();
  for (;;) {
    pxgo_job *j = __atomic_exchange_n(&r->head, NULL, __ATOMIC_SEQ_CST);
    if (j || __atomic_load_n(&r->go_jobs, __ATOMIC_SEQ_CST)) {
      pxgo_job *ordered = NULL;
      while (j) {
        pxgo_job *next = j->next;
        j->next = ordered;
        ordered = j;
        j = next;
      }
      return ordered;
    }
    __atomic_store_n(&r->sleeping, 1, __ATOMIC_SEQ_CST);
    if (!pxgo_work_left(r)) syscall(SYS_futex, &r->sleeping, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    __atomic_store_n(&r->sleeping, 0, __ATOMIC_SEQ_CST);
  }
}
