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

/* A ring keeps some blocks that most events fit into: they come back from other
 * threads, which an allocator is slow at. */
enum { BLOCK = 3008, MAX_BLOCKS = 128 };

static pxgo_job *job_alloc(pxgo_ring *r, uint64_t size) {
  pxgo_job *j = NULL;
  if (size <= BLOCK && !__atomic_exchange_n(&r->taking, 1, __ATOMIC_ACQUIRE)) {
    if (!r->spare) r->spare = __atomic_exchange_n(&r->spent, NULL, __ATOMIC_ACQUIRE);
    if ((j = r->spare)) r->spare = j->next;
    __atomic_store_n(&r->taking, 0, __ATOMIC_RELEASE);
    if (j) return j;
  }
  int keep = size <= BLOCK && __atomic_fetch_add(&r->blocks, 1, __ATOMIC_RELAXED) < MAX_BLOCKS;
  if (size <= BLOCK && !keep) __atomic_fetch_sub(&r->blocks, 1, __ATOMIC_RELAXED);
  j = malloc(keep ? BLOCK : size);
  if (j)
    j->home = keep ? r : NULL;
  else if (keep)
    __atomic_fetch_sub(&r->blocks, 1, __ATOMIC_RELAXED);
  return j;
}

/* For a block that is none of the ring's; those go back to spent. */
void pxgo_job_free(pxgo_job *j) { free(j); }

static pxgo_slice slice(const void *p, uint64_t n) { return (pxgo_slice){n ? p : NULL, n, n}; }

int pxgo_push_event(pxgo_host *h, const pxg_event *ev) {
  uint64_t body = 0, attr = 0;
  for (uint64_t i = 0; i < ev->n_chunks; i++) body += ev->chunks[i].len;
  for (uint64_t i = 0; i < ev->n_attrs; i++) attr += ev->attrs[i].len;
  uint64_t arrays = (ev->n_fields + ev->n_trailers) * sizeof(pxg_field) + ev->n_attrs * sizeof(pxgo_attr);
  pxgo_ring *r = &h->ring[ev->worker];
  pxgo_job *j = job_alloc(r, sizeof *j + arrays + str_bytes(ev->fields, ev->n_fields) +
                                 str_bytes(ev->trailers, ev->n_trailers) + attr + body);
  if (!j) return -1;
  pxg_field *fields = (pxg_field *)(j + 1), *trailers = fields + ev->n_fields;
  pxgo_attr *attrs = (pxgo_attr *)(trailers + ev->n_trailers);
  uint8_t *p = (uint8_t *)(attrs + ev->n_attrs);
  p = put_fields(fields, ev->fields, ev->n_fields, p);
  p = put_fields(trailers, ev->trailers, ev->n_trailers, p);
  for (uint64_t i = 0; i < ev->n_attrs; i++) {
    const pxg_str *a = &ev->attrs[i];
    if (a->len) memcpy(p, a->ptr, a->len);
    attrs[i] = (pxgo_attr){p, a->len, !(a->flags & PXG_STR_ABSENT)};
    p += a->len;
  }
  j->body = slice(p, body);
  for (uint64_t i = 0; i < ev->n_chunks; i++) {
    if (ev->chunks[i].len) memcpy(p, ev->chunks[i].ptr, ev->chunks[i].len);
    p += ev->chunks[i].len;
  }
  j->fields = slice(fields, ev->n_fields);
  j->trailers = slice(trailers, ev->n_trailers);
  j->attrs = slice(attrs, ev->n_attrs);
  j->ev = (pxg_event){.size = sizeof j->ev,
                      .phase = ev->phase,
                      .flags = ev->flags,
                      .worker = ev->worker,
                      .config = ev->config,
                      .user = ev->user,
                      .stream = ev->stream,
                      .token = ev->token,
                      .body_offset = ev->body_offset};

  pxgo_job *head = __atomic_load_n(&r->head, __ATOMIC_RELAXED);
  do j->next = head;
  while (!__atomic_compare_exchange_n(&r->head, &head, j, 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  __atomic_store_n(&r->need_kick, 1, __ATOMIC_RELAXED);
  return 0;
}

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
