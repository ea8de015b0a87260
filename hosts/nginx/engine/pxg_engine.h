/* SPDX-License-Identifier: Apache-2.0 */

/* The engine: guests driven for one HTTP exchange and its chain of configurations (spec/05 to 12), without any I/O.
 *
 * Whoever embeds it, the driver, feeds what arrives and takes what may leave. The engine keeps no socket, timer or
 * thread, knows no proxy, and calls the driver back only through pxg_stream_ops and `bell`; none of these may call the
 * engine. Libraries and configurations come from pxg_host.h.
 *
 * Life of a stream
 *
 *   pxg_stream_open -> pxg_stream_head(REQUEST) -> bytes, end -> pxg_stream_head(RESPONSE) -> bytes, end
 *                   -> pxg_stream_finish -> pxg_stream_free
 *
 *   After each call, and for each stream that pxg_worker_next answers: pxg_take until it answers false, then
 *   pxg_stream_keep before memory that was lent goes away, then a timer at pxg_stream_deadline.
 *
 * Threads: a worker and its streams belong to one thread. pxg_complete, pxg_apply and pxg_wake are [any-thread]; they
 * are for pxg_driver's entries of the same names.
 *
 * Memory: a failed allocation resets the one stream it happened to. Nothing aborts. */

#ifndef PXG_ENGINE_H
#define PXG_ENGINE_H

#include "pxg_host.h"

/* ---- Bytes ------------------------------------------------------------------------------------------------------- */

typedef struct pxg_block pxg_block;

/* A piece of a body. Without an owner it is static, or lent by the driver until pxg_stream_keep. */
typedef struct pxg_slice {
  const uint8_t *ptr;
  size_t len;
  pxg_block *owner; /* Counted; null for lent and static bytes. */
  void *tag;        /* The driver's, of what it lent: kept by every part of it, lost when it is copied. */
  bool lent;
} pxg_slice;

void pxg_slice_drop(pxg_slice *s); /* [any-thread] Gives up a slice that pxg_take answered. */

/* ---- Workers ----------------------------------------------------------------------------------------------------- */

typedef struct pxg_worker pxg_worker;
typedef struct pxg_stream pxg_stream;

/* The worker `index` (less than pxg_driver.n_workers) of the calling thread. `bell` [any-thread] is called when mail
 * comes to an empty box (but see pxg_worker_awake): it makes the thread call pxg_worker_next soon, and must not block. Null: no memory. */
pxg_worker *pxg_worker_new(uint32_t index, void (*bell)(void *data), void *data);
/* on_worker(up) now and not before the library's first event: the first call of a thread takes a runtime its time. */
void pxg_worker_warm_up(pxg_worker *w, pxg_guest_lib *lib);
void pxg_worker_free(pxg_worker *w); /* After its last stream; calls on_worker(down). */

/* The time that the engine counts with, monotonic, in nanoseconds and never 0: before each turn of the loop. */
void pxg_worker_clock(pxg_worker *w, uint64_t now_ns);

/* The next stream with mail, after what was accepted for it took effect; null: the box is empty. Take from it. */
pxg_stream *pxg_worker_next(pxg_worker *w);

/* True: the thread will call this with false, and then pxg_worker_next, before it waits for anything; until then `bell` is
 * not called. A worker begins with false. */
void pxg_worker_awake(pxg_worker *w, bool awake);

/* Whether an event of this turn answered PENDING and its guest wants on_batch_end; then, at the end of the turn, call
 * pxg_worker_batch_end. */
bool pxg_worker_batch_due(const pxg_worker *w);
void pxg_worker_batch_end(pxg_worker *w);

/* ---- What the driver does for a stream ---------------------------------------------------------------------------- */

/* What became of an edit. */
typedef enum pxg_edit {
  PXG_EDIT_DONE,
  PXG_EDIT_GONE,     /* At an index: the field was removed before. Skipped and counted. */
  PXG_EDIT_NO_MEMORY /* The stream is reset. */
} pxg_edit;

/* The fields of the two messages as the driver keeps them. `d` is PXG_DIR_*, `trailers` chooses the list. Names and
 * values are checked by 6.3 and 6.4 before, are borrowed and have to be copied. Pointers of a view stay valid until
 * `commit`, `replace` or the next call of `view` for the same list; an index of an edit counts in the last view.
 * Pseudo-headers come first in a view and are part of the list. */
typedef struct pxg_stream_ops {
  bool (*view)(void *data, int d, bool trailers, const pxg_field **at, size_t *n); /* False: no memory. */
  pxg_edit (*set)(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value);
  pxg_edit (*add)(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value);
  pxg_edit (*remove)(void *data, int d, bool trailers, const pxg_str *name);
  pxg_edit (*set_at)(void *data, int d, bool trailers, size_t index, const pxg_str *value);
  pxg_edit (*remove_at)(void *data, int d, bool trailers, size_t index);
  bool (*commit)(void *data, int d, bool trailers); /* After the edits of one result. False: no memory. */
  /* content-length becomes `length`; below 0 it goes away. */
  bool (*length)(void *data, int d, int64_t length);
  /* The response becomes a local one: what it had is forgotten, `fields` (without :status) are copied. The length
   * follows by `length`. */
  bool (*replace)(void *data, uint32_t status, const pxg_field *fields, size_t n);
  /* Trailers of a local response, copied. May be null where TRAILERS_OUT_RESPONSE is clear. */
  bool (*trailers)(void *data, const pxg_field *fields, size_t n);
  /* An attribute by the number of pxg_driver.attribute. `*value` is valid until on_event of the same event has
   * returned; false: ABSENT. May be null. */
  bool (*attribute)(void *data, int32_t id, uint32_t phase, pxg_str *value);
  /* Whether a cluster exists. May be null where ROUTE is clear. */
  bool (*cluster)(void *data, const uint8_t *name, size_t len);
  /* One record of the stream: of a guest within its event, or of its failure. As pxg_driver.log, which has all others; may
   * be null: it has these, too. */
  void (*log)(void *data, uint32_t level, const char *line, size_t len);
} pxg_stream_ops;

enum { PXG_MAX_PLACES = 32 };

/* Flags of pxg_stream_open. */
#define PXG_STREAM_SUBREQUEST 0x1u        /* Only configurations with SUBREQUESTS take part. */
#define PXG_STREAM_RECEIVES_TRAILERS 0x2u /* The client can take trailers. */
#define PXG_STREAM_UPSTREAM_TRAILERS 0x4u /* The upstream can. */
#define PXG_STREAM_HEAD_METHOD 0x8u       /* The request is HEAD. */
#define PXG_STREAM_REDIRECTED 0x10u       /* See pxg_stream_redirected. */

/* A stream with its chain in the operator's order; a reference is taken to each configuration. `ops` lives as long as
 * the stream, `data` is its argument. `id` is for logs. Null: no memory, or more than PXG_MAX_PLACES. */
pxg_stream *pxg_stream_open(pxg_worker *w, pxg_config *const *chain, size_t n, const pxg_stream_ops *ops, void *data,
                            uint64_t id, uint32_t flags);
void *pxg_stream_data(const pxg_stream *s);

/* ---- Feeding ----------------------------------------------------------------------------------------------------- */

/* Flags of pxg_stream_head. */
#define PXG_HEAD_ENDS 0x1u        /* The message ends here: no body, no trailers. */
#define PXG_HEAD_EOS_UNKNOWN 0x2u /* It may end here. Not with EXACT_EOS. */
#define PXG_HEAD_LOCAL 0x4u       /* A response that the proxy made in the upstream's stead. */
#define PXG_HEAD_UPGRADED \
  0x8u /* The response accepts an upgrade: it ends as a message, and what follows is none of the
                                   * engine's business until pxg_stream_finish. */

/* The head of a message has arrived; `ops` show it from now on. A second response head replaces the first one, unseen
 * by the places that had it (5.6). */
void pxg_stream_head(pxg_stream *s, int d, uint32_t flags);
/* `n` slices with `ptr`, `len` and `tag`, lent until pxg_stream_keep. Empty ones are left out. */
void pxg_stream_bytes(pxg_stream *s, int d, const pxg_slice *slices, size_t n);
/* The message has ended; `trailers`: `ops` show some. */
void pxg_stream_end(pxg_stream *s, int d, bool trailers);
void pxg_stream_redirected(pxg_stream *s);
/* How many bytes of the response the client has not taken yet: for watermarks of streamed replies. */
void pxg_stream_waiting(pxg_stream *s, uint64_t bytes);

/* Whether more of a direction shall be read (7.10). A direction that ended or was cut wants nothing. */
bool pxg_stream_wants(const pxg_stream *s, int d);
/* Whether a place waits for a direction's body with the headers held: the body has to be read, and for a request
 * 100-continue to be answered, before anything leaves (7.7). */
bool pxg_stream_wants_body_first(const pxg_stream *s, int d);
/* Whether a place will look at bodies of a direction as things stand; if not, bytes need not be fed in memory. */
bool pxg_stream_sees_body(const pxg_stream *s, int d);
/* `n` bytes of a direction that no place looks at went past the engine, unfed. */
void pxg_stream_skip(pxg_stream *s, int d, uint64_t n);
/* Whether something of a direction is withheld by a guest now. */
bool pxg_stream_holds(const pxg_stream *s, int d);

/* Whether a PENDING stops a direction now: one of its own, or of the other direction at a place without DUPLEX. */
bool pxg_stream_pends(const pxg_stream *s, int d);

/* Copies what was lent and has stayed. Without memory for it the stream is reset: pxg_take says so. */
void pxg_stream_keep(pxg_stream *s);

/* When pxg_stream_timer has to be called, on the worker's clock; 0: not at all. Asked again after every feed or take. */
uint64_t pxg_stream_deadline(const pxg_stream *s);
void pxg_stream_timer(pxg_stream *s);

/* ---- Taking ------------------------------------------------------------------------------------------------------ */

typedef enum pxg_out_kind {
  PXG_OUT_RESET, /* Abort both directions without a reply. The only one then; pxg_stream_finish follows. */
  PXG_OUT_HEAD,  /* The head may leave, as `ops` show it. */
  PXG_OUT_BYTES, /* `slice`, now the driver's: pxg_slice_drop. Empty where there is nothing but FLUSH to tell. */
  PXG_OUT_END    /* The message ends; its trailers, if any, are as `ops` show them. */
} pxg_out_kind;

#define PXG_OUT_ENDS 0x1u /* On HEAD: the message ends there; END follows. */
#define PXG_OUT_LOCAL \
  0x2u                     /* On HEAD of a response: a guest's reply, or the answer to its failure. The upstream is not
                               * to be contacted, or its exchange abandoned, and the rest of the request drained. */
#define PXG_OUT_FLUSH 0x4u /* Hand what was taken so far to the transport. */
#define PXG_OUT_TRAILERS 0x8u /* On END: there are trailers. */
#define PXG_OUT_OPEN 0x10u    /* On HEAD: a streamed reply, of unknown length. */

typedef struct pxg_out {
  pxg_out_kind kind;
  int direction;
  uint32_t flags;
  pxg_slice slice;
} pxg_out;

/* The next thing that may leave; false: nothing now. The request's come before the response's. */
bool pxg_take(pxg_stream *s, pxg_out *out);

/* For logs and response.code_details: `<config>.<details>` or `<config>.<reason>`; null: the response is not local. */
const char *pxg_stream_details(const pxg_stream *s);
/* What has become of one place so far. */
typedef struct pxg_place_info {
  const pxg_config *config;
  uint64_t time_ns;     /* Inside on_event. */
  bool failed, replied; /* Its guest has. A failure that was answered has details, one that was not is bypassed. */
} pxg_place_info;

/* False: the stream has no place `i`. */
bool pxg_stream_place(const pxg_stream *s, size_t i, pxg_place_info *info);
/* What ROUTE chose: the cluster's name, or null; `*recompute`: the route is to be chosen again. */
const char *pxg_stream_cluster(const pxg_stream *s, bool *recompute);
/* What METADATA_SET left, by `namespace.key`: calls `each` until it answers false. A value lives until the next call into
 * the engine. */
void pxg_stream_metadata(const pxg_stream *s,
                         bool (*each)(void *data, const char *key, size_t len, const pxg_str *value), void *data);

/* ---- The end ----------------------------------------------------------------------------------------------------- */

/* Both directions have ended or the stream dies (5.7): tokens are retired, on_cancel, LOG and on_stream_end are called.
 * `why`, PXG_END_*, counts if the engine knows no earlier cause. Feeding and taking are over; `ops` are used for LOG's
 * views a last time. May be called at any time outside the engine, once. */
void pxg_stream_finish(pxg_stream *s, uint32_t why);
void pxg_stream_free(pxg_stream *s); /* Finishes with ERROR if that was forgotten. */

/* ---- Streams that need not be made: pxg_glance.c -------------------------------------------------------------------- */

/* A stream through one filter that looks at the request's head and at nothing else, as long as nothing happens to it that
 * takes more: its event was answered by CONTINUE with edits by name or none, at once or after PENDING. Everything else is a stream's, which is then
 * made as it would be by now; so what a result does is written once. Members are the engine's; `config`, `time_ns` and
 * `data` may be read. All zeros: none. */
typedef struct pxg_glance {
  pxg_worker *w;
  pxg_config *config; /* No reference is taken: it has to outlive the glance. */
  void *data;
  uint64_t handle, user, time_ns;
  uint64_t token; /* Of the event under way, as what it showed. */
  const pxg_field *fields;
  size_t n_fields;
  uint64_t deadline, since, shown_bytes; /* While it waits: see pxg_glance_deadline, and what its event showed. */
  uint32_t head;                         /* Flags of the head. */
  bool waiting, answered, edited, called, lost;
  struct pxg_effect *first, **last; /* Its mail. */
  struct pxg_glance *next;
} pxg_glance;

typedef enum pxg_glanced {
  PXG_GLANCE_PASSED, /* The head may leave once `edits` are made, in this order, before the engine is called again. It has
                      * been seen, and nothing else will be. */
  PXG_GLANCE_WAITS, /* PENDING. Nothing may come of the request or a response, and its deadline may not pass, but
                      * after pxg_glance_decided has answered PASSED, or to pxg_glance_stream. */
  PXG_GLANCE_MORE,  /* pxg_glance_stream follows at once. */
  PXG_GLANCE_NONE   /* Nothing has happened: pxg_stream_open. */
} pxg_glanced;

/* Whether a chain of this configuration alone can begin so. */
static inline bool pxg_glance_suits(const pxg_config *c) {
  return c->subscribe == PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) && !(c->attr_phases & c->subscribe) &&
         c->body_mode[PXG_DIR_REQUEST] == PXG_BODY_SKIP && c->body_mode[PXG_DIR_RESPONSE] == PXG_BODY_SKIP;
}
/* The head of the request, as pxg_stream_open and pxg_stream_head have it; `fields` is what `view` would show. The worker's
 * clock is when the call begins. The edits are HEADER_SET, HEADER_ADD and HEADER_DELETE of headers that are no
 * pseudo-headers, checked like those of pxg_stream_ops. */
pxg_glanced pxg_glance_head(pxg_glance *g, pxg_worker *w, pxg_config *c, const pxg_speaker *speaker,
                            const pxg_field *fields, size_t n, uint32_t head_flags, const pxg_op **edits,
                            size_t *n_edits);
static inline bool pxg_glance_lives(const pxg_glance *g) { return g->handle != 0; }
/* What has gone by since PASSED. */
#define PXG_GLANCE_REQUEST_END 0x1u
#define PXG_GLANCE_RESPONSE_HEAD 0x2u
#define PXG_GLANCE_RESPONSE_END 0x4u

/* The stream in its stead, with the arguments of pxg_stream_open; `gone` and, with PXG_GLANCE_RESPONSE_HEAD, the flags of
 * that head. What has gone by, and behind PASSED the request's head, has been taken from it. Null: no memory, the glance
 * is over. */
pxg_stream *pxg_glance_stream(pxg_glance *g, const pxg_stream_ops *ops, void *data, uint64_t id, uint32_t flags,
                              uint32_t gone, uint32_t response_flags);
/* The end, however it came; between MORE and its stream, too, for want of memory. */
void pxg_glance_close(pxg_glance *g);
/* The next one with mail, before pxg_worker_next; null: none. pxg_glance_decided follows. */
pxg_glance *pxg_worker_next_glance(pxg_worker *w);
/* What the mail says: PASSED, as with pxg_glance_head, or MORE. */
pxg_glanced pxg_glance_decided(pxg_glance *g, const pxg_op **edits, size_t *n_edits);
/* While it waits: then pxg_glance_stream and pxg_stream_timer are due. Else 0. */
uint64_t pxg_glance_deadline(const pxg_glance *g);

/* ---- Entries of pxg_host: 12.2 to 12.4 --------------------------------------------------------------------------- */

int32_t pxg_complete(uint64_t ctx, uint64_t token, const pxg_result *r);
int32_t pxg_apply(uint64_t ctx, uint64_t stream, const pxg_result *r);
int32_t pxg_wake(uint64_t ctx, uint64_t stream, uint64_t arg);

/* ---- Parts that stand by themselves ------------------------------------------------------------------------------- */

/* What is wrong with a field that comes from a guest (6.2 to 6.4), or null. `set`: by HEADER_SET or SET_AT, which may
 * name pseudo-headers of the direction. */
const char *pxg_field_fault(const uint8_t *name, size_t name_len, const uint8_t *value, size_t value_len, bool set,
                            bool trailers, int d);

/* Bytes that may wait for the client before `apply` answers FULL. */
enum { PXG_WATERMARK = 256 << 10 };

#endif
