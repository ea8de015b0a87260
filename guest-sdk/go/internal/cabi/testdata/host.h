/* The host of minihost.c: its table, its tokens, and a call with canaries round everything that the guest gets. */
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

#define CHECK(cond, ...)                                     \
  do {                                                       \
    if (!(cond)) {                                           \
      fprintf(stderr, "minihost:%d: %s: ", __LINE__, #cond); \
      fprintf(stderr, __VA_ARGS__);                          \
      fputc('\n', stderr);                                   \
      exit(1);                                               \
    }                                                        \
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

static int32_t metric_define(uint64_t ctx, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n,
                             uint32_t *id) {
  CHECK(ctx == 77 && kind == PXG_METRIC_GAUGE && name->len == 7 && !memcmp(name->ptr, "mallocs", 7), "metric %.*s",
        (int)name->len, name->ptr);
  CHECK(n == 1 && labels[0].name.len == 2 && !memcmp(labels[0].name.ptr, "of", 2) && labels[0].value.len == 2 &&
            !memcmp(labels[0].value.ptr, "go", 2),
        "labels");
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
    .size = sizeof(pxg_host),
    .major = 1,
    .n_workers = 2,
    .features = {(2ull << PXG_F_APPLY) - 1},
    .name = {(const uint8_t *)"minihost", 8, 0},
    .version = {(const uint8_t *)"1", 1, 0},
    .ctx = 77,
    .page = &page,
    .complete = host_complete,
    .apply = host_apply,
    .wake = host_wake,
    .log = host_log,
    .scratch_more = host_scratch_more,
    .get_ext = host_get_ext,
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
  pxg_config_in in = {.size = sizeof in,
                      .features = {table.features[0] & ~without},
                      .filter = str(filter),
                      .name = str("test"),
                      .bytes = str(json)};
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
#define S(s) \
  { (const uint8_t *)(s), sizeof(s) - 1, 0 }
    {S(":method"), S("GET")},
    {S(":scheme"), S("http")},
    {S(":authority"), S("example.com")},
    {S(":path"), S("/a?b=c")},
    {S("user-agent"), S("minihost/1")},
    {S("accept"), S("*/*")},
    {S("x-a"), S("1")},
    {S("x-b"), S("")},
    {S("x-c"), S("three")},
    {S("x-d"), S("four")},
    {S("x-e"), S("five")},
    {S("x-f"), S("six")},
    {S("x-g"), S("seven")},
    {S("x-h"), S("eight")},
    {S("x-i"), S("nine")},
    {S("x-j"), S("ten")},
    {S("x-k"), S("eleven")},
    {S("x-l"), S("twelve")},
    {S("x-m"), S("thirteen")},
    {S("x-fault"), S("")},
};
enum { N_REQUEST = sizeof request / sizeof *request, MIN_OPS = 32, MIN_SCRATCH = 4096 };

static void set_fault(const char *fault) { request[N_REQUEST - 1].value = str(fault); }

/* Views live in pages of their own, which nobody can read once the call is over. */
enum { VIEW_BYTES = 64 << 10 };
static uint8_t *view_pages;

static pxg_str view_of(const pxg_str *s, uint8_t **p) {
  pxg_str v = {*p, s->len, s->flags};
  CHECK(*p + s->len <= view_pages + VIEW_BYTES, "the views do not fit");
  if (s->len) memcpy(*p, s->ptr, s->len);
  *p += s->len;
  return v;
}

static const pxg_field *lend_views(const pxg_field *from, uint64_t n) {
  if (!view_pages) view_pages = mmap(NULL, VIEW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(view_pages != MAP_FAILED && !mprotect(view_pages, VIEW_BYTES, PROT_READ | PROT_WRITE), "pages for views");
  pxg_field *f = (pxg_field *)view_pages;
  uint8_t *p = (uint8_t *)(f + n);
  for (uint64_t i = 0; i < n; i++) {
    f[i].name = view_of(&from[i].name, &p);
    f[i].value = view_of(&from[i].value, &p);
  }
  CHECK(!mprotect(view_pages, VIEW_BYTES, PROT_READ), "read-only views"); /* PXG-MEM-009 */
  return f;
}

static void end_views(void) { CHECK(!mprotect(view_pages, VIEW_BYTES, PROT_NONE), "end of the views"); }

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
    CHECK(!c->out->n_ops && !c->out->flags && !c->out->unsubscribe && !c->out->body_mode[0] && !c->out->body_mode[1] &&
              !c->out->more_bytes && !c->out->error.len,
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
  c->ev->fields = lend_views(request, N_REQUEST), c->ev->n_fields = N_REQUEST;
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
  end_views();
  CHECK(tail_ok(c->out, sizeof *c->out) && tail_ok(c->ev, sizeof *c->ev), "a tail was written");
  CHECK(tail_ok(c->scratch, MIN_SCRATCH), "scratch was overrun");
  for (size_t i = 0; i < sizeof *c->ops; i++)
    CHECK(((uint8_t *)(c->ops + MIN_OPS))[i] == 0xEE, "scratch_ops was overrun");
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
    CHECK(!pthread_cond_timedwait(&H.changed, &H.lock, &until), "no completion in 60 s (%lu of %lu)",
          (unsigned long)H.completed, (unsigned long)n);
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

static void kick(int batch_end) {
  if (batch_end) G.on_batch_end(G.ctx, 0);
}
