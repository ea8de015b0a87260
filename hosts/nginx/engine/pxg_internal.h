/* SPDX-License-Identifier: Apache-2.0 */

/* What the parts of the engine share. Sections are named after the file that defines them; drivers include
 * pxg_engine.h only. */

#ifndef PXG_INTERNAL_H
#define PXG_INTERNAL_H

#include <pthread.h>
#include <string.h>

#include "pxg_engine.h"

enum { REQ = PXG_DIR_REQUEST, RSP = PXG_DIR_RESPONSE };

/* ---- pxg_bytes.c ------------------------------------------------------------------------------------------------- */

struct pxg_block {
  _Atomic uint32_t refs;
  void (*release)(uint64_t ctx); /* Of a guest's OWNED buffer. */
  uint64_t ctx;
  uint8_t data[];
};

enum { PXG_INLINE_SLICES = 4 };

/* A queue of slices, none of them empty. All zeros is an empty queue. */
typedef struct pxg_bytes {
  pxg_slice *far; /* Null: they are in `near`. */
  size_t first, n, cap;
  uint64_t len;
  pxg_slice near[PXG_INLINE_SLICES];
} pxg_bytes;

pxg_block *pxg_block_new(size_t len); /* Null: no memory. */
pxg_block *pxg_block_owned(void (*release)(uint64_t), uint64_t ctx);
void pxg_block_ref(pxg_block *b);
void pxg_block_unref(pxg_block *b);
pxg_slice *pxg_bytes_at(const pxg_bytes *b, size_t i);
/* These answer false for want of memory; what could not be added is given up. */
bool pxg_bytes_add(pxg_bytes *to, pxg_slice s); /* Takes over the reference. */
bool pxg_bytes_move(pxg_bytes *to, pxg_bytes *from, uint64_t len);
bool pxg_bytes_copy(pxg_bytes *to, const pxg_bytes *from); /* Shares the blocks. */
bool pxg_bytes_own(pxg_bytes *b);                          /* Copies what is lent. */
bool pxg_bytes_limit(pxg_bytes *b, size_t most);           /* Coalesces until there are at most that many slices. */
bool pxg_slice_own(pxg_slice *s);
void pxg_bytes_drop(pxg_bytes *from, uint64_t len);
void pxg_bytes_free(pxg_bytes *b);

/* ---- pxg_fields.c ------------------------------------------------------------------------------------------------ */

typedef struct pxg_view {
  const pxg_field *at;
  size_t n;
} pxg_view;

bool pxg_value_is_clean(const uint8_t *p, size_t n);
bool pxg_name_is_owned(const uint8_t *p, size_t n);
bool pxg_str_is(const pxg_str *s, const char *text);
const pxg_str *pxg_view_get(const pxg_view *v, const char *name); /* The first value, or null. */
int64_t pxg_view_length(const pxg_view *v);                       /* content-length, or -1. */
uint64_t pxg_view_bytes(const pxg_view *v);                       /* Of names and values. */

/* ---- pxg_decision.c ---------------------------------------------------------------------------------------------- */

/* Most operations, and bytes of copied strings, of a decision that takes no memory but where it stands. */
enum { PXG_INLINE_OPS = 32, PXG_LETTER_OPS = 8, PXG_LETTER_BYTES = 512 };

/* An operation. Strings of a result of on_event are the guest's, and die with the next call into it; others lie in the
 * decision's `copies`. */
typedef struct pxg_todo {
  uint16_t kind, flags; /* Kind 0: left out. */
  uint32_t target;
  uint64_t u0;
  pxg_str key;
  pxg_slice val;
  uint32_t val_flags;
  bool skip;
} pxg_todo;

typedef struct pxg_answer {
  uint32_t status, flags;
  int32_t grpc;
  const pxg_field *fields, *trailers;
  size_t n_fields, n_trailers;
  pxg_bytes body;
} pxg_answer;

typedef struct pxg_decision {
  uint32_t action, flags, mode[2];
  uint64_t user, unsubscribe, more_bytes, pend_ns;
  size_t n_ops;
  pxg_todo *ops;
  bool has_reply, no_memory;
  pxg_answer reply;
  uint8_t *copies;
  size_t copies_len, copies_cap;
  pxg_todo *near; /* The room that it was given, for operations and for copies. */
  uint8_t *room;
  size_t near_cap, room_cap;
  int32_t status;           /* What it is refused with, and why. */
  char why[192], text[256]; /* `text`: error or details, cleaned. */
} pxg_decision;

typedef enum pxg_source { BY_EVENT, BY_COMPLETE, BY_APPLY } pxg_source;

/* Room of the caller's, which lives as long as the decision. */
void pxg_decision_init(pxg_decision *d, pxg_todo *near, size_t near_cap, uint8_t *room, size_t room_cap);
/* The guest's result after this: owned buffers are taken over in any case. `lent` may be null. */
void pxg_decision_read(pxg_decision *d, const pxg_result *r, pxg_source by, const pxg_call *lent);
void pxg_decision_free(pxg_decision *d);
void pxg_result_release(const pxg_result *r); /* Gives up what the guest owned in it. */
/* Keeps the status that 1.5 puts first. */
void pxg_refuse(pxg_decision *d, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- pxg_judge.c: what needs no state of the stream ---------------------------------------------------------------- */

void pxg_judge(pxg_decision *d, pxg_source by, const pxg_config *c, uint32_t phase, uint32_t flags);
static inline bool pxg_is_headers(uint32_t phase) {
  return phase == PXG_PHASE_REQUEST_HEADERS || phase == PXG_PHASE_RESPONSE_HEADERS;
}
static inline bool pxg_is_body(uint32_t phase) {
  return phase == PXG_PHASE_REQUEST_BODY || phase == PXG_PHASE_RESPONSE_BODY;
}
static inline bool pxg_is_trailers(uint32_t phase) {
  return phase == PXG_PHASE_REQUEST_TRAILERS || phase == PXG_PHASE_RESPONSE_TRAILERS;
}

/* ---- pxg_stream.c ------------------------------------------------------------------------------------------------ */

typedef enum pxg_state { S_WAIT, S_PEND, S_HOLD, S_FLOW, S_BYPASS, S_DONE, S_CUT } pxg_state;

/* One direction at one place: 7.11. */
typedef struct pxg_dir {
  pxg_state state;
  uint32_t mode;
  bool head_in, held, head_out;   /* Headers: have arrived; are held here; have passed. */
  bool end_at_head;               /* The message ended at its headers. */
  bool ended, body_end_seen;      /* All has arrived; BODY_END was delivered. */
  bool end_out, trailers_seen;    /* The end has passed; trailers were shown, with WHOLE_BODY or by TRAILERS. */
  bool changed, resumed, resizes; /* See 7.11, RESUMED, 7.6. */
  bool modes_final;               /* The HEADERS result has been taken. */
  bool withheld;                  /* `hold_since` counts. */
  bool observing;                 /* The event under way is one of OBSERVE, whatever mode its result asks for. */
  uint32_t pend_phase, pend_flags;
  uint64_t offset, need, kept; /* A MORE: due at this length; what it kept. */
  uint64_t last_event, token, deadline, hold_since, pend_len;
  int64_t room;                       /* What content-length still allows to leave; -1: free. */
  uint64_t shown_fields, shown_bytes; /* Of the headers as a PENDING saw them; no field: not known. */
  pxg_bytes view;
} pxg_dir;

typedef struct pxg_slot pxg_slot;

/* What `complete`, `apply` and `wake` left for the worker, first in its box, then at a place. E_LOST: a completion that
 * was accepted and could not be kept, for want of memory. */
typedef struct pxg_effect {
  struct pxg_effect *next;
  enum { E_COMPLETE, E_APPLY, E_WAKE, E_LOST } kind;
  uint32_t flags; /* Of the WAKE event. */
  pxg_slot *to;
  uint64_t token, arg; /* A token or a handle; of WAKE. */
  pxg_decision *d;     /* Null for E_WAKE and E_LOST. */
} pxg_effect;

typedef struct pxg_place {
  pxg_stream *s;
  pxg_config *c;
  int index;
  bool reached, failed, replied, open, skip_response;
  bool wrote; /* A BODY_WRITE has come by `apply`. */
  uint64_t user, handle, subscribe, open_since;
  uint64_t time_ns; /* Inside on_event. */
  pxg_dir d[2];
  pxg_effect *first, **last;
  bool wake_queued;
  pxg_effect wake, woken; /* Queued, and taken: so that a wake never fails for want of memory. */
} pxg_place;

typedef struct pxg_sink {
  bool head, head_taken, head_ends, end, end_taken, flush;
  pxg_bytes bytes;
} pxg_sink;

typedef struct pxg_meta {
  struct pxg_meta *next;
  uint32_t key_len, len;
  uint8_t *value;
  char key[]; /* `namespace.key`. */
} pxg_meta;

struct pxg_stream {
  pxg_worker *w;
  const pxg_stream_ops *ops;
  void *data;
  uint64_t id;
  uint32_t flags; /* PXG_STREAM_*. */
  bool running, again, dead, no_memory, finished, upgraded, replied, local, route_final, recompute, redirected;
  bool began[2], in_done[2], trailers[2], eos_unknown[2];
  /* Heads as they were shown to the guest whose event is under way: nothing changes them before its result does. */
  bool keeps_views, kept[2];
  pxg_view views[2];
  bool reset_taken;
  uint32_t why; /* The first cause; 0: none yet. */
  pxg_sink out[2];
  uint64_t waiting;
  char *cluster, *details;
  pxg_meta *meta, *spent;          /* `spent`: replaced; results of the event under way may refer to it. */
  pxg_stream **ready, *ready_next; /* In the worker's list of those with mail: what points here; null: not in it. */
  int n;
  pxg_place places[];
};

enum { PXG_SCRATCH_OPS = 64, PXG_SCRATCH_BYTES = 8192, PXG_MOST_CHUNKS = 64 };

struct pxg_worker {
  _Atomic(pxg_effect *) box __attribute__((aligned(64))); /* The newest letter first. */
  _Atomic bool awake;
  uint32_t index __attribute__((aligned(64)));
  void (*bell)(void *data);
  void *data;
  uint64_t now;
  pxg_stream *ready, **ready_last;
  uint32_t free_slots;
  bool batch_due;
  uint8_t *libs; /* By ctx: LIB_*. */
  size_t n_libs;
  pxg_call call;
  pxg_result out;        /* Of the event that is under way. */
  pxg_decision decision; /* And what became of it. */
  pxg_todo todos[PXG_INLINE_OPS];
  pxg_glance *called, **last_called; /* Those with mail. */
  pxg_effect *read;                  /* The letter whose edits the driver makes. */
  pxg_str chunks[PXG_MOST_CHUNKS];
  pxg_str *attrs;
  size_t attrs_cap;
  pxg_op ops[PXG_SCRATCH_OPS] __attribute__((aligned(16)));
  uint8_t scratch[PXG_SCRATCH_BYTES] __attribute__((aligned(16)));
};

/* pxg_stream_open without handles. */
pxg_stream *pxg_stream_make(pxg_worker *w, pxg_config *const *chain, size_t n, const pxg_stream_ops *ops, void *data,
                            uint64_t id, uint32_t flags);
bool pxg_begin_head(pxg_stream *s, int d, uint32_t flags); /* Answers whether the message ends there. */
/* What is for no place goes through them all at once. */
void pxg_head_passes_by(pxg_stream *s, int d, bool ends);
void pxg_end_passes_by(pxg_stream *s, int d);
void pxg_run(pxg_stream *s);
void pxg_reset(pxg_stream *s, uint32_t why);
void pxg_why(pxg_stream *s, uint32_t why); /* The first one counts. */
bool pxg_show(pxg_stream *s, int d, bool trailers, pxg_view *v);
static inline void pxg_keep_views(pxg_stream *s, bool keep) {
  s->keeps_views = keep;
  s->kept[REQ] = s->kept[RSP] = false;
}
/* What left is not what came, and content-length says how much more may. */
static inline bool pxg_bound(const pxg_dir *x) { return x->changed && x->room >= 0; }

static inline bool pxg_subscribed(const pxg_place *p, uint32_t phase) { return p->subscribe >> phase & 1; }
static inline uint32_t pxg_phase(int d, uint32_t request_phase) { return request_phase + (d == RSP ? 3 : 0); }
static inline bool pxg_c_has(const pxg_place *p, int d, unsigned request_feature) {
  return pxg_has(p->c->features, request_feature + (unsigned)d);
}

/* ---- pxg_glance.c ------------------------------------------------------------------------------------------------ */

void pxg_glance_receive(pxg_glance *g, pxg_effect *e); /* Null: a completion that could not be kept. */

/* ---- pxg_direction.c --------------------------------------------------------------------------------------------- */

pxg_place *pxg_next_place(const pxg_place *p, int d); /* Null: the network. */
void pxg_enter_head(pxg_stream *s, int d, bool ends);
void pxg_enter_bytes(pxg_stream *s, int d, pxg_bytes *b);
void pxg_enter_end(pxg_stream *s, int d);
void pxg_pass_bytes(pxg_place *p, int d, pxg_bytes *b, uint64_t n);
void pxg_pass_headers(pxg_place *p, int d);
void pxg_pass_end(pxg_place *p, int d);
bool pxg_step(pxg_place *p, int d);
void pxg_unpend(pxg_place *p);
uint64_t pxg_cut(pxg_place *p, int d); /* Answers the token to cancel, or 0. */
bool pxg_parked(const pxg_place *p, int d);

/* ---- pxg_event.c ------------------------------------------------------------------------------------------------- */

void pxg_deliver(pxg_place *p, int d, uint32_t phase, uint32_t flags, uint64_t len, uint64_t arg);
/* Calls on_event; the result is in w->out, what it borrows lives until pxg_call_end. Answers how long it took.
 * `start`: the driver's clock just now, or 0. */
uint64_t pxg_cross(pxg_worker *w, const pxg_config *c, const pxg_speaker *speaker, const pxg_event *ev, uint64_t start);
/* Takes w->out as what `ev`, of `len` bytes, was answered with, and ends the call. */
void pxg_conclude(pxg_place *p, int d, const pxg_event *ev, uint64_t len);
/* An event was answered by PENDING, with the guest's wish or 0: counts it, sees to on_batch_end. Answers the deadline. */
uint64_t pxg_pending_begins(pxg_worker *w, pxg_config *c, uint32_t phase, uint64_t wish);
void pxg_pending_ends(pxg_worker *w, pxg_config *c);
void pxg_cancel(pxg_worker *w, pxg_config *c, uint64_t user, uint64_t handle, uint64_t token);
void pxg_call_cancel(pxg_place *p, uint64_t token);
void pxg_call_stream_end(pxg_place *p);

/* ---- pxg_result.c ------------------------------------------------------------------------------------------------ */

void pxg_take_result(pxg_place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, pxg_decision *d,
                     pxg_source by);
void pxg_take_apply(pxg_place *p, pxg_decision *d);
bool pxg_can_reply(const pxg_place *p);
void pxg_failure(pxg_place *p, int dir, uint32_t phase, pxg_reason why, const char *text);

/* ---- pxg_settle.c: operations ------------------------------------------------------------------------------------ */

/* What depends on the stream; operations that are too late are marked as skipped. */
void pxg_settle_judge(pxg_place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, pxg_decision *d);
void pxg_settle_effects(pxg_place *p, pxg_decision *d); /* METADATA_SET and METRIC. */
void pxg_settle_apply(pxg_place *p, int dir, pxg_decision *d, pxg_bytes *out, uint64_t *cursor);
const pxg_meta *pxg_meta_find(const pxg_stream *s, const char *key, size_t len);
void pxg_meta_free(pxg_meta **all);

/* ---- pxg_reply.c ------------------------------------------------------------------------------------------------- */

void pxg_reply_make(pxg_place *p, pxg_answer *r, const char *details);
void pxg_reply_local(pxg_place *p, uint32_t status, const char *reason);
void pxg_reply_write(pxg_place *p, pxg_todo *o);
void pxg_reply_room(pxg_stream *s);
uint64_t pxg_reply_idle(const pxg_place *p);

/* ---- pxg_log.c --------------------------------------------------------------------------------------------------- */

static inline pxg_speaker pxg_stream_speaker(const pxg_stream *s) { return (pxg_speaker){s->ops->log, s->data, s->id}; }
/* A record of the stream. */
void pxg_stream_say(const pxg_stream *s, uint32_t level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- pxg_tokens.c ------------------------------------------------------------------------------------------------ */

/* 0: no memory. */
uint64_t pxg_token_new(pxg_worker *w, pxg_config *c, pxg_place *p, pxg_glance *g, uint32_t phase, uint32_t flags);
/* After on_event returned PENDING; after anything else the token is retired and a completion discarded. False: it has been
 * completed already. */
bool pxg_token_returned(pxg_worker *w, pxg_config *c, uint64_t token, bool pending);
bool pxg_token_retire(uint64_t token); /* True: it was PENDING, and `complete` has not won. */
bool pxg_token_is_pending(uint64_t token);
uint64_t pxg_handle_new(pxg_worker *w, pxg_config *c, pxg_place *p, pxg_glance *g); /* 0: no memory. */
void pxg_slot_moves(uint64_t value, pxg_place *p); /* A glance's token or handle becomes that of a place. */
void pxg_handle_retire(pxg_worker *w, uint64_t handle);
void pxg_handle_subscribes(pxg_place *p); /* Publishes for `wake` whether the place subscribes to WAKE. */
void pxg_handle_waiting(uint64_t handle, uint64_t bytes);
void pxg_written(pxg_place *p, uint64_t n);        /* A BODY_WRITE was taken up. */
bool pxg_has_room(pxg_place *p, uint64_t waiting); /* WRITABLE is due; it is not any more then. */
/* The place, or else the glance, that a letter of the box is for, or null; a wake's argument. The letter's token is
 * retired by this. */
pxg_place *pxg_addressee(pxg_worker *w, pxg_effect *e, uint64_t *arg, pxg_glance **g);
void pxg_effect_free(pxg_effect *e);
void pxg_slots_leave(pxg_worker *w); /* The worker's slots may be another's. */

/* ---- pxg_mail.c -------------------------------------------------------------------------------------------------- */

void pxg_post(pxg_worker *w, pxg_effect *e); /* [any-thread] */
void pxg_collect(pxg_worker *w);             /* Takes the box to the queues of the places. */
void pxg_effect_append(pxg_place *p, pxg_effect *e);
pxg_effect *pxg_effect_take(pxg_place *p); /* The next one; null: none. */
void pxg_effects_discard(pxg_place *p);
void pxg_effect_wake(pxg_place *p, uint32_t flags); /* By the worker itself. */
void pxg_mail_ready(pxg_stream *s);                 /* pxg_worker_next answers it. */
void pxg_mail_forget(pxg_stream *s);

#endif
