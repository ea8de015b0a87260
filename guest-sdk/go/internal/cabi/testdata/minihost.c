/* A small strict host that drives a Go guest through the C boundary.
 *
 *   minihost LIBRARY check|nulls|nobatch|recipe|memory [FILTER]|bench [ROUNDS]
 *
 * It exits with 0 if everything was as the specification says, and else says in
 * one line what was not. */
#define _GNU_SOURCE
#include "../proxy_golang.h"
#include "../proxy_golang_metrics.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CHECK(cond, ...)                                              \
  do {                                                                \
    if (!(cond)) {                                                    \
      fprintf(stderr, "minihost:%d: %s: ", __LINE__, #cond);          \
      fprintf(stderr, __VA_ARGS__);                                   \
      fputc('\n', stderr);                                            \
      exit(1);                                                        \
    }                                                                 \
  } while (0)

/* ---- the host's side */

enum { TOKENS = 65536, DEAD = 0, ALIVE = 1 };
static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint64_t next_token;
  int state[TOKENS];
  uint64_t completed, stale, applied, full, wakes, logs;
  int apply_full; /* apply answers FULL */
  uint32_t last_action;
  char last_error[512], last_key[64], last_value[256], written[4096], log_text[65536];
  uint64_t more_calls, more_bytes;
} H = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .next_token = 1};

static pxg_page page = {.size = sizeof(pxg_page), .log_level = PXG_LOG_INFO};

static void keep(char *to, size_t cap, const pxg_str *s) {
  size_t n = s->len < cap - 1 ? s->len : cap - 1;
  if (n) memcpy(to, s->ptr, n);
  to[n] = 0;
}

static void read_result(const pxg_result *r, int completion) {
  CHECK(r->size == sizeof *r, "size %u", r->size);
  if (completion) {
    H.last_action = r->action;
    keep(H.last_error, sizeof H.last_error, &r->error);
  }
  for (uint64_t i = 0; i < r->n_ops; i++) {
    const pxg_op *o = &r->ops[i];
    keep(H.last_key, sizeof H.last_key, &o->key);
    keep(H.last_value, sizeof H.last_value, &o->val.bytes);
    if (o->kind == PXG_OP_BODY_WRITE) {
      size_t at = strlen(H.written);
      keep(H.written + at, sizeof H.written - at, &o->val.bytes);
    }
    if (o->val.bytes.flags & PXG_BUF_OWNED) o->val.release(o->val.ctx);
  }
}

static int32_t host_complete(uint64_t ctx, uint64_t token, const pxg_result *r) {
  CHECK(ctx == 77, "ctx %lu", (unsigned long)ctx);
  pthread_mutex_lock(&H.lock);
  int32_t code = PXG_E_STALE;
  if (token < TOKENS && H.state[token] == ALIVE) {
    H.state[token] = DEAD;
    H.completed++;
    read_result(r, 1);
    code = PXG_OK;
  } else {
    H.stale++;
  }
  pthread_cond_broadcast(&H.changed);
  pthread_mutex_unlock(&H.lock);
  return code;
}

static int32_t host_apply(uint64_t ctx, uint64_t stream, const pxg_result *r) {
  (void)ctx;
  pthread_mutex_lock(&H.lock);
  H.applied++;
  read_result(r, 0);
  int32_t code = stream == 0xdead ? PXG_E_STALE : H.apply_full ? PXG_FULL : PXG_OK;
  pthread_cond_broadcast(&H.changed);
  pthread_mutex_unlock(&H.lock);
  return code;
}

static int32_t host_wake(uint64_t ctx, uint64_t stream, uint64_t arg) {
  (void)ctx, (void)stream, (void)arg;
  pthread_mutex_lock(&H.lock);
  H.wakes++;
  pthread_mutex_unlock(&H.lock);
  return PXG_OK;
}

static void host_log(uint64_t ctx, uint32_t level, const uint8_t *p, uint64_t n) {
  (void)ctx;
  pthread_mutex_lock(&H.lock);
  H.logs++;
  size_t at = strlen(H.log_text);
  if (n < sizeof H.log_text - at - 2) {
    memcpy(H.log_text + at, p, n);
    H.log_text[at + n] = '\n';
    H.log_text[at + n + 1] = 0;
  }
  pthread_mutex_unlock(&H.lock);
  if (getenv("MINIHOST_LOG")) fprintf(stderr, "log %u: %.*s\n", level, (int)n, p);
}

static uint8_t *more_memory[256];
static uint64_t more_size[256];
static uint8_t *host_scratch_more(uint64_t ctx, uint64_t n) {
  (void)ctx;
  if (H.more_calls == 256 || n > (64u << 20)) return NULL;
  uint8_t *p = aligned_alloc(16, (n + 15) & ~15ull);
  memset(p, 0, n);
  more_size[H.more_calls] = n;
  more_memory[H.more_calls++] = p;
  H.more_bytes += n;
  return p;
}

static int32_t metric_define(uint64_t ctx, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n, uint32_t *id) {
  CHECK(ctx == 77 && kind == PXG_METRIC_GAUGE && name->len == 7 && !memcmp(name->ptr, "mallocs", 7), "metric %.*s", (int)name->len, name->ptr);
  CHECK(n == 1 && labels[0].name.len == 2 && !memcmp(labels[0].name.ptr, "of", 2) && labels[0].value.len == 2 && !memcmp(labels[0].value.ptr, "go", 2), "labels");
  *id = 4711;
  return PXG_OK;
}

static int64_t recorded;
static int32_t metric_record(uint64_t ctx, uint32_t id, int64_t value) {
  CHECK(ctx == 77 && id == 4711, "id %u", id);
  recorded = value;
  return PXG_OK;
}

static const pxg_metrics_v1 metrics = {sizeof metrics, 0, metric_define, metric_record};

static const void *host_get_ext(uint64_t ctx, const uint8_t *id, uint64_t n) {
  (void)ctx;
  return n == sizeof PXG_METRICS_V1_ID - 1 && !memcmp(id, PXG_METRICS_V1_ID, n) ? &metrics : NULL;
}

static pxg_host table = {
    .size = sizeof(pxg_host), .major = 1, .n_workers = 2,
    .features = {(2ull << PXG_F_APPLY) - 1},
    .name = {(const uint8_t *)"minihost", 8, 0}, .version = {(const uint8_t *)"1", 1, 0},
    .ctx = 77, .page = &page,
    .complete = host_complete, .apply = host_apply, .wake = host_wake, .log = host_log,
    .scratch_more = host_scratch_more, .get_ext = host_get_ext,
};

/* A struct that is longer than the guest knows, with a tail of 0xEE. */
static void *with_tail(const void *s, size_t n) {
  uint8_t *p = malloc(n + 64);
  memcpy(p, s, n);
  memset(p + n, 0xEE, 64);
  *(uint32_t *)p = (uint32_t)n + 64;
  return p;
}

static int tail_ok(const void *s, size_t n) {
  for (size_t i = 0; i < 64; i++)
    if (((const uint8_t *)s)[n + i] != 0xEE) return 0;
  return 1;
}

/* ---- the guest's side */

static pxg_guest_init_v1_fn init;
static pxg_guest G;

static pxg_str str(const char *s) { return (pxg_str){(const uint8_t *)s, (uint32_t)strlen(s), 0}; }

static char config_error[2048];
static pxg_config_out last_config;

static int32_t config_new(const char *filter, const char *json, uint64_t *config, uint64_t without) {
  pxg_config_in in = {.size = sizeof in, .features = {table.features[0] & ~without}, .filter = str(filter), .name = str("test"), .bytes = str(json)};
  pxg_config_in *in_long = with_tail(&in, sizeof in);
  static uint64_t scratch[512];
  pxg_config_out out = {.scratch = (uint8_t *)scratch, .scratch_cap = sizeof scratch};
  pxg_config_out *out_long = with_tail(&out, sizeof out);
  int32_t code = G.on_config_new(G.ctx, in_long, out_long);
  CHECK(tail_ok(out_long, sizeof out), "the tail of config_out was written");
  last_config = *out_long;
  *config = out_long->config;
  keep(config_error, sizeof config_error, &out_long->error);
  free(in_long), free(out_long);
  return code;
}

typedef struct call {
  pxg_event *ev; /* with tails */
  pxg_result *out;
  pxg_op *ops;
  uint8_t *scratch;
} call;

static pxg_field request[] = {
#define S(s) {(const uint8_t *)(s), sizeof(s) - 1, 0}
    {S(":method"), S("GET")}, {S(":scheme"), S("http")}, {S(":authority"), S("example.com")}, {S(":path"), S("/a?b=c")},
    {S("user-agent"), S("minihost/1")}, {S("accept"), S("*/*")}, {S("x-a"), S("1")}, {S("x-b"), S("")},
    {S("x-c"), S("three")}, {S("x-d"), S("four")}, {S("x-e"), S("five")}, {S("x-f"), S("six")},
    {S("x-g"), S("seven")}, {S("x-h"), S("eight")}, {S("x-i"), S("nine")}, {S("x-j"), S("ten")},
    {S("x-k"), S("eleven")}, {S("x-l"), S("twelve")}, {S("x-m"), S("thirteen")}, {S("x-fault"), S("")},
};
enum { N_REQUEST = sizeof request / sizeof *request, MIN_OPS = 32, MIN_SCRATCH = 4096 };

static void set_fault(const char *fault) { request[N_REQUEST - 1].value = str(fault); }

static call new_call(void) {
  pxg_event ev = {.size = sizeof ev};
  pxg_result out = {.size = sizeof out};
  call c = {.ev = with_tail(&ev, sizeof ev), .out = with_tail(&out, sizeof out)};
  c.ops = calloc(MIN_OPS + 1, sizeof *c.ops);
  c.scratch = aligned_alloc(16, MIN_SCRATCH + 64);
  return c;
}

/* Nothing of a result may lie in Go's heap: it is in what was lent, or owned. */
static void check_lent(const call *c, const pxg_str *s, const char *what) {
  if (!s->len || s->flags & PXG_BUF_OWNED) return;
  if (s->ptr >= c->scratch && s->ptr + s->len <= c->scratch + MIN_SCRATCH) return;
  for (uint64_t i = 0; i < H.more_calls; i++)
    if (s->ptr >= more_memory[i] && s->ptr + s->len <= more_memory[i] + more_size[i]) return;
  CHECK(0, "%s at %p is not in memory that was lent", what, (const void *)s->ptr);
}

static void check_result(const call *c) {
  for (uint64_t i = 0; i < c->out->n_ops; i++) {
    const pxg_op *o = &c->out->ops[i];
    check_lent(c, &o->key, "a key");
    check_lent(c, &o->val.bytes, "a value");
    CHECK(o->key.len || !o->key.ptr, "an empty key with a pointer");
    CHECK(o->val.bytes.len || !o->val.bytes.ptr, "an empty value with a pointer");
  }
  check_lent(c, &c->out->error, "the error text");
  CHECK(!c->out->reply == (c->out->action != PXG_ACT_REPLY), "a reply without REPLY, or the reverse");
  if (c->out->action == PXG_ACT_PENDING)
    CHECK(!c->out->n_ops && !c->out->flags && !c->out->unsubscribe && !c->out->body_mode[0] && !c->out->body_mode[1] && !c->out->more_bytes && !c->out->error.len,
          "PENDING with something else");
}

/* One event, with the least scratch that is allowed and canaries behind everything. */
static uint32_t run(call *c, uint32_t phase, uint64_t config, uint64_t user, uint64_t stream, int pend) {
  uint32_t ev_size = c->ev->size, out_size = c->out->size;
  memset(c->ev, 0, sizeof *c->ev);
  memset(c->out, 0, sizeof *c->out);
  c->ev->size = ev_size, c->out->size = out_size;
  c->ev->phase = phase, c->ev->config = config, c->ev->stream = stream;
  c->ev->user = c->out->user = user;
  c->ev->flags = PXG_EV_CAN_REPLY | PXG_EV_END_STREAM;
  c->ev->fields = request, c->ev->n_fields = N_REQUEST;
  if (pend) {
    pthread_mutex_lock(&H.lock);
    c->ev->token = H.next_token++;
    H.state[c->ev->token] = ALIVE;
    pthread_mutex_unlock(&H.lock);
  }
  memset(c->scratch, 0xA5, MIN_SCRATCH);
  memset(c->scratch + MIN_SCRATCH, 0xEE, 64);
  memset(c->ops + MIN_OPS, 0xEE, sizeof *c->ops);
  c->out->scratch_ops = c->ops, c->out->scratch_ops_cap = MIN_OPS;
  c->out->scratch = c->scratch, c->out->scratch_cap = MIN_SCRATCH;
  H.more_calls = H.more_bytes = 0;
  G.on_event(G.ctx, c->ev, c->out);
  CHECK(tail_ok(c->out, sizeof *c->out) && tail_ok(c->ev, sizeof *c->ev), "a tail was written");
  CHECK(tail_ok(c->scratch, MIN_SCRATCH), "scratch was overrun");
  for (size_t i = 0; i < sizeof *c->ops; i++) CHECK(((uint8_t *)(c->ops + MIN_OPS))[i] == 0xEE, "scratch_ops was overrun");
  check_result(c);
  if (pend && c->out->action != PXG_ACT_PENDING) {
    pthread_mutex_lock(&H.lock);
    H.state[c->ev->token] = DEAD;
    pthread_mutex_unlock(&H.lock);
  }
  return c->out->action;
}

static void free_more(void) {
  for (uint64_t i = 0; i < H.more_calls; i++) free(more_memory[i]);
  H.more_calls = 0;
}

static void wait_completed(uint64_t n) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 60;
  pthread_mutex_lock(&H.lock);
  while (H.completed < n)
    CHECK(!pthread_cond_timedwait(&H.changed, &H.lock, &until), "no completion in 60 s (%lu of %lu)", (unsigned long)H.completed, (unsigned long)n);
  pthread_mutex_unlock(&H.lock);
}

static const char *error_of(call *c) {
  static char text[2048];
  keep(text, sizeof text, &c->out->error);
  return text;
}

static void load(const char *path) {
  void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  CHECK(lib, "%s", dlerror());
  *(void **)&init = dlsym(lib, "pxg_guest_init_v1");
  CHECK(init, "no entry point");
  CHECK(sched_getscheduler(0) == SCHED_OTHER, "loading left the policy at %d", sched_getscheduler(0));
}

static void start(void) {
  pxg_guest out = {.size = sizeof out};
  pxg_guest *g = with_tail(&out, sizeof out);
  pxg_host *h = with_tail(&table, sizeof table);
  CHECK(init(h, g) == PXG_OK, "init failed");
  CHECK(tail_ok(g, sizeof out), "the tail of the guest table was written");
  G = *g;
  pxg_guest again = {.size = sizeof again};
  CHECK(init(h, &again) == PXG_OK && again.ctx == G.ctx, "a second init for one host");
  for (uint32_t w = 0; w < 2; w++) G.on_worker(G.ctx, w, 1);
}

/* ---- checks */

static void check_init(void) {
  pxg_host h = table;
  pxg_guest g = {.size = sizeof g};
  h.major = 0;
  CHECK(init(&h, &g) == PXG_E_VERSION, "major 0");
  h.major = 2;
  CHECK(init(&h, &g) == PXG_E_VERSION, "major 2");
  h.major = 1, h.size = sizeof h - 8;
  CHECK(init(&h, &g) == PXG_E_ARG, "short host table");
  h.size = sizeof h, g.size = sizeof g - 8;
  CHECK(init(&h, &g) == PXG_E_ARG, "short guest table");
}

static void check_config(void) {
  uint64_t c;
  CHECK(config_new("nobody", "", &c, 0) == PXG_E_NOTFOUND && strstr(config_error, "trace-id"), "%s", config_error);
  CHECK(config_new("faulty", "{\"fault\": \"refuse\"}", &c, 0) < 0 && strstr(config_error, "refused, as asked for"), "%s", config_error);
  CHECK(config_new("faulty", "{\"falt\": 1}", &c, 0) < 0 && strstr(config_error, "falt"), "%s", config_error);
  CHECK(config_new("faulty", "{} x", &c, 0) < 0, "trailing garbage");
  CHECK(config_new("faulty", "", &c, 1ull << PXG_F_PEND_REQUEST_HEADERS) == PXG_E_UNSUPPORTED && strstr(config_error, "PEND_REQUEST_HEADERS"), "%s", config_error);
  CHECK(config_new("trace-id", "{}", &c, ~0ull) == PXG_OK && c, "%s", config_error);
  CHECK(last_config.subscribe == (PXG_PHASE_BIT(1) | PXG_PHASE_BIT(4)) && !last_config.pend_phases, "phases %lx", (unsigned long)last_config.subscribe);
  G.on_config_drop(G.ctx, c);
  call k = new_call();
  CHECK(run(&k, 1, c, 0, 1, 0) == PXG_ACT_ERROR && strstr(error_of(&k), "not in force"), "event for a dropped configuration: %s", error_of(&k));
  for (uint64_t wrong = 0; wrong < 4096; wrong += 7)
    CHECK(run(&k, 1, wrong, wrong, wrong, 0) == PXG_ACT_ERROR, "configuration %lu", (unsigned long)wrong);
}

static void check_short(uint64_t config) {
  call k = new_call();
  k.ev->size = sizeof(pxg_event) - 8;
  CHECK(run(&k, 1, config, 0, 1, 0) == PXG_ACT_UNSET, "short event");
  k.ev->size = sizeof(pxg_event) + 64;
  k.out->size = sizeof(pxg_result) - 8;
  CHECK(run(&k, 1, config, 0, 1, 0) == PXG_ACT_UNSET, "short result");
}

static void check_trace(void) {
  uint64_t c;
  CHECK(config_new("trace-id", "{}", &c, 0) == PXG_OK, "%s", config_error);
  call k = new_call();
  set_fault("");
  CHECK(run(&k, 1, c, 0, 5, 0) == PXG_ACT_CONTINUE, "%s", error_of(&k));
  uint64_t user = k.out->user;
  CHECK(user && k.out->n_ops == 1 && k.out->ops == k.ops && k.ops[0].kind == PXG_OP_HEADER_SET, "operations");
  CHECK(k.ops[0].key.len == 10 && !memcmp(k.ops[0].key.ptr, "x-trace-id", 10) && k.ops[0].val.bytes.len == 32, "trace id");
  CHECK(k.ops[0].val.bytes.ptr >= k.scratch && k.ops[0].val.bytes.ptr + 32 <= k.scratch + MIN_SCRATCH, "the value is not in scratch");
  char id[33] = "";
  memcpy(id, k.ops[0].val.bytes.ptr, 32);
  CHECK(run(&k, 4, c, user, 5, 0) == PXG_ACT_CONTINUE && k.out->user == user, "response");
  CHECK(k.out->n_ops == 1 && !memcmp(k.ops[0].val.bytes.ptr, id, 32), "the response's id differs");
  G.on_stream_end(G.ctx, c, user, 5, 0);
  CHECK(run(&k, 4, c, user, 5, 0) == PXG_ACT_ERROR, "a user slot after its stream ended");
  for (uint64_t wrong = 2; wrong < 4096; wrong += 5)
    CHECK(run(&k, 4, c, wrong << 40 | wrong, 6, 0) == PXG_ACT_ERROR, "user slot %lu", (unsigned long)wrong);
  for (int i = 0; i < 20000; i++) {
    run(&k, 1, c, 0, 7, 0);
    G.on_stream_end(G.ctx, c, k.out->user, 7, 0);
  }
  /* Fields with flags take the other path. */
  request[4].value.flags = PXG_STR_SENSITIVE;
  CHECK(run(&k, 1, c, 0, 9, 0) == PXG_ACT_CONTINUE && k.out->n_ops == 1, "flagged fields: %s", error_of(&k));
  request[4].value.flags = 0;
  G.on_stream_end(G.ctx, c, k.out->user, 9, 0);
  G.on_config_drop(G.ctx, c);
}

/* Another host in the same process has a state of its own. */
static void check_second_host(uint64_t first_config) {
  static pxg_host second;
  second = table;
  pxg_guest first = G, g = {.size = sizeof g};
  CHECK(init(&second, &g) == PXG_OK && g.ctx != G.ctx, "a second host");
  G = g;
  uint64_t c;
  call k = new_call();
  CHECK(run(&k, 1, first_config, 0, 50, 0) == PXG_ACT_ERROR, "the first host's configuration is in force at the second");
  CHECK(config_new("trace-id", "{}", &c, 0) == PXG_OK, "%s", config_error);
  CHECK(run(&k, 1, c, 0, 50, 0) == PXG_ACT_CONTINUE && k.out->n_ops == 1, "the second host: %s", error_of(&k));
  G.on_stream_end(G.ctx, c, k.out->user, 50, 0);
  G.on_config_drop(G.ctx, c);
  G = first;
  k.ev->size = sizeof(pxg_event) + 64;
  G.ctx = 99;
  CHECK(run(&k, 1, first_config, 0, 50, 0) == PXG_ACT_UNSET, "a ctx that nobody gave out");
  G = first;
}

static void check_faults(uint64_t c) {
  call k = new_call();
  struct { const char *fault, *text; } sync[] = {
      {"panic", "as asked for"}, {"nil", "nil pointer"}, {"zero-action", "zero Action"}, {"error", "error, as asked for"}, {"unreturned", "did not return its action"}};
  for (size_t i = 0; i < sizeof sync / sizeof *sync; i++) {
    set_fault(sync[i].fault);
    CHECK(run(&k, 1, c, 0, 10, 1) == PXG_ACT_ERROR && strstr(error_of(&k), sync[i].text), "%s: %s", sync[i].fault, error_of(&k));
    CHECK(i > 1 || !strncmp(error_of(&k), "panic: ", 7), "PXG-ERR-006: %s", error_of(&k));
    CHECK(!k.out->n_ops && !k.out->reply, "%s: an error with effects", sync[i].fault);
  }
  set_fault("reset");
  CHECK(run(&k, 1, c, 0, 10, 1) == PXG_ACT_RESET, "reset");
  set_fault("many");
  CHECK(run(&k, 1, c, 0, 10, 1) == PXG_ACT_CONTINUE && k.out->n_ops == 200 && k.out->ops != k.ops, "many: %s", error_of(&k));
  for (uint64_t i = 0; i < 200; i++) {
    char name[32];
    snprintf(name, sizeof name, "x-many-%lu", (unsigned long)i);
    const pxg_op *o = &k.out->ops[i];
    CHECK(o->key.len == strlen(name) && !memcmp(o->key.ptr, name, o->key.len) && o->val.bytes.len == i && (!i || o->val.bytes.ptr[i - 1] == 'm'), "operation %lu", (unsigned long)i);
  }
  free_more();
}

static void kick(int batch_end) {
  if (batch_end) G.on_batch_end(G.ctx, 0);
}

static void check_async(uint64_t c, int batch_end) {
  call k = new_call();
  struct { const char *fault, *text; uint32_t action; } async[] = {
      {"async-nothing", "", PXG_ACT_CONTINUE}, {"async-late", "", PXG_ACT_CONTINUE}, {"async-twice", "", PXG_ACT_CONTINUE},
      {"async-panic", "panic: faulty: panic", PXG_ACT_ERROR}, {"async-goexit", "Goexit", PXG_ACT_ERROR}, {"async-forget", "without a decision", PXG_ACT_ERROR}};
  for (size_t i = 0; i < sizeof async / sizeof *async; i++) {
    uint64_t before = H.completed;
    set_fault(async[i].fault);
    CHECK(run(&k, 1, c, 0, 20 + i, 1) == PXG_ACT_PENDING && !k.out->n_ops && !k.out->reply && k.out->user, "%s: %s", async[i].fault, error_of(&k));
    /* The views die here. */
    request[N_REQUEST - 1].value = str("poison");
    kick(batch_end);
    wait_completed(before + 1);
    CHECK(H.last_action == async[i].action && strstr(H.last_error, async[i].text), "%s: action %u, %s", async[i].fault, H.last_action, H.last_error);
    CHECK(async[i].action != PXG_ACT_CONTINUE || !strcmp(H.last_key, "x-faulty"), "%s: the batch was lost", async[i].fault);
    G.on_stream_end(G.ctx, c, k.out->user, 20 + i, 0);
  }
  /* A batch of 500, kicked once. */
  uint64_t before = H.completed;
  set_fault("async-nothing");
  for (int i = 0; i < 500; i++) CHECK(run(&k, 1, c, 0, 100, 1) == PXG_ACT_PENDING, "%s", error_of(&k));
  kick(batch_end);
  wait_completed(before + 500);
  /* Cancelled while it waits: the context ends it, and the host's answer is STALE. */
  before = H.completed;
  uint64_t stale = H.stale;
  set_fault("async-never");
  CHECK(run(&k, 1, c, 0, 101, 1) == PXG_ACT_PENDING, "never");
  kick(batch_end);
  pthread_mutex_lock(&H.lock);
  H.state[k.ev->token] = DEAD;
  pthread_mutex_unlock(&H.lock);
  G.on_cancel(G.ctx, c, k.out->user, 101, k.ev->token, 0);
  pthread_mutex_lock(&H.lock);
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 60;
  while (H.stale == stale) CHECK(!pthread_cond_timedwait(&H.changed, &H.lock, &until), "the function did not end after on_cancel");
  pthread_mutex_unlock(&H.lock);
  CHECK(H.completed == before, "a cancelled stream was completed");
  /* Cancelled for a token that nobody knows. */
  G.on_cancel(G.ctx, c, 0, 101, 99999999, 0);
  free_more();
}

typedef struct { uint32_t worker; uint64_t config; int n, batch_end; } load_args;

static void *load_thread(void *p) {
  load_args *a = p;
  call k = new_call();
  pxg_field fields[N_REQUEST];
  memcpy(fields, request, sizeof fields);
  for (int i = 0; i < a->n; i++) {
    memset(k.ev, 0, sizeof *k.ev);
    memset(k.out, 0, sizeof *k.out);
    k.ev->size = sizeof *k.ev, k.out->size = sizeof *k.out;
    k.ev->phase = 1, k.ev->config = a->config, k.ev->stream = 1000 + i, k.ev->worker = a->worker;
    fields[N_REQUEST - 1].value = str(i % 3 ? "async-nothing" : i % 7 ? "panic" : "async-panic");
    k.ev->fields = fields, k.ev->n_fields = N_REQUEST;
    k.out->scratch_ops = k.ops, k.out->scratch_ops_cap = MIN_OPS, k.out->scratch = k.scratch, k.out->scratch_cap = MIN_SCRATCH;
    pthread_mutex_lock(&H.lock);
    uint64_t token = k.ev->token = H.next_token++;
    H.state[token] = ALIVE;
    pthread_mutex_unlock(&H.lock);
    G.on_event(G.ctx, k.ev, k.out);
    int dies = i % 5 == 0;
    pthread_mutex_lock(&H.lock);
    int alive = H.state[token] == ALIVE;
    if (k.out->action != PXG_ACT_PENDING) {
      CHECK(alive && !(i % 3), "action %u", k.out->action);
      H.state[token] = DEAD;
    } else if (alive && dies) {
      H.state[token] = DEAD;
    } else {
      dies = 0;
    }
    pthread_mutex_unlock(&H.lock);
    if (dies && k.out->action == PXG_ACT_PENDING) G.on_cancel(G.ctx, a->config, k.out->user, k.ev->stream, token, a->worker);
    if (a->batch_end && i % 16 == 15) G.on_batch_end(G.ctx, a->worker);
    if (k.out->user) G.on_stream_end(G.ctx, a->config, k.out->user, k.ev->stream, a->worker);
  }
  if (a->batch_end) G.on_batch_end(G.ctx, a->worker);
  return NULL;
}

/* Two loop threads, cancels racing completions. Every token ends, one way or the other. */
static void check_load(uint64_t c, int batch_end) {
  pthread_t t[2];
  load_args a[2] = {{0, c, 4000, batch_end}, {1, c, 4000, batch_end}};
  page.log_level = PXG_LOG_OFF;
  for (int i = 0; i < 2; i++) pthread_create(&t[i], NULL, load_thread, &a[i]);
  for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 60;
  pthread_mutex_lock(&H.lock);
  for (;;) {
    uint64_t alive = 0;
    for (uint64_t i = 0; i < H.next_token; i++) alive += H.state[i] == ALIVE;
    if (!alive) break;
    CHECK(!pthread_cond_timedwait(&H.changed, &H.lock, &until), "%lu tokens were never completed", (unsigned long)alive);
  }
  pthread_mutex_unlock(&H.lock);
  page.log_level = PXG_LOG_INFO;
}

static void check_log(void) {
  uint64_t c;
  CHECK(strstr(H.log_text, "recipe") && strstr(H.log_text, "sysmon"), "the recipe was not reported: %s", H.log_text);
  CHECK(strstr(H.log_text, "faulty.go"), "a panic was not logged with its stack");
  CHECK(config_new("faulty", "", &c, 0) == PXG_OK, "%s", config_error);
  page.log_level = PXG_LOG_OFF;
  uint64_t logs = H.logs;
  call k = new_call();
  set_fault("panic");
  run(&k, 1, c, 0, 10, 1);
  CHECK(H.logs == logs, "logged at level OFF");
  page.log_level = PXG_LOG_INFO;
}

/* The copies that the test library's own filters make without entering Go. */
static void check_ring(int batch_end) {
  uint64_t c;
  if (config_new("test-async-only", "", &c, 0) != PXG_OK) {
    printf("ring: no test filters in this library\n");
    return;
  }
  CHECK(last_config.pend_phases & PXG_PHASE_BIT(1), "pend_phases");
  call k = new_call();
  set_fault("through the ring");
  uint64_t before = H.completed;
  for (int i = 0; i < 300; i++) {
    CHECK(run(&k, 1, c, 0, 30, 1) == PXG_ACT_PENDING && k.out->user == 1, "ring: action %u: %s", k.out->action, error_of(&k));
    G.on_stream_end(G.ctx, c, k.out->user, 30, 0);
  }
  request[N_REQUEST - 1].value = str("poison");
  kick(batch_end);
  wait_completed(before + 300);
  CHECK(!strcmp(H.last_key, "x-seen") && !strcmp(H.last_value, "through the ring"), "the copy says %s: %s", H.last_key, H.last_value);
  /* A streamed reply: FULL holds the writer back until WRITABLE, the end of the stream frees it. */
  CHECK(config_new("test-stream-reply", "", &c, 0) == PXG_OK, "%s", config_error);
  H.apply_full = 1;
  H.written[0] = 0;
  before = H.completed;
  uint64_t applied = H.applied;
  CHECK(run(&k, 1, c, 0, 31, 1) == PXG_ACT_PENDING, "stream reply");
  uint64_t user = k.out->user;
  kick(batch_end);
  wait_completed(before + 1);
  CHECK(H.last_action == PXG_ACT_REPLY, "action %u", H.last_action);
  for (int i = 1; i <= 3; i++) {
    pthread_mutex_lock(&H.lock);
    while (H.applied < applied + i) pthread_cond_wait(&H.changed, &H.lock);
    CHECK(H.applied == applied + i, "a writer went on above the watermark");
    pthread_mutex_unlock(&H.lock);
    pxg_event ev = {.size = sizeof ev, .phase = PXG_PHASE_WAKE, .flags = PXG_EV_WRITABLE, .config = c, .user = user, .stream = 31};
    pxg_result out = {.size = sizeof out, .user = user, .scratch_ops = k.ops, .scratch_ops_cap = MIN_OPS, .scratch = k.scratch, .scratch_cap = MIN_SCRATCH};
    G.on_event(G.ctx, &ev, &out);
    CHECK(out.action == PXG_ACT_CONTINUE, "wake: %u", out.action);
  }
  G.on_stream_end(G.ctx, c, user, 31, 0);
  CHECK(!strncmp(H.written, "onetwo", 6), "written: %s", H.written);
  H.apply_full = 0;
  /* Owned buffers: 1 MB in a reply and in an operation. */
  CHECK(config_new("test-big", "", &c, 0) == PXG_OK, "%s", config_error);
  CHECK(run(&k, 1, c, 0, 32, 0) == PXG_ACT_REPLY && k.out->reply && k.out->reply->n_body == 1, "big: %s", error_of(&k));
  const pxg_buf *b = k.out->reply->body;
  CHECK(b->bytes.len == 1 << 20 && b->bytes.flags == PXG_BUF_OWNED && b->bytes.ptr[(1 << 20) - 1] == 'b', "big body");
  b->release(b->ctx);
}

static void check_metrics(void) {
  uint64_t c;
  CHECK(config_new("test-mallocs", "", &c, 0) == PXG_OK, "%s", config_error);
  call k = new_call();
  int have = table.get_ext != NULL;
  CHECK(!have || recorded == -1, "recorded outside of streams: %ld", (long)recorded);
  CHECK(run(&k, 1, c, 0, 70, 0) == PXG_ACT_CONTINUE && k.out->n_ops == (uint64_t)have, "%s", error_of(&k));
  CHECK(!have || (k.ops[0].kind == PXG_OP_METRIC && k.ops[0].target == 4711 && k.ops[0].u0 > 0), "METRIC");
}

/* ---- modes */

static int allocations(uint64_t c, uint64_t *n) {
  /* The filter answers the number of Go heap objects ever allocated as the metric 1. */
  call k = new_call();
  if (run(&k, 1, c, 0, 40, 0) != PXG_ACT_CONTINUE || k.out->n_ops != 1) return -1;
  *n = k.ops[0].u0;
  return 0;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double measure(call *k, uint64_t config, int rounds) {
  memset(k->ev, 0, sizeof *k->ev);
  memset(k->out, 0, sizeof *k->out);
  k->ev->size = sizeof *k->ev, k->out->size = sizeof *k->out;
  k->ev->phase = 1, k->ev->config = config;
  k->ev->fields = request, k->ev->n_fields = N_REQUEST;
  k->out->scratch_ops = k->ops, k->out->scratch_ops_cap = MIN_OPS, k->out->scratch = k->scratch, k->out->scratch_cap = MIN_SCRATCH;
  uint64_t t = now_ns();
  for (int i = 0; i < rounds; i++) {
    k->out->action = 0;
    G.on_event(G.ctx, k->ev, k->out);
  }
  t = now_ns() - t;
  CHECK(k->out->action == PXG_ACT_CONTINUE, "action %u: %s", k->out->action, error_of(k));
  return (double)t / rounds;
}

/* CPU time of the whole process per asynchronous request, 32 to a batch. */
static double measure_async(call *k, uint64_t config, int batches) {
  enum { BATCH = 32 };
  struct timespec t0, t1;
  uint64_t done = H.completed;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
  for (int b = 0; b < batches; b++) {
    for (int i = 0; i < BATCH; i++) {
      memset(k->ev, 0, sizeof *k->ev);
      memset(k->out, 0, sizeof *k->out);
      k->ev->size = sizeof *k->ev, k->out->size = sizeof *k->out;
      k->ev->phase = 1, k->ev->config = config, k->ev->fields = request, k->ev->n_fields = N_REQUEST;
      k->out->scratch_ops = k->ops, k->out->scratch_ops_cap = MIN_OPS, k->out->scratch = k->scratch, k->out->scratch_cap = MIN_SCRATCH;
      pthread_mutex_lock(&H.lock);
      k->ev->token = H.next_token = H.next_token % (TOKENS - 1) + 1;
      H.state[k->ev->token] = ALIVE;
      pthread_mutex_unlock(&H.lock);
      G.on_event(G.ctx, k->ev, k->out);
      CHECK(k->out->action == PXG_ACT_PENDING, "action %u", k->out->action);
    }
    G.on_batch_end(G.ctx, 0);
    wait_completed(done += BATCH);
  }
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
  return ((double)(t1.tv_sec - t0.tv_sec) * 1e9 + (double)(t1.tv_nsec - t0.tv_nsec)) / batches / BATCH;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void bench(int rounds) {
  static const char *names[] = {"empty call", "test-nothing", "test-read20", "test-set3", "test-read20-set3"};
  enum { N = sizeof names / sizeof *names, REPEAT = 15 };
  uint64_t c[N];
  double ns[N][REPEAT];
  call k = new_call();
  set_fault("fault");
  for (int i = 1; i < N; i++) CHECK(config_new(names[i], "", &c[i], 0) == PXG_OK, "%s", config_error);
  const struct { uint32_t size, reserved0; void (*empty)(void); } *ext = G.get_ext(G.ctx, (const uint8_t *)"draft.pxg.go-empty-call/1", 25);
  CHECK(ext, "no empty call");
  for (int r = 0; r < REPEAT; r++)
    for (int i = 0; i < N; i++) {
      if (i) {
        ns[i][r] = measure(&k, c[i], rounds);
      } else {
        uint64_t t = now_ns();
        for (int j = 0; j < rounds; j++) ext->empty();
        ns[i][r] = (double)(now_ns() - t) / rounds;
      }
    }
  for (int i = 0; i < N; i++) {
    qsort(ns[i], REPEAT, sizeof(double), by_value);
    printf("%-18s min %6.1f ns  median %6.1f ns\n", names[i], ns[i][0], ns[i][REPEAT / 2]);
  }
  static const char *async[] = {"test-async-nonblocking", "test-async-only", "faulty"};
  static const char *how[] = {"copied, on the ring", "copied, a goroutine", "entered, a goroutine"};
  set_fault("async-nothing");
  for (int i = 0; i < 3; i++) {
    uint64_t config;
    double best = 1e9;
    CHECK(config_new(async[i], "", &config, 0) == PXG_OK, "%s", config_error);
    for (int r = 0; r < 7; r++) {
      double cost = measure_async(&k, config, rounds / 200);
      if (cost < best) best = cost;
    }
    printf("async, %-20s %6.0f ns of CPU per request, all threads\n", how[i], best);
  }
  set_fault("");
  uint64_t counter, a, b;
  CHECK(config_new("test-mallocs", "", &counter, 0) == PXG_OK, "%s", config_error);
  allocations(counter, &a), allocations(counter, &a);
  measure(&k, c[N - 1], 100000);
  CHECK(!allocations(counter, &b), "mallocs");
  printf("allocations per call: %.5f (%lu in 100000 calls)\n", (double)(b - a) / 100000, (unsigned long)(b - a));
  CHECK(b - a < 1000, "the header path allocates: %lu objects in 100000 calls", (unsigned long)(b - a));
}

static uint64_t resident(void) {
  unsigned long total, pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  CHECK(f && fscanf(f, "%lu %lu", &total, &pages) == 2, "/proc/self/statm");
  fclose(f);
  return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* What a stream costs while it waits: a goroutine, the copy of its event, its context. */
static void memory(uint64_t idle, const char *filter) {
  enum { STREAMS = 20000 };
  printf("idle guest: %lu KiB\n", (unsigned long)(resident() - idle) / 1024);
  set_fault("async-never");
  call k = new_call();
  uint64_t c, before = resident();
  CHECK(config_new(filter, "", &c, 0) == PXG_OK, "%s", config_error);
  for (int i = 0; i < STREAMS; i++) {
    CHECK(run(&k, 1, c, 0, 60 + i, 1) == PXG_ACT_PENDING, "%s", error_of(&k));
    if (i % 32 == 31) kick(1);
  }
  kick(1);
  sleep(1); /* nothing tells when the last goroutine waits */
  printf("waiting stream of %s: %.1f KiB\n", filter, (double)(resident() - before) / STREAMS / 1024);
}

static void print_recipe(void) {
  char *line = strstr(H.log_text, "proxy_golang Go runtime recipe");
  CHECK(line, "no report");
  printf("%.*s\n", (int)strcspn(line, "\n"), line);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  const char *mode = argv[2];
  int batch_end = strcmp(mode, "nobatch") != 0;
  uint64_t c;
  if (!batch_end) table.features[0] &= ~(1ull << PXG_F_BATCH_END);
  if (!strcmp(mode, "nulls")) {
    table.complete = NULL, table.apply = NULL, table.wake = NULL, table.log = NULL, table.get_ext = NULL;
    table.n_workers = 0;
  }
  uint64_t idle = resident();
  load(argv[1]);
  check_init();
  start();
  CHECK(G.n_filters >= 3 && G.name.len, "filters");
  if (!strcmp(mode, "bench")) {
    bench(argc > 3 ? atoi(argv[3]) : 200000);
    return 0;
  }
  if (!strcmp(mode, "memory")) {
    memory(idle, argc > 3 ? argv[3] : "test-async-never");
    return 0;
  }
  if (!strcmp(mode, "nulls")) {
    CHECK(config_new("faulty", "", &c, 0) == PXG_E_UNSUPPORTED && strstr(config_error, "complete"), "%s", config_error);
    check_trace();
    check_metrics();
    printf("nulls: ok\n");
    return 0;
  }
  check_config();
  CHECK(config_new("faulty", "{\"millis\": 20}", &c, 0) == PXG_OK, "%s", config_error);
  CHECK(last_config.pend_phases == PXG_PHASE_BIT(1), "pend_phases");
  if (!strcmp(mode, "recipe")) {
    print_recipe();
    set_fault("async-nothing");
    check_async(c, 1);
    return 0;
  }
  check_short(c);
  check_trace();
  check_second_host(c);
  check_faults(c);
  check_async(c, batch_end);
  check_ring(batch_end);
  check_load(c, batch_end);
  check_log();
  check_metrics();
  print_recipe();
  G.on_config_drop(G.ctx, c);
  printf("%s: ok, %lu completions, %lu stale\n", mode, (unsigned long)H.completed, (unsigned long)H.stale);
  return 0;
}
