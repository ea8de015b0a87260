/* SPDX-License-Identifier: Apache-2.0 */

/* What the parts of the mini host share. Sections are named after the file that defines them; a part includes this
 * header and nothing else of the project but the ABI's. */

#ifndef MINIHOST_H
#define MINIHOST_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

enum { REQ = PXG_DIR_REQUEST, RSP = PXG_DIR_RESPONSE };

/* ---- bug.c: the mutants ------------------------------------------------------------------------------------------ */

extern const char *bug_name;       /* The chosen mutant; NULL for the clean host. */
bool bug_choose(const char *name); /* False if there is no such mutant. */
void bug_list(FILE *to);
#define BUG(name) (__builtin_expect(bug_name != NULL, 0) && !strcmp(bug_name, name))

/* ---- bytes.c: queues of shared bytes ----------------------------------------------------------------------------- */

/* Memory with a count of users. */
typedef struct block {
  atomic_int refs;
  void (*release)(uint64_t); /* For a guest's OWNED buffer. */
  uint64_t ctx;
  uint8_t data[];
} block;

typedef struct slice {
  block *owner; /* NULL for static bytes. */
  const uint8_t *ptr;
  size_t len;
} slice;

/* A queue of slices, none of them empty. */
typedef struct bytes {
  slice *at;
  size_t first, n, cap;
  uint64_t len;
} bytes;

void *must(void *memory); /* Aborts the process for want of memory. */
void *zalloc(size_t n);
char *copy_text(const void *ptr, size_t len); /* With a NUL behind. */
block *block_new(size_t len);
block *block_owned(void (*release)(uint64_t), uint64_t ctx);
void block_ref(block *b);
void block_unref(block *b);
void bytes_add(bytes *to, slice s); /* Takes over the reference. */
void bytes_copy(bytes *to, const void *ptr, size_t len);
void bytes_move(bytes *to, bytes *from, uint64_t len);
void bytes_drop(bytes *from, uint64_t len);
void bytes_limit(bytes *b, size_t most); /* Coalesces until there are at most that many slices. */
void bytes_free(bytes *b);

/* ---- fields.c: lists of fields and their grammar ----------------------------------------------------------------- */

typedef struct field {
  char *name, *value;
  uint32_t name_len, value_len;
  uint32_t flags; /* PXG_STR_SENSITIVE. */
  int64_t seen;   /* Index in the view that was delivered last, or -1. */
  bool changed;   /* By a guest; only a mutant looks at it. */
} field;

typedef struct fields {
  field *at;
  size_t n, cap;
} fields;

void fields_add(fields *f, const void *name, size_t name_len, const void *value, size_t value_len, uint32_t flags);
void fields_put(fields *f, const char *name, const char *value);
const char *fields_get(const fields *f, const char *name); /* The first value, or NULL. */
size_t fields_count(const fields *f, const char *name);
bool fields_set(fields *f, const void *name, size_t name_len, const void *value, size_t value_len, uint32_t flags);
bool fields_delete(fields *f, const void *name, size_t name_len);
void fields_remove_at(fields *f, size_t i);
void fields_copy(fields *to, const fields *from);
void fields_free(fields *f);
bool name_is_token(const uint8_t *p, size_t n, bool upper);
bool value_is_clean(const uint8_t *p, size_t n);
bool name_is_owned(const uint8_t *p, size_t n);
/* What is wrong with a field of a guest's, or NULL. `is_set` allows pseudo-headers of the direction. */
const char *field_fault(const uint8_t *name, size_t name_len, const uint8_t *value, size_t value_len, bool is_set,
                        bool trailers, int direction);

/* ---- settings.c: the command line -------------------------------------------------------------------------------- */

enum { MAX_FILTERS = 64, MAX_CHAINS = 64, MAX_PLACES = 32 };

typedef struct filter_spec {
  char *path, *filter, *instance, *file;
  bool open;                        /* Failure mode. */
  const char *grants[8], *allow[8]; /* Namespaces; clusters, none: all. */
  size_t n_grants, n_allow;
  uint64_t pend_limit_ms, hold_span_ms, pending_cap, max_body_limit;
} filter_spec;

/* The chain of paths with a prefix; `files`: a route's own configuration, or NULL. */
typedef struct chain_spec {
  char *prefix;
  size_t n;
  int filters[MAX_PLACES];
  char *files[MAX_PLACES];
} chain_spec;

/* What a reload may change. They live as long as the process: configurations point to them. */
typedef struct specs {
  struct specs *before;
  filter_spec *filters[MAX_FILTERS];
  size_t n_filters;
  chain_spec chains[MAX_CHAINS];
  size_t n_chains;
} specs;

typedef struct cluster {
  char name[64];
  char host[64];
  uint16_t port;
} cluster;

typedef struct settings {
  char *listen, *admin;
  cluster clusters[16];
  size_t n_clusters;
  struct {
    char *prefix, *cluster;
  } routes[16];
  size_t n_routes;
  specs *specs;
  char *strip[32];
  size_t n_strip;
  char **texts;
  size_t n_texts;
  uint32_t workers;
  bool l4, pin, validate;
  uint64_t pend_ms, pend_limit_ms, hold_time_ms, hold_span_ms, drain_ms, idle_ms;
  uint64_t max_body, max_body_limit, watermark, pending_cap;
  uint64_t max_ops, max_fields, max_field_bytes, scratch_limit, max_series;
} settings;

extern settings set;
void settings_free(void);
bool settings_reload(
    void); /* Reads the filters and chains of --args again; false: it is wrong, and nothing has changed. */
bool settings_read(int argc, char **argv); /* Says what is wrong on stderr. */
cluster *cluster_find(const char *name, size_t len);
cluster *route_of(const char *path);

/* ---- log.c: logs, the page, metrics ------------------------------------------------------------------------------ */

enum reason { R_ERROR, R_PANIC, R_INVALID, R_DEADLINE, R_LIMIT, R_CAP, N_REASONS };
extern const char *const reason_names[N_REASONS];
const char *phase_name(uint32_t phase);
const char *status_name(int32_t status);

/* The counters of 15.4 for one instance; they outlive its configurations. */
typedef struct stats {
  struct stats *next;
  char *guest, *filter, *instance;
  _Atomic uint64_t calls[32], errors[32], panics[32], pendings[32], ns[32], buckets[32][8];
  _Atomic uint64_t failures[N_REASONS], stale, cancels, skipped, late, bypassed;
  atomic_int pending;
} stats;

extern pxg_page page;
extern const pxg_metrics_v1 metrics_table;
stats *stats_of(const char *guest, const char *filter, const char *instance);
void say(uint32_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));
void say_escaped(uint32_t level, const char *who, const uint8_t *text, uint64_t len);
char *clean_text(const void *text, size_t len); /* Escaped and capped. */
void guest_log(uint64_t ctx, uint32_t level, const uint8_t *text, uint64_t len);
bool metric_known(uint64_t lib, uint32_t id);
bool metric_record(uint64_t lib, uint32_t id, int64_t value); /* False: no such id of that library, or refused. */
void stats_time(stats *s, uint32_t phase, uint64_t ns);
void metrics_print(FILE *to);
void metrics_free(void);
uint64_t now_ns(void);
uint64_t wall_ns(void);
void page_tick(void);

/* ---- guest.c: libraries ------------------------------------------------------------------------------------------ */

typedef struct lib {
  struct lib *next;
  uint64_t ctx; /* Its number; the first argument of every host function it calls. */
  char *path;
  uint64_t device, inode;
  bool go;
  pxg_guest table;
  char *name; /* Cleaned for logs and metrics. */
  void *so;
  pxg_host host;
} lib;

char *elf_check(const char *path, bool *go); /* elf.c: what is wrong with the file, or NULL. */
lib *lib_load(const char *path, char **why); /* Answers the one that is loaded if it is the same file. */
lib *lib_by_ctx(uint64_t ctx);
lib *lib_first(void);
const pxg_host *host_table(void);
bool has_feature(const uint64_t *set, unsigned feature);
/* The names of the features that are wanted and not there. */
void name_features(char *to, size_t room, const uint64_t *want, const uint64_t *have);
void lib_unload(lib *l); /* A mutant's. */

/* What is lent during a hook. */
typedef struct call {
  pxg_op *ops;
  uint64_t ops_cap;
  uint8_t *scratch;
  uint64_t scratch_cap;
  void *more[64];
  uint64_t more_len[64], more_sum;
  size_t n_more;
  bool over; /* scratch_more was refused. */
} call;

extern _Thread_local call *call_now;
uint8_t *guest_scratch_more(uint64_t ctx, uint64_t n);
void call_begin(call *c);
void call_end(call *c);
bool call_lent(const call *c, const void *ptr);                   /* A mutant's. */
bool call_overruns(const call *c, const void *ptr, uint64_t len); /* Begins in a lent region and ends outside. */

/* ---- config.c: configurations ------------------------------------------------------------------------------------ */

typedef struct attr {
  char *name;
  uint64_t phases;
  int getter; /* Index into the table of attributes.c; -1: unknown; -2: metadata. */
  char *meta; /* `namespace.key`. */
} attr;

typedef struct config {
  atomic_int refs;
  lib *lib;
  char *filter, *instance;
  bool overriding, dropped; /* `dropped`: a mutant's. */
  const filter_spec *spec;
  uint64_t features[4];
  uint64_t value, subscribe, pend_phases, pend_ns;
  uint32_t flags, mode[2];
  uint64_t max_body[2];
  attr *attrs;
  size_t n_attrs;
  char **projection;
  uint64_t *projection_phases;
  size_t n_projection;
  struct config *parent;
  stats *stats;
  atomic_int *pending; /* Per worker. */
  struct config *drop_next;
} config;

/* What is in force: the chain, and the routes' overrides. */
typedef struct world {
  const specs *specs;
  config *instances[MAX_FILTERS];
  size_t n;
  config *overrides[MAX_CHAINS][MAX_PLACES];
} world;

bool world_load(uint32_t in_flags, world **out); /* [config-thread] All or nothing. */
void world_serve(world *w);                      /* [config-thread] Replaces what is in force. */
void world_free(world *w);
size_t world_take(const char *path, config **chain); /* References for a new stream. */
config *config_ref(config *c);
void config_unref(config *c);
void configs_drop_now(void); /* A mutant's. */
bool configs_drop(void);     /* [config-thread] Drops those without users; whether none is left at all. */
extern int config_event;     /* An eventfd: something is to drop. */

/* ---- decision.c: what a guest decided, copied -------------------------------------------------------------------- */

typedef struct op {
  uint16_t kind, flags;
  uint32_t target;
  uint64_t u0;
  char *key;
  uint32_t key_len;
  slice val;
  uint32_t val_flags;
  bool skip;
} op;

typedef struct reply {
  uint32_t status, flags;
  int32_t grpc;
  fields fields, trailers;
  bytes body;
  char *details;
} reply;

typedef struct decision {
  uint32_t action, flags, mode[2];
  uint64_t user, unsubscribe, more_bytes, pend_ns;
  op *ops;
  size_t n_ops;
  reply *reply;
  bool has_reply;
  char *error;
  int32_t status; /* What it is refused with, and why. */
  char why[256];
} decision;

enum source { BY_EVENT, BY_COMPLETE, BY_APPLY };
/* Copies into a zeroed `d`, whose status says whether all of it could be read and has the right form. Owned buffers are
 * taken over in any case. */
void decision_read(decision *d, const pxg_result *r, enum source by, const call *lent);
/* Keeps the status that 1.5 puts first. */
void refuse(decision *d, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void decision_free(decision *d);

/* ---- check.c: validation ----------------------------------------------------------------------------------------- */

/* What needs no state of the stream: `d->status` is set. */
void decision_check(decision *d, enum source by, const config *c, uint32_t phase, uint32_t flags);
bool is_body_phase(uint32_t phase); /* L4 data included. */
bool is_headers_phase(uint32_t phase);

/* ---- stream.c: streams and places -------------------------------------------------------------------------------- */

typedef struct worker worker;
typedef struct stream stream;
typedef struct place place;

enum state { S_WAIT, S_PEND, S_HOLD, S_FLOW, S_BYPASS, S_DONE, S_CUT };

/* A part of a credit on L4: bytes to pass or drop that have not come yet, or bytes behind them. */
typedef struct credit {
  struct credit *next;
  int what; /* PXG_OP_PASS, PXG_OP_DROP, PXG_OP_INJECT. */
  uint64_t n;
  bytes inject;
} credit;

/* One direction at one place: 7.11. */
typedef struct dir {
  enum state state;
  uint32_t mode;
  bool head_in, held, head_out;   /* Headers: have arrived; are held here; have passed. */
  bool end_at_head;               /* The message ended at its headers. */
  bool ended, body_end_seen;      /* All has arrived; BODY_END was delivered. */
  bool observing;                 /* The event under way is one of OBSERVE, whatever mode its result asks for. */
  bool end_seen, end_out;         /* END_STREAM was delivered; the end has passed. */
  bool trailers_seen;             /* With the WHOLE_BODY event, or by TRAILERS. */
  bool changed, resumed, resizes; /* See 7.11, RESUMED, 7.6. */
  bool tunnel;                    /* 7.8. */
  bool modes_final;               /* The HEADERS result has been taken. */
  bytes view;
  bytes late; /* A mutant's. */
  uint64_t offset;
  uint64_t need, kept, last_event; /* A MORE: due at this length; kept; ns of the last event. */
  uint64_t token, deadline, hold_since, pend_len;
  uint32_t pend_phase, pend_flags;
  int64_t room; /* What content-length still allows to leave; -1: free. */
  credit *credits, **credits_end;
} dir;

static inline bool is_observing(const struct dir *x) {
  return x->observing && (x->mode == PXG_BODY_OBSERVE || !BUG("observed-bytes-leave-again"));
}

/* What `complete`, `apply` and `wake` left for the worker. */
typedef struct effect {
  struct effect *next;
  enum { E_COMPLETE, E_APPLY, E_WAKE } kind;
  uint64_t token, arg;
  uint32_t flags; /* Of the WAKE event. */
  bool early;
  decision d;
} effect;

struct place {
  stream *s;
  config *c;
  int index;
  uint64_t user, handle, subscribe;
  dir d[2];
  bool reached, failed, replied, open, skip_response, recomputed, again; /* The last two: a mutant's. */
  uint64_t open_since;
  fields open_trailers;
  /* Guarded by the lock of tokens.c. */
  effect *first, **last;
  effect *wake;
  uint64_t queued; /* Bytes of BODY_WRITE that were accepted and not applied. */
  bool full;       /* FULL was answered and WRITABLE not raised. */
  bool no_wake;
};

typedef struct message {
  fields head, trailers;
  bool local, sent, ends, ends_out; /* `ends`: with its headers; `ends_out`: as it left. */
  char *details;
} message;

typedef struct meta {
  struct meta *next;
  char *key, *value;
  size_t len;
} meta;

struct stream {
  stream *next, **link; /* Of the worker. */
  worker *w;
  atomic_int refs;
  bool tunnel, tunnel_due; /* 7.8. */
  bool ready;              /* On the worker's list; guarded by its lock. */
  stream *ready_next;
  bool l4, running, again, dead, upgraded, replied, final_route, head_method, sent_100, expect_100;
  atomic_bool in_call; /* A hook of it runs: for a mutant. */
  int n;
  place *places;
  message m[2];
  uint32_t why;                                 /* PXG_END_*; 0: not ended. */
  uint8_t dirend[2];                            /* PXG_DIREND_*; 0 while it runs. */
  bool began[2], in_done[2], over[2], finished; /* `over`: the direction has ended. */
  cluster *cluster;
  char *cluster_name;
  meta *meta;
  struct client *client;
  struct upstream *up;
  bool contacted;
  uint64_t id, start_wall, start, bytes_in[2], bytes_out[2], up_start, up_first, requests;
  char *raw_path, *norm_path, *protocol;
  uint32_t attempts, code;
  bool trailers_ok[2];             /* The receiver of that direction can take trailers. */
  _Atomic uint64_t client_waiting; /* Bytes that the client has not taken. */
};

stream *stream_new(worker *w, struct client *c, bool l4);
void stream_begin(stream *s, config **chain, size_t n); /* The request's head is in m[REQ]. */
void stream_unref(stream *s);
void stream_run(stream *s);
void stream_reset(stream *s, uint32_t why); /* Cuts what runs; the end comes in stream_run. */
void stream_timers(stream *s, uint64_t now);
void stream_later(stream *s, uint64_t at);
/* From the network. */
void stream_response(stream *s, fields *head, bool ends); /* Takes the list over. */
void stream_bytes(stream *s, int d, bytes *b);
void stream_ended(stream *s, int d, fields *trailers);
bool stream_wants(const stream *s, int d); /* Whether its source is to be read. */
void stream_drained(stream *s, int d);     /* The sink has handed over all it has. */
/* For the parts of the engine. */
void stream_why(stream *s, uint32_t why); /* The first one counts. */
void stream_over(stream *s, int d, uint8_t how);
uint64_t end_arg(const stream *s);

/* ---- flow.c: from place to place --------------------------------------------------------------------------------- */

bool subscribed(const place *p, uint32_t phase);
void enter_head(stream *s, int d, bool ends);
void enter_bytes(stream *s, int d, bytes *b);
void enter_end(stream *s, int d);
void unpend(place *p);
uint64_t cut_quietly(place *p, int d); /* Answers the token to cancel, or 0. */
void cut_all(stream *s, int d);
void credits_free(place *p);
bool dir_is_parked(const place *p, int d);
void to_next_bytes(place *p, int d, bytes *b, uint64_t n);
void to_next_inject(place *p, int d, slice *s);
void pass_headers(place *p, int d);
void pass_end(place *p, int d);
void pass_all(place *p, int d);
bool node_step(place *p, int d);
void tunnel_start(stream *s);
place *next_place(const place *p, int d); /* NULL: the network. */
void finish(stream *s);

/* ---- event.c: calls of on_event ---------------------------------------------------------------------------------- */

void deliver(place *p, int d, uint32_t phase, uint32_t flags, uint64_t view, uint64_t arg);
void deliver_wake(place *p, uint32_t flags, uint64_t arg);
void call_cancel(place *p, uint64_t token);
void call_stream_end(place *p);
void loop_enter(worker *w, lib *l); /* Before any loop-thread hook. */

/* ---- result.c: what a result does -------------------------------------------------------------------------------- */

/* Judges and applies; `d` is emptied. */
void take_result(place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, decision *d, enum source by);
void take_apply(place *p, decision *d);
bool can_reply(const place *p);
void fail(place *p, int dir, uint32_t phase, enum reason why, const char *text);
void count_skipped(place *p);

/* ---- ops.c: operations applied ----------------------------------------------------------------------------------- */

/* What depends on the stream; operations that are too late are marked as skipped. */
void ops_judge(place *p, int dir, uint32_t phase, uint32_t flags, uint64_t view, decision *d);
void ops_effects(place *p, decision *d); /* METADATA_SET and METRIC. */
void ops_apply(place *p, int dir, uint32_t phase, uint64_t view, decision *d, bytes *out, uint64_t *cursor);

/* ---- reply.c ----------------------------------------------------------------------------------------------------- */

void make_reply(place *p, reply *r, const char *details);                /* Takes the content over. */
void make_local(stream *s, place *from, uint32_t status, char *details); /* `from` NULL: at the upstream end. */
void body_write(place *p, op *o);
void reply_end(place *p);            /* The regular end of an open reply. */
uint64_t reply_idle(const place *p); /* When an open reply has been without a write for too long. */
void reply_room(stream *s);          /* Raises WRITABLE where there is room again. */

/* ---- tokens.c: tokens, handles, complete, apply, wake ------------------------------------------------------------ */

uint64_t token_new(place *p, int d, uint32_t phase, uint32_t flags);
uint64_t handle_new(place *p);
/* After on_event returned PENDING: true; after anything else the token is retired and a kept result discarded. */
void token_returned(place *p, uint64_t token, bool pending);
bool token_retire(uint64_t token); /* True: it was PENDING, and `complete` has not won. */
void handle_retire(uint64_t handle);
effect *effect_take(place *p);
void effect_free(effect *e);
bool token_is_pending(uint64_t token);
bool token_is_early(uint64_t token);
void effects_discard(place *p);
void effect_wake(place *p, uint32_t flags, uint64_t arg); /* From the worker itself. */
void place_sync(place *p);                                /* Publishes `subscribe` for `wake`. */
void tokens_free(void);
int32_t guest_complete(uint64_t ctx, uint64_t token, const pxg_result *r);
int32_t guest_apply(uint64_t ctx, uint64_t handle, const pxg_result *r);
int32_t guest_wake(uint64_t ctx, uint64_t handle, uint64_t arg);
extern pthread_mutex_t tokens_lock;

/* ---- attributes.c ------------------------------------------------------------------------------------------------ */

int attribute_find(const char *name, size_t len);
/* The text of an attribute, in `room` or elsewhere; NULL: absent. */
const char *attribute_get(const stream *s, const attr *a, uint32_t phase, char room[128], size_t *len);

/* ---- loop.c: workers --------------------------------------------------------------------------------------------- */

/* What epoll reports to. */
typedef struct handler {
  void (*ready)(struct handler *h, uint32_t events);
  int fd;
  uint32_t interest;
} handler;

struct worker {
  uint32_t index;
  pthread_t thread;
  int epoll;
  handler wake, listener;
  pthread_mutex_t lock; /* Of `ready`. */
  stream *ready;
  stream *streams;
  atomic_int live; /* Streams. */
  struct client *clients, *dead_clients;
  struct upstream *dead_ups;
  uint64_t next_timer;
  bool *lib_up, *lib_pended;
  size_t n_libs;
  pxg_op *scratch_ops;
  uint8_t *scratch;
  pxg_field *fields;
  size_t fields_cap;
  atomic_bool draining, stop, cut; /* `cut`: a mutant's. */
  bool bereft;                     /* A mutant's: a stream died while it was PENDING. */
};

#define SCRATCH_OPS 64
#define SCRATCH_BYTES 8192
#define READ_SIZE 16384

extern worker *workers;
extern _Thread_local bool loop_thread;
void handler_set(worker *w, handler *h, uint32_t interest); /* 0 removes. */
bool workers_start(uint16_t *port);
void pin(uint32_t index);
void workers_drain(void);
void workers_cut(void);       /* A mutant's. */
void workers_stop(void);      /* Returns when no worker has a stream. */
void workers_end(void);       /* After the configurations: on_worker(down), and the threads end. */
void worker_ready(stream *s); /* [any-thread] */
uint32_t worker_streams(void);

/* ---- http.c: heads and framing ----------------------------------------------------------------------------------- */

enum framing { F_NONE, F_LENGTH, F_CHUNKED, F_CLOSE };

/* A decoder of one body. */
typedef struct decoder {
  enum framing framing;
  uint64_t left;
  int step;
  fields trailers;
  size_t trailer_bytes;
} decoder;

typedef struct head {
  fields list;
  enum framing framing;
  uint64_t length;
  int minor;
  bool keep_alive, upgrade, expect;
  char *raw_path, *protocol;
} head;

/* The length of the head in `buf`, 0 if it is not complete. */
size_t head_end(const char *buf, size_t len);
/* 0, or the status to refuse with, and why. */
int head_request(head *h, const char *buf, size_t len, const char **why);
int head_response(head *h, const char *buf, size_t len, bool to_head, bool to_connect, const char **why);
void head_free(head *h);
/* Decodes from `buf` into `out`; 1 at the end, 0 for more, -1 for bad framing. */
int decode(decoder *d, const char *buf, size_t len, size_t *used, bytes *out);
char *path_normal(const char *path);
void print_request(bytes *to, const stream *s, enum framing f);
void print_response(bytes *to, const stream *s, enum framing f, bool close, int minor);
void print_body(bytes *to, bytes *b, enum framing f);
void print_end(bytes *to, const fields *trailers, enum framing f);

/* ---- client.c ---------------------------------------------------------------------------------------------------- */

typedef struct client {
  handler h;
  worker *w;
  struct client *next, **link;
  char *in;
  size_t in_len, in_cap;
  bytes out;
  bool eof, closing, close_after, writing_shut, eof_sent, tunnel, lingering, kick;
  stream *s;
  decoder body;
  bool body_done;
  enum framing framing;
  int minor;
  uint64_t id, requests, idle_at;
  char peer[64], local[64];
} client;

void client_accept(worker *w, int fd);
void client_head(stream *s); /* The sink of responses. */
void client_bytes(stream *s, bytes *b);
void client_end(stream *s);
void client_continue(stream *s);
void client_done(stream *s); /* The stream has ended: the connection goes on, or is aborted. */
void client_update(client *c);
void client_flush(client *c);
void client_free(client *c);
void client_idle(client *c, uint64_t now);

/* ---- upstream.c -------------------------------------------------------------------------------------------------- */

typedef struct upstream {
  handler h;
  worker *w;
  stream *s;
  struct upstream *dead_next;
  char *in;
  size_t in_len, in_cap;
  bytes out;
  bool kick, connected, head_done, ended, out_shut, shut_when_drained, tunnel, eof, finished;
  decoder body;
  enum framing framing;
  char address[64];
} upstream;

void upstream_open(stream *s); /* Connects; for HTTP, sends the head. */
void upstream_bytes(stream *s, bytes *b);
void upstream_end(stream *s);
void upstream_close(stream *s);
void upstream_update(stream *s);

#endif
