/* SPDX-License-Identifier: Apache-2.0 */
/* The hooks and the entry. Each hook records itself at its entry and at its exit; what it does in between is in the
 * script of the case that the stream's request names. */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "probe.h"

#define CASE_FIELD "x-pxg-case"

/* The library's own path, and what its file name asks for: `libpxg_probe+KEY=VALUE+KEY=VALUE.so`. A copy under another name
 * is another library that behaves otherwise. */
static char own_path[1024];

static const char *variant(const char *key, char *value, size_t n) {
  const char *p = strrchr(own_path, '/');
  for (p = p ? p + 1 : own_path; (p = strchr(p, '+')); p++) {
    size_t k = strlen(key);
    if (strncmp(p + 1, key, k) || p[1 + k] != '=') continue;
    size_t len = strcspn(p + 2 + k, "+.");
    snprintf(value, n, "%.*s", (int)len, p + 2 + k);
    return value;
  }
  return NULL;
}

static long variant_number(const char *key, long otherwise) {
  char value[32];
  return variant(key, value, sizeof value) ? strtol(value, NULL, 0) : otherwise;
}

#define S(t) \
  { (const uint8_t *)t, sizeof t - 1, 0 }
static const pxg_str filters[] = {S("probe"), S("probe-two")};

const pxg_host *the_host;
static pxg_host host_at_init;

extern uint64_t act_random(void);
extern void extra_handlers(void);

/* What a configuration's answer points to: memory of the thread, which the next hook overwrites (PXG-CFG-002). */
static _Thread_local struct {
  pxg_attr_want attrs[32];
  pxg_projection projection[32];
  uint8_t names[8192];
  size_t used;
} answer;

static void entered(void) {
  act_entered();
  /* Still well formed: a host that reads it late goes on with other names. */
  memset(answer.names, 'x', answer.used);
  answer.used = 0;
}

static void lend_name(pxg_str *s) {
  if (answer.used + s->len > sizeof answer.names) return;
  uint8_t *p = memcpy(answer.names + answer.used, s->ptr, s->len);
  answer.used += s->len;
  s->ptr = p;
}

static void lend_answer(const config *c, pxg_config_out *out) {
  answer.used = 1;
  memcpy(answer.attrs, c->attrs, sizeof c->attrs), memcpy(answer.projection, c->projection, sizeof c->projection);
  for (uint64_t i = 0; i < c->n_attrs; i++) lend_name(&answer.attrs[i].name);
  for (uint64_t i = 0; i < c->n_projection; i++) lend_name(&answer.projection[i].name);
  out->attrs = c->n_attrs ? answer.attrs : NULL, out->n_attrs = c->n_attrs;
  out->projection = c->n_projection ? answer.projection : NULL, out->n_projection = c->n_projection;
  if (c->null_attrs) out->attrs = NULL, out->n_attrs = c->null_attrs;
}

/* Strings of a view: what is absent says so by its flag alone, and nothing else does. */
static void view_string(const pxg_str *s, const char *what, int may_be_absent) {
  if (s->flags & ~(PXG_STR_ABSENT | PXG_STR_SENSITIVE)) note("PXG-ABI-005", "flags %#x of %s", s->flags, what);
  if (!(s->flags & PXG_STR_ABSENT)) {
    if (s->len && !s->ptr) note("PXG-ABI-012", "%s: %u bytes at NULL", what, s->len);
    return;
  }
  if (!may_be_absent) note("PXG-ABI-008", "%s is ABSENT", what);
  if (s->len || s->ptr) note("PXG-ABI-012", "%s is ABSENT and has %u bytes", what, s->len);
}

static void view_fields(const pxg_field *f, uint64_t n, const char *what) {
  if (n && !f) {
    note("PXG-ABI-012", "%llu %s at NULL", (unsigned long long)n, what);
    return;
  }
  for (uint64_t i = 0; i < n; i++) view_string(&f[i].name, what, 0), view_string(&f[i].value, what, 0);
}

static void view(const pxg_event *ev) {
  view_fields(ev->fields, ev->n_fields, "fields");
  view_fields(ev->trailers, ev->n_trailers, "trailers");
  view_fields(ev->peer_fields, ev->n_peer_fields, "peer_fields");
  view_fields(ev->peer_trailers, ev->n_peer_trailers, "peer_trailers");
  if (ev->n_chunks && !ev->chunks) note("PXG-ABI-012", "%llu chunks at NULL", (unsigned long long)ev->n_chunks);
  for (uint64_t i = 0; ev->chunks && i < ev->n_chunks; i++) view_string(&ev->chunks[i], "a chunk", 0);
  if (ev->n_attrs && !ev->attrs) note("PXG-ABI-012", "%llu attributes at NULL", (unsigned long long)ev->n_attrs);
  for (uint64_t i = 0; ev->attrs && i < ev->n_attrs; i++) view_string(&ev->attrs[i], "an attribute", 1);
}

/* ---- configurations and places ---- */

static config *configs;
static uint64_t last_config;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

#define BUCKETS 4096
static state *buckets[BUCKETS];

static config *config_of(uint64_t value) {
  pthread_mutex_lock(&guard);
  config *c = configs;
  while (c && c->value != value) c = c->next;
  pthread_mutex_unlock(&guard);
  return c;
}

static state *state_of(uint64_t conf, uint64_t stream, int make) {
  state **at = &buckets[((conf * 31 + stream * 0x9e3779b97f4a7c15ull) >> 40) % BUCKETS];
  config *cfg = make ? config_of(conf) : NULL;
  pthread_mutex_lock(&guard);
  state *s = *at;
  while (s && (s->config != conf || s->stream != stream)) s = s->next;
  if (!s && cfg) {
    s = calloc(1, sizeof *s);
    s->config = conf, s->stream = stream, s->cfg = cfg, s->next = *at;
    *at = s;
  }
  pthread_mutex_unlock(&guard);
  return s;
}

static const pxg_field *find(const pxg_field *f, uint64_t n, const char *name) {
  for (uint64_t i = 0; i < n; i++)
    if (f[i].name.len == strlen(name) && !memcmp(f[i].name.ptr, name, f[i].name.len)) return &f[i];
  return NULL;
}

/* The script of a stream: the one its request names, else the one named `*`. */
static void choose(state *s, const pxg_event *ev) {
  if (s->script && strcmp(s->script->id, "*")) return;
  const pxg_field *f = find(ev->fields, ev->n_fields, CASE_FIELD);
  if (!f) f = find(ev->peer_fields, ev->n_peer_fields, CASE_FIELD);
  if (f && !*s->id) {
    snprintf(s->id, sizeof s->id, "%.*s", (int)f->value.len, (const char *)f->value.ptr);
    s->script = config_script(s->cfg, s->id, strlen(s->id));
  }
  if (!s->script) s->script = config_script(s->cfg, "*", 1);
}

static void who(text *t, const state *s) {
  if (!s) return;
  if (s->cfg->instance) j_text(t, "instance", s->cfg->instance);
  if (*s->id) j_text(t, "case", s->id);
}

static void same_table(void) {
  if (memcmp(the_host, &host_at_init, the_host->size < sizeof host_at_init ? the_host->size : sizeof host_at_init))
    note("PXG-NEG-001", "the host's table is another than at init");
}

/* ---- hooks ---- */

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx;
  entered();
  char *error = NULL;
  config *c = config_parse(in->bytes.ptr, in->bytes.len, &error);
  if (c && c->record) record_to(c->record);
  text *t = record_begin("on_config_new", 0);
  j_bytes(t, "instance", in->name.ptr, in->name.len);
  j_bytes(t, "filter", in->filter.ptr, in->filter.len);
  j_u64(t, "size", in->size);
  j_u64(t, "arg", in->flags);
  j_u64(t, "parent", in->parent);
  j_sum(t, "config_bytes", sum_bytes(SUM_START, in->bytes.ptr, in->bytes.len));
  char features[160];
  snprintf(features, sizeof features, ",\"features\":[%llu,%llu,%llu,%llu]", (unsigned long long)in->features[0],
           (unsigned long long)in->features[1], (unsigned long long)in->features[2],
           (unsigned long long)in->features[3]);
  j_raw(t, features);
  char preset[200];
  snprintf(preset, sizeof preset, ",\"preset\":{\"size\":%u,\"user\":%llu,\"cap\":%llu,\"misaligned\":%u}", out->size,
           (unsigned long long)out->config, (unsigned long long)out->scratch_cap,
           (unsigned)((uintptr_t)out->scratch & 15));
  j_raw(t, preset);
  record_end(t);

  int32_t status = PXG_OK;
  int known = 0;
  for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
    known |= in->filter.len == filters[i].len && !memcmp(in->filter.ptr, filters[i].ptr, filters[i].len);
  if (!known) {
    status = PXG_E_NOTFOUND;
  } else if (!c) {
    status = PXG_E_ARG;
    out->error = (pxg_str){(const uint8_t *)error, (uint32_t)strlen(error), 0};
  } else if (c->refuse) {
    status = c->refuse;
    out->error = (pxg_str){c->refuse_text.ptr, c->refuse_text.len, 0};
  } else {
    if (!c->instance) {
      c->instance = calloc(1, in->name.len + 1);
      memcpy(c->instance, in->name.ptr, in->name.len);
    }
    memcpy(c->features, in->features, sizeof c->features);
    pthread_mutex_lock(&guard);
    c->value = c->has_value ? c->set_value : ++last_config;
    c->next = configs;
    configs = c;
    pthread_mutex_unlock(&guard);
    out->config = c->value;
    out->flags = c->flags;
    out->subscribe = c->subscribe, out->pend_phases = c->pend;
    if (!c->subscribe_raw) {
      /* What the host can do: a script for all hosts asks for everything. */
      uint64_t has = in->features[0];
      uint64_t pend = 0;
      for (int i = 0; i < 6; i++) pend |= has >> i & 1 ? PXG_PHASE_BIT(i + 1) : 0;
      if (has >> PXG_F_PEND_L4_OPEN & 1) pend |= PXG_PHASE_BIT(PXG_PHASE_L4_OPEN);
      if (has >> PXG_F_PEND_L4_DATA & 1)
        pend |= PXG_PHASE_BIT(PXG_PHASE_L4_DOWNSTREAM) | PXG_PHASE_BIT(PXG_PHASE_L4_UPSTREAM);
      uint64_t can = 0;
      for (int p = PXG_PHASE_REQUEST_HEADERS; p <= PXG_PHASE_LOG; p++) can |= PXG_PHASE_BIT(p);
      if (!(has >> PXG_F_TRAILERS_IN_REQUEST & 1)) can &= ~PXG_PHASE_BIT(PXG_PHASE_REQUEST_TRAILERS);
      if (!(has >> PXG_F_TRAILERS_IN_RESPONSE & 1)) can &= ~PXG_PHASE_BIT(PXG_PHASE_RESPONSE_TRAILERS);
      if (has >> PXG_F_APPLY & 1) can |= PXG_PHASE_BIT(PXG_PHASE_WAKE);
      if (has >> PXG_F_L4 & 1)
        for (int p = PXG_PHASE_L4_OPEN; p <= PXG_PHASE_L4_CLOSE; p++) can |= PXG_PHASE_BIT(p);
      out->subscribe &= can;
      out->pend_phases &= pend & out->subscribe;
      static const struct {
        uint32_t flag, feature;
      } needs[] = {{PXG_CFG_RESIZES_REQUEST, PXG_F_RESIZE_REQUEST},
                   {PXG_CFG_RESIZES_RESPONSE, PXG_F_RESIZE_RESPONSE},
                   {PXG_CFG_ORPHAN, PXG_F_ORPHAN},
                   {PXG_CFG_SUBREQUESTS, PXG_F_SUBREQUESTS},
                   {PXG_CFG_UPGRADE_BODY, PXG_F_UPGRADE_BODY}};
      for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        if (!(has >> needs[i].feature & 1)) out->flags &= ~needs[i].flag;
      for (int d = 0; d < 2; d++) {
        uint32_t m = c->mode[d];
        int feature = m == PXG_BODY_STREAM    ? PXG_F_BODY_STREAM_REQUEST
                      : m == PXG_BODY_WHOLE   ? PXG_F_BODY_WHOLE_REQUEST
                      : m == PXG_BODY_OBSERVE ? PXG_F_BODY_OBSERVE_REQUEST
                                              : -1;
        if (feature >= 0 && !(has >> (feature + d) & 1)) c->mode[d] = PXG_BODY_UNSET;
      }
    }
    for (int d = 0; d < 2; d++) out->body_mode[d] = c->mode[d], out->max_body[d] = c->max_body[d];
    out->pend_ns = c->pend_ns;
    if (c->out_size) out->size = c->out_size;
    lend_answer(c, out);
    status = c->answer;
    for (uint64_t got = 0; got < c->scratch; got += 4096) {
      uint8_t *p = the_host->scratch_more(the_host->ctx, 4096);
      int dirty = 0;
      for (int k = 0; p && k < 4096; k++) dirty |= p[k];
      if (!p) note("PXG-MEM-014", "scratch_more in on_config_new: NULL after %llu bytes", (unsigned long long)got);
      if (dirty) note("PXG-MEM-010", "scratch_more in on_config_new: not zeroed");
      if ((uintptr_t)p & 15) note("PXG-ABI-010", "scratch_more in on_config_new: not aligned");
      if (!p) break;
      memset(p, 0xa5, 4096);
    }
  }
  t = record_begin("on_config_new", 1);
  j_bytes(t, "instance", in->name.ptr, in->name.len);
  j_i32(t, "status", status);
  if (status >= PXG_OK) {
    j_u64(t, "config", out->config);
    j_u64(t, "parent", in->parent);
    char answer[300];
    snprintf(answer, sizeof answer,
             ",\"result\":{\"flags\":%u,\"subscribe\":%llu,\"pend\":%llu,\"modes\":[%u,%u],\"max_body\":[%llu,%llu]}",
             out->flags, (unsigned long long)out->subscribe, (unsigned long long)out->pend_phases, out->body_mode[0],
             out->body_mode[1], (unsigned long long)out->max_body[0], (unsigned long long)out->max_body[1]);
    j_raw(t, answer);
  }
  record_end(t);
  return status;
}

static void on_config_drop(uint64_t ctx, uint64_t conf) {
  (void)ctx;
  entered();
  config *c = config_of(conf);
  text *t = record_begin("on_config_drop", 0);
  j_u64(t, "config", conf);
  if (c && c->instance) j_text(t, "instance", c->instance);
  record_end(t);
  same_table();
  record_end(record_begin("on_config_drop", 1));
}

static void event_exit(const pxg_event *ev, const state *s, const pxg_result *out) {
  text *t = record_begin("on_event", 1);
  who(t, s);
  j_u64(t, "config", ev->config);
  j_u64(t, "stream", ev->stream);
  j_u64(t, "token", ev->token);
  j_u64(t, "phase", ev->phase);
  j_sum(t, "sum", sum_event(ev));
  j_result(t, NULL, out);
  record_end(t);
}

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx;
  entered();
  state *s = state_of(ev->config, ev->stream, 1);
  if (!s) {
    note("PXG-ABI-009", "an event of a configuration that was never made: %llu", (unsigned long long)ev->config);
    return;
  }
  choose(s, ev);
  case_now = s->id;
  s->previous_token = s->token ? s->token : s->previous_token;
  s->token = ev->token;
  if (!s->quiet) {
    static const pxg_result zero;
    pxg_result preset = *out;
    int dirty = 0;
    for (uint64_t i = 0; i < out->scratch_ops_cap; i++) dirty |= !act_is_operation(&out->scratch_ops[i]);
    preset.size = 0, preset.action = 0, preset.user = 0;
    preset.scratch_ops = NULL, preset.scratch_ops_cap = 0, preset.scratch = NULL, preset.scratch_cap = 0;
    text *t = record_begin("on_event", 0);
    who(t, s);
    j_event(t, ev);
    j_sum(t, "sum", sum_event(ev));
    char buffer[300];
    snprintf(buffer, sizeof buffer,
             ",\"preset\":{\"size\":%u,\"action\":%u,\"user\":%llu,\"zero\":%s,\"ops_cap\":%llu,\"cap\":%llu,"
             "\"misaligned\":%u,\"dirty\":%s}",
             out->size, out->action, (unsigned long long)out->user,
             memcmp(&preset, &zero, sizeof zero) ? "false" : "true", (unsigned long long)out->scratch_ops_cap,
             (unsigned long long)out->scratch_cap,
             (unsigned)(((uintptr_t)out->scratch_ops | (uintptr_t)out->scratch) & 15), dirty ? "true" : "false");
    j_raw(t, buffer);
    record_end(t);
  }
  same_table();
  view(ev);
  /* Another value each time, sometimes a small one: what comes back with the next event is compared. */
  uint64_t user = act_random();
  out->user = user & 1 ? user : 1 + user % 4095;
  uint32_t nth = ev->phase < 32 ? ++s->counts[ev->phase] : 0;
  line *lines[64];
  int n = 0;
  for (int i = 0; s->script && i < s->script->n && n < 64; i++) {
    line *l = &s->script->lines[i];
    if (l->phase == ev->phase && (!l->nth || l->nth == nth)) lines[n++] = l;
  }
  act_event(s, ev, out, lines, n, NULL);
  s->user = out->user;
  case_now = NULL;
  if (!s->quiet) event_exit(ev, s, out);
  s->quiet |= s->quiet_next;
}

static void on_cancel(uint64_t ctx, uint64_t conf, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  (void)ctx;
  entered();
  state *s = state_of(conf, stream, 0);
  if (s && s->quiet) return;
  text *t = record_begin("on_cancel", 0);
  who(t, s);
  j_u64(t, "config", conf), j_u64(t, "user", user), j_u64(t, "stream", stream), j_u64(t, "token", token);
  j_u64(t, "worker", worker);
  record_end(t);
  if (s) act_deferred(s, "cancel");
  t = record_begin("on_cancel", 1);
  who(t, s);
  j_u64(t, "config", conf), j_u64(t, "stream", stream), j_u64(t, "token", token);
  record_end(t);
}

static void on_stream_end(uint64_t ctx, uint64_t conf, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx;
  entered();
  state *s = state_of(conf, stream, 0);
  if (s && s->quiet) return;
  text *t = record_begin("on_stream_end", 0);
  who(t, s);
  j_u64(t, "config", conf), j_u64(t, "user", user), j_u64(t, "stream", stream), j_u64(t, "worker", worker);
  record_end(t);
  if (s) act_deferred(s, "end");
  t = record_begin("on_stream_end", 1);
  who(t, s);
  j_u64(t, "config", conf), j_u64(t, "stream", stream);
  record_end(t);
}

static void on_batch_end(uint64_t ctx, uint32_t worker) {
  (void)ctx;
  entered();
  text *t = record_begin("on_batch_end", 0);
  j_u64(t, "worker", worker);
  record_end(t);
  record_end(record_begin("on_batch_end", 1));
}

/* How many processors this thread may run on; 0: unknown. */
static uint64_t cpus(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 0 : (uint64_t)CPU_COUNT(&set);
}

static void on_worker(uint64_t ctx, uint32_t worker, uint32_t up) {
  (void)ctx;
  entered();
  size_t stack = 0;
  pthread_attr_t attr;
  if (!pthread_getattr_np(pthread_self(), &attr)) {
    pthread_attr_getstacksize(&attr, &stack);
    pthread_attr_destroy(&attr);
  }
  text *t = record_begin("on_worker", 0);
  j_u64(t, "worker", worker), j_u64(t, "arg", up), j_u64(t, "stack", stack), j_u64(t, "cpus", cpus());
  record_end(t);
  record_end(record_begin("on_worker", 1));
}

static void unload(void) __attribute__((destructor));
static void unload(void) {
  if (!the_host) return;
  record_end(record_begin("unload", 0));
}

/* ---- entry ---- */

static void record_init(const pxg_host *h) {
  char b[512];
  text *t = record_begin("init", 0);
  snprintf(b, sizeof b,
           ",\"host\":{\"size\":%u,\"major\":%u,\"minor\":%u,\"n_workers\":%u,\"features\":[%llu,%llu,%llu,%llu],"
           "\"ctx\":%llu,"
           "\"entries\":[%s,%s,%s,%s,%s,%s,%s]",
           h->size, h->major, h->minor, h->n_workers, (unsigned long long)h->features[0],
           (unsigned long long)h->features[1], (unsigned long long)h->features[2], (unsigned long long)h->features[3],
           (unsigned long long)h->ctx, h->complete ? "true" : "false", h->apply ? "true" : "false",
           h->wake ? "true" : "false", h->log ? "true" : "false", h->scratch_more ? "true" : "false",
           h->get_ext ? "true" : "false", h->page ? "true" : "false");
  j_raw(t, b);
  j_bytes(t, "name", h->name.ptr, h->name.len);
  j_bytes(t, "version", h->version.ptr, h->version.len);
  j_sum(t, "sum", sum_bytes(SUM_START, h, h->size < sizeof *h ? h->size : sizeof *h));
  j_raw(t, "}");
  /* Process-directed signals are blocked while a library is loaded (PXG-RT-001). */
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, NULL, &mask);
  char signals[65];
  for (int i = 1; i <= 64; i++) signals[i - 1] = sigismember(&mask, i) == 1 ? '1' : '0';
  signals[64] = 0;
  j_text(t, "text", signals);
  j_u64(t, "cpus", cpus());
  record_end(t);
}

static void locate(void) {
  Dl_info at;
  if (*own_path || !dladdr((void *)buckets, &at) || !at.dli_fname) return;
  snprintf(own_path, sizeof own_path, "%s", at.dli_fname);
  static char name[64];
  record_library = variant("library", name, sizeof name);
  struct stat file;
  if (record_library && variant_number("inode", 0) && !stat(own_path, &file))
    snprintf(name + strlen(name), sizeof name - strlen(name), "-%llu", (unsigned long long)file.st_ino);
}

/* A table that a host refuses (PXG-LOAD-010). */
static void bad_table(pxg_guest *out, long number) {
  static const pxg_str nameless[] = {S("probe"), {(const uint8_t *)"", 0, 0}}, twins[] = {S("probe"), S("probe")};
  switch (number) {
  case 1: out->on_config_new = NULL; break;
  case 2: out->on_config_drop = NULL; break;
  case 3: out->on_event = NULL; break;
  case 4: out->on_cancel = NULL; break;
  case 5: out->on_stream_end = NULL; break;
  case 6: out->n_filters = 0; break;
  case 7: out->filters = nameless; break;
  case 8: out->filters = twins; break;
  case 9: out->filters = NULL; break;
  case 10: out->size = 16; break;
  case 11: out->major = PXG_VERSION_MAJOR + 1; break;
  case 12: out->flags = 1u << 30; break;
  default: break;
  }
}

int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  locate();
  const char *dir = getenv("PXG_PROBE_DIR");
  if (dir) record_to(dir);
  the_host = host;
  memcpy(&host_at_init, host, host->size < sizeof host_at_init ? host->size : sizeof host_at_init);
  record_init(host);
  if (*own_path != '/') note("PXG-LOAD-003", "loaded as %s, which is no absolute path", own_path);
  if (host->page && host->page->size < sizeof *host->page) note("PXG-ABI-002", "a page of %u bytes", host->page->size);
  if (variant_number("handlers", 0)) extra_handlers();
  long refusal = variant_number("init", 0);
  if (refusal) {
    static const char why[] = "this probe is there to refuse";
    if (host->log) host->log(host->ctx, PXG_LOG_ERROR, (const uint8_t *)why, sizeof why - 1);
    record_end(record_begin("init", 1));
    return (int32_t)refusal;
  }
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->name = record_library ? (pxg_str){(const uint8_t *)record_library, (uint32_t)strlen(record_library), 0}
                             : (pxg_str)S("pxg-probe");
  out->version = (pxg_str)S("1");
  long required = variant_number("required", -1);
  if (required >= 0) out->required[required / 64 % 4] = 1ull << required % 64;
  for (int i = 0; i < 4; i++) out->known[i] = variant_number("known", 1) ? ~0ull : 0;
  out->ctx = 77;
  out->filters = filters, out->n_filters = sizeof filters / sizeof *filters;
  out->on_config_new = on_config_new, out->on_config_drop = on_config_drop;
  out->on_event = on_event, out->on_cancel = on_cancel, out->on_stream_end = on_stream_end;
  if (!variant_number("bare", 0)) out->on_worker = on_worker, out->on_batch_end = on_batch_end;
  bad_table(out, variant_number("table", 0));
  record_end(record_begin("init", 1));
  return PXG_OK;
}
