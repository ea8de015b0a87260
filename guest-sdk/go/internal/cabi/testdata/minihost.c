/* A small strict host that drives a Go guest through the C boundary.
 *
 *   minihost LIBRARY check|nulls|nobatch|recipe|memory [FILTER]|bench [ROUNDS]|steps [FILTER]
 *
 * It exits with 0 if everything was as the specification says, and else says in
 * one line what was not. */
#include "host.h"
#include "measure.h"
#include "steps.h"

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
  CHECK(config_new("faulty", "{\"fault\": \"refuse\"}", &c, 0) < 0 && strstr(config_error, "refused, as asked for"),
        "%s", config_error);
  CHECK(config_new("faulty", "{\"falt\": 1}", &c, 0) < 0 && strstr(config_error, "falt"), "%s", config_error);
  CHECK(config_new("faulty", "{} x", &c, 0) < 0, "trailing garbage");
  CHECK(config_new("faulty", "", &c, 1ull << PXG_F_PEND_REQUEST_HEADERS) == PXG_E_UNSUPPORTED &&
            strstr(config_error, "PEND_REQUEST_HEADERS"),
        "%s", config_error);
  CHECK(config_new("trace-id", "{}", &c, ~0ull) == PXG_OK && c, "%s", config_error);
  CHECK(last_config.subscribe == (PXG_PHASE_BIT(1) | PXG_PHASE_BIT(4)) && !last_config.pend_phases, "phases %lx",
        (unsigned long)last_config.subscribe);
  G.on_config_drop(G.ctx, c);
  call k = new_call();
  CHECK(run(&k, 1, c, 0, 1, 0) == PXG_ACT_ERROR && strstr(error_of(&k), "not in force"),
        "event for a dropped configuration: %s", error_of(&k));
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
  CHECK(k.ops[0].key.len == 10 && !memcmp(k.ops[0].key.ptr, "x-trace-id", 10) && k.ops[0].val.bytes.len == 32,
        "trace id");
  CHECK(k.ops[0].val.bytes.ptr >= k.scratch && k.ops[0].val.bytes.ptr + 32 <= k.scratch + MIN_SCRATCH,
        "the value is not in scratch");
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
  CHECK(run(&k, 1, first_config, 0, 50, 0) == PXG_ACT_ERROR,
        "the first host's configuration is in force at the second");
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
  struct {
    const char *fault, *text;
  } sync[] = {{"panic", "as asked for"},
              {"nil", "nil pointer"},
              {"zero-action", "zero Action"},
              {"error", "error, as asked for"},
              {"unreturned", "did not return its action"}};
  for (size_t i = 0; i < sizeof sync / sizeof *sync; i++) {
    set_fault(sync[i].fault);
    CHECK(run(&k, 1, c, 0, 10, 1) == PXG_ACT_ERROR && strstr(error_of(&k), sync[i].text), "%s: %s", sync[i].fault,
          error_of(&k));
    CHECK(i > 1 || !strncmp(error_of(&k), "panic: ", 7), "PXG-ERR-006: %s", error_of(&k));
    CHECK(!k.out->n_ops && !k.out->reply, "%s: an error with effects", sync[i].fault);
  }
  set_fault("reset");
  CHECK(run(&k, 1, c, 0, 10, 1) == PXG_ACT_RESET, "reset");
  set_fault("many");
  CHECK(run(&k, 1, c, 0, 10, 1) == PXG_ACT_CONTINUE && k.out->n_ops == 200 && k.out->ops != k.ops, "many: %s",
        error_of(&k));
  for (uint64_t i = 0; i < 200; i++) {
    char name[32];
    snprintf(name, sizeof name, "x-many-%lu", (unsigned long)i);
    const pxg_op *o = &k.out->ops[i];
    CHECK(o->key.len == strlen(name) && !memcmp(o->key.ptr, name, o->key.len) && o->val.bytes.len == i &&
              (!i || o->val.bytes.ptr[i - 1] == 'm'),
          "operation %lu", (unsigned long)i);
  }
  free_more();
}

static void check_async(uint64_t c, int batch_end) {
  call k = new_call();
  struct {
    const char *fault, *text;
    uint32_t action;
  } async[] = {{"async-nothing", "", PXG_ACT_CONTINUE},   {"async-late", "", PXG_ACT_CONTINUE},
               {"async-twice", "", PXG_ACT_CONTINUE},     {"async-panic", "panic: faulty: panic", PXG_ACT_ERROR},
               {"async-goexit", "Goexit", PXG_ACT_ERROR}, {"async-forget", "without a decision", PXG_ACT_ERROR}};
  for (size_t i = 0; i < sizeof async / sizeof *async; i++) {
    uint64_t before = H.completed;
    set_fault(async[i].fault);
    CHECK(run(&k, 1, c, 0, 20 + i, 1) == PXG_ACT_PENDING && !k.out->n_ops && !k.out->reply && k.out->user, "%s: %s",
          async[i].fault, error_of(&k));
    kick(batch_end);
    wait_completed(before + 1);
    CHECK(H.last_action == async[i].action && strstr(H.last_error, async[i].text), "%s: action %u, %s", async[i].fault,
          H.last_action, H.last_error);
    CHECK(async[i].action != PXG_ACT_CONTINUE || !strcmp(H.last_key, "x-faulty"), "%s: the batch was lost",
          async[i].fault);
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
  while (H.stale == stale)
    CHECK(!pthread_cond_timedwait(&H.changed, &H.lock, &until), "the function did not end after on_cancel");
  pthread_mutex_unlock(&H.lock);
  CHECK(H.completed == before, "a cancelled stream was completed");
  /* Cancelled for a token that nobody knows. */
  G.on_cancel(G.ctx, c, 0, 101, 99999999, 0);
  free_more();
}

typedef struct {
  uint32_t worker;
  uint64_t config;
  int n, batch_end;
} load_args;

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
    k.out->scratch_ops = k.ops, k.out->scratch_ops_cap = MIN_OPS, k.out->scratch = k.scratch,
    k.out->scratch_cap = MIN_SCRATCH;
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
    if (dies && k.out->action == PXG_ACT_PENDING)
      G.on_cancel(G.ctx, a->config, k.out->user, k.ev->stream, token, a->worker);
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
    CHECK(!pthread_cond_timedwait(&H.changed, &H.lock, &until), "%lu tokens were never completed",
          (unsigned long)alive);
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
    CHECK(run(&k, 1, c, 0, 30, 1) == PXG_ACT_PENDING && k.out->user == 1, "ring: action %u: %s", k.out->action,
          error_of(&k));
    G.on_stream_end(G.ctx, c, k.out->user, 30, 0);
  }
  kick(batch_end);
  wait_completed(before + 300);
  CHECK(!strcmp(H.last_key, "x-seen") && !strcmp(H.last_value, "through the ring"), "the copy says %s: %s", H.last_key,
        H.last_value);
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
    pxg_event ev = {
        .size = sizeof ev, .phase = PXG_PHASE_WAKE, .flags = PXG_EV_WRITABLE, .config = c, .user = user, .stream = 31};
    pxg_result out = {.size = sizeof out,
                      .user = user,
                      .scratch_ops = k.ops,
                      .scratch_ops_cap = MIN_OPS,
                      .scratch = k.scratch,
                      .scratch_cap = MIN_SCRATCH};
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
  if (!strcmp(mode, "steps")) {
    /* Go does not survive a fork: this one is before it is there. */
    pid_t child = fork();
    CHECK(child >= 0, "%s", strerror(errno));
    if (child) {
      steps(child);
      return 0;
    }
    CHECK(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "%s", strerror(errno));
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
  if (!strcmp(mode, "steps")) steps_child(argc > 3 ? argv[3] : NULL);
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
