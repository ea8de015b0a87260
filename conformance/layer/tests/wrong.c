/* SPDX-License-Identifier: Apache-2.0
 * A host and a guest with one defect each, on either side of the layer.
 *
 *   cc -DGUEST -shared -fPIC wrong.c -o guest.so    the guest: its configuration says what it does wrong
 *   cc wrong.c -o host                              the host: host LAYER.so DEFECT GUEST-DEFECT [N]
 *
 * With N the host sends N heads of requests with 13 fields and nothing else: for counting instructions.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy_golang.h"

#define S(text) \
  { (const uint8_t *)text, sizeof text - 1, 0 }

#ifdef GUEST

static const pxg_host *host;
static char mode[64];
static const pxg_str filters[] = {S("f")};
static const pxg_event *view;
static uint64_t token;
static volatile uint8_t sink;
static char borrowed[] = "borrowed";
static pxg_op owned_op;

static int is(const char *what) { return strcmp(mode, what) == 0; }

static void freed(uint64_t ctx) { free((void *)ctx); }

static pxg_buf owned(const char *text) {
  pxg_buf b = {{(uint8_t *)strdup(text), (uint32_t)strlen(text), PXG_BUF_OWNED}, freed, 0};
  b.ctx = (uint64_t)b.bytes.ptr;
  return b;
}

/* Tells the host that a thread has done what it was started for. */
static void done(void) {
  const char *to = getenv("PXG_TEST_DONE");
  if (!to || write(atoi(to), "", 1) != 1) abort();
}

/* Tells this guest's threads that on_event has returned. */
static void until_returned(void) {
  const char *from = getenv("PXG_TEST_RETURNED");
  char byte;
  if (!from || read(atoi(from), &byte, 1) != 1) abort();
}

static void *later(void *unused) {
  (void)unused;
  until_returned();
  if (is("reads a view late")) sink = view->fields[0].name.ptr[0];
  if (is("changes what it lent")) borrowed[0] = 'B';
  done();
  return NULL;
}

static void start(void *(*f)(void *)) {
  pthread_t t;
  pthread_create(&t, NULL, f, NULL);
  pthread_detach(t);
}

static void *complete(void *unused) {
  (void)unused;
  pxg_op ops[2] = {{PXG_OP_HEADER_ADD, 0, 0, 0, S("x-later"), {S("yes"), 0, 0}},
                   {PXG_OP_HEADER_ADD, 0, 0, 0, S("x-owned"), owned("bytes")}};
  pxg_result r = {0};
  until_returned();
  r.size = sizeof r, r.action = PXG_ACT_CONTINUE, r.ops = ops, r.n_ops = 2;
  host->complete(host->ctx, token, &r);
  done();
  return NULL;
}

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  static pxg_attr_want wants[1];
  (void)ctx;
  snprintf(mode, sizeof mode, "%.*s", (int)in->bytes.len, (const char *)in->bytes.ptr);
  wants[0] = (pxg_attr_want){S("request.id"), PXG_PHASE_BIT(PXG_PHASE_L4_OPEN), 0, 0};
  out->config = 1;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_LOG);
  out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  out->attrs = wants, out->n_attrs = 1;
  return PXG_OK;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  out->user = 7;
  if (ev->phase != PXG_PHASE_REQUEST_HEADERS) return;
  view = ev, token = ev->token;
  if (is("reads a view late") || is("changes what it lent")) start(later);
  if (is("writes to a view")) ((uint8_t *)ev->fields[0].value.ptr)[0] = 'X';
  if (is("writes behind its result")) ((uint8_t *)out)[out->size] = 1;
  if (is("asks for scratch")) {
    uint8_t *p = host->scratch_more(host->ctx, 5000);
    if (p) memset(p, 'x', 5000);
  }
  if (is("asks until refused")) {
    int granted = 0;
    while (granted < 200 && host->scratch_more(host->ctx, 1024)) granted++;
    fprintf(stderr, "granted %d\n", granted);
  }
  if (is("logs")) host->log(host->ctx, PXG_LOG_INFO, (const uint8_t *)"hello", 5);
  if (is("pends")) {
    out->action = PXG_ACT_PENDING;
    start(complete);
    return;
  }
  if (is("gives an owned buffer")) {
    owned_op = (pxg_op){PXG_OP_HEADER_ADD, 0, 0, 0, S("x-owned"), owned("bytes")};
    out->ops = &owned_op, out->n_ops = 1;
    return;
  }
  out->scratch_ops[0] = (pxg_op){PXG_OP_HEADER_ADD, 0, 0, 0, S("x-a"), {{(uint8_t *)borrowed, 8, 0}, 0, 0}};
  out->ops = out->scratch_ops, out->n_ops = 1;
}

static void drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }
static void cancel(uint64_t c, uint64_t f, uint64_t u, uint64_t s, uint64_t t, uint32_t w) {
  (void)c, (void)f, (void)u, (void)s, (void)t, (void)w;
}
static void end(uint64_t c, uint64_t f, uint64_t u, uint64_t s, uint32_t w) {
  (void)c, (void)f, (void)u, (void)s, (void)w;
}

int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  host = h;
  h->log(h->ctx, PXG_LOG_INFO, (const uint8_t *)"from init", 9);
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->flags = PXG_GUEST_ABORTS, out->ctx = 3;
  out->filters = filters, out->n_filters = 1, out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}

#else

#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>

static const char *defect;
static pxg_guest guest;
static uint8_t name[] = ":method", get[] = "GET";
static volatile uint8_t sink;
static volatile int logged;
/* The guest's threads write to the one and read from the other: this process is both sides. */
static int done[2], returned[2];
static const uint8_t *kept;
static pxg_buf kept_buf;

static int is(const char *what) { return strcmp(defect, what) == 0; }

static void take(const pxg_result *r) {
  for (uint64_t i = 0; i < r->n_ops; i++) {
    const pxg_buf *v = &r->ops[i].val;
    if (!is("keeps a record")) kept = r->ops[i].key.ptr;
    if (v->bytes.flags & PXG_BUF_OWNED) {
      kept_buf = *v;
      if (is("never releases")) continue;
      v->release(v->ctx);
      if (is("releases twice")) v->release(v->ctx);
    }
  }
}

static int32_t complete(uint64_t ctx, uint64_t token, const pxg_result *r) {
  (void)ctx, (void)token;
  take(r);
  if (is("calls a hook inside complete")) guest.on_batch_end(guest.ctx, 0);
  return PXG_OK;
}

static int32_t apply(uint64_t ctx, uint64_t stream, const pxg_result *r) {
  (void)ctx, (void)stream, (void)r;
  return PXG_E_STALE;
}
static int32_t wake(uint64_t ctx, uint64_t stream, uint64_t arg) {
  (void)ctx, (void)stream, (void)arg;
  return PXG_E_STALE;
}

static void logs(uint64_t ctx, uint32_t level, const uint8_t *ptr, uint64_t len) {
  (void)ctx, (void)level;
  kept = ptr;
  logged += (int)len;
}

static uint8_t *more(uint64_t ctx, uint64_t n) {
  static uint8_t block[8192] __attribute__((aligned(16)));
  (void)ctx;
  if (is("changes a view")) get[0] = 'P';
  if (is("refuses scratch")) return NULL;
  memset(block, is("lends dirty scratch") ? 0xEE : 0, n);
  return block + (is("lends crooked scratch") ? 8 : 0);
}

static pxg_page page = {sizeof page, PXG_LOG_INFO, 0, 0, 0, 0};

static pxg_host table = {
    .size = sizeof table,
    .major = 1,
    .n_workers = 1,
    .features = {0x3f | 1ull << PXG_F_THREAD_AFFINE | 1ull << PXG_F_APPLY | 1ull << PXG_F_BATCH_END},
    .name = S("wrong"),
    .version = S("1"),
    .ctx = 9,
    .page = &page,
    .complete = complete,
    .apply = apply,
    .wake = wake,
    .log = logs,
    .scratch_more = more};

static pxg_op lent_ops[40] __attribute__((aligned(16)));
static uint8_t lent[4112] __attribute__((aligned(16)));

static void pipe_for_guest(const char *name, int ends[2], int of_guest) {
  char number[12];
  if (pipe(ends) < 0) exit(8);
  snprintf(number, sizeof number, "%d", ends[of_guest]);
  setenv(name, number, 1);
}

/* Lets the thread of the guest go on that on_event has started, and waits until it has done its work. */
static int let_thread_work(void) {
  char byte;
  return write(returned[1], "", 1) == 1 && read(done[0], &byte, 1) == 1;
}

static void handler(int n) { (void)n; }

static pxg_result event(uint32_t phase, uint64_t user) {
  static uint8_t scheme[] = ":scheme", http[] = "http", path[] = ":path", slash[] = "/", status[] = ":status",
                 ok[] = "200";
  pxg_field request[] = {{{name, 7, 0}, {get, 3, 0}}, {{scheme, 7, 0}, {http, 4, 0}}, {{path, 5, 0}, {slash, 1, 0}}};
  pxg_field response[] = {{{status, 7, 0}, {ok, 3, 0}}};
  pxg_event ev = {0};
  pxg_result out = {0};
  ev.size = sizeof ev, ev.phase = phase, ev.config = 1, ev.user = user, ev.stream = 5;
  if (phase == PXG_PHASE_REQUEST_HEADERS) {
    ev.flags = PXG_EV_CAN_REPLY | PXG_EV_END_STREAM, ev.token = 11, ev.fields = request, ev.n_fields = 3;
  } else {
    ev.arg = 0x1101, ev.fields = response, ev.n_fields = 1;
  }
  out.size = sizeof out, out.user = user;
  out.scratch_ops = lent_ops, out.scratch_ops_cap = 32, out.scratch = lent, out.scratch_cap = 4096;
  if (is("presets an action")) out.action = PXG_ACT_CONTINUE;
  if (is("presets more")) out.more_bytes = 1;
  if (is("lends little")) out.scratch_cap = 16;
  if (is("lends crooked memory")) out.scratch += 8;
  if (is("lends dirty operations")) memset(lent_ops, 0xEE, sizeof lent_ops);
  guest.on_event(is("uses another ctx") ? 4 : guest.ctx, &ev, &out);
  return out;
}

static void heads(long n) {
  static const char *const names[] = {":method", ":scheme", ":path"}, *const values[] = {"GET", "http", "/"};
  static char more_names[10][12];
  pxg_field fields[13] = {0};
  for (int i = 0; i < 13; i++) {
    const char *name = i < 3 ? names[i] : more_names[i - 3], *value = i < 3 ? values[i] : "a value of some length";
    if (i >= 3) snprintf(more_names[i - 3], sizeof more_names[0], "x-field-%d", i);
    fields[i].name = (pxg_str){(const uint8_t *)name, (uint32_t)strlen(name), 0};
    fields[i].value = (pxg_str){(const uint8_t *)value, (uint32_t)strlen(value), 0};
  }
  for (long i = 0; i < n; i++) {
    pxg_event ev = {.size = sizeof ev,
                    .phase = PXG_PHASE_REQUEST_HEADERS,
                    .flags = PXG_EV_CAN_REPLY | PXG_EV_END_STREAM,
                    .config = 1,
                    .stream = (uint64_t)(100 + i),
                    .token = (uint64_t)(1000000 + i),
                    .fields = fields,
                    .n_fields = 13};
    pxg_result out = {
        .size = sizeof out, .scratch_ops = lent_ops, .scratch_ops_cap = 32, .scratch = lent, .scratch_cap = 4096};
    if (is("presets an action")) out.action = PXG_ACT_CONTINUE;
    guest.on_event(guest.ctx, &ev, &out);
  }
}

int main(int argc, char **argv) {
  static uint8_t f[] = "f", n[] = "name";
  pxg_config_in in = {0};
  pxg_config_out out = {0};
  pxg_result r;
  const uint8_t *attr;
  if (argc < 4) return 2;
  defect = argv[2];
  pipe_for_guest("PXG_TEST_DONE", done, 1);
  pipe_for_guest("PXG_TEST_RETURNED", returned, 0);
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 3;
  pxg_guest_init_v1_fn init = (pxg_guest_init_v1_fn)dlsym(library, "pxg_guest_init_v1");
  if (is("leaves its signals open")) signal(SIGTERM, handler);
  if (is("has no complete")) table.complete = NULL;
  guest.size = sizeof guest;
  if (is("does not zero the table")) guest.minor = 77;
  int32_t s = init(&table, &guest);
  if (s < 0) return fprintf(stderr, "init answered %d\n", s), 4;
  if (logged != 9) return fprintf(stderr, "%d bytes were logged in init\n", logged), 7;
  if (is("changes its table")) table.n_workers = 64;
  in.size = sizeof in;
  memcpy(in.features, table.features, sizeof in.features);
  in.filter = (pxg_str){f, 1, 0}, in.name = (pxg_str){n, 4, 0};
  in.bytes = (pxg_str){(uint8_t *)argv[3], (uint32_t)strlen(argv[3]), 0};
  out.size = sizeof out, out.scratch = lent, out.scratch_cap = 4096;
  if (guest.on_config_new(guest.ctx, &in, &out) < 0) return 5;
  attr = out.attrs[0].name.ptr;
  if (guest.on_worker) guest.on_worker(guest.ctx, 0, 1);
  if (argc > 4) return heads(atol(argv[4])), 0;
  if (is("keeps a configuration's strings")) sink = attr[0];
  if (is("calls in a child")) {
    pid_t child = fork();
    if (child == 0) {
      guest.on_batch_end(guest.ctx, 0);
      _exit(0);
    }
    waitpid(child, NULL, 0);
  }
  r = event(PXG_PHASE_REQUEST_HEADERS, 0);
  take(&r);
  if (r.action == PXG_ACT_PENDING) {
    guest.on_batch_end(guest.ctx, 0);
    if (!let_thread_work()) return 6;
    if (is("keeps what complete was handed")) sink = kept[0];
  }
  if (is("keeps a record")) sink = kept[0];
  if (!strcmp(argv[3], "reads a view late") || !strcmp(argv[3], "changes what it lent"))
    if (!let_thread_work()) return 6;
  event(PXG_PHASE_LOG, 7);
  if (is("reads borrowed memory late")) sink = kept[0];
  guest.on_stream_end(guest.ctx, 1, 7, 5, 0);
  if (is("never releases")) usleep(1200000);
  guest.on_config_drop(guest.ctx, 1);
  guest.on_worker(guest.ctx, 0, 0);
  (void)kept_buf, (void)sink;
  return 0;
}

#endif
