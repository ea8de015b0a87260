/* SPDX-License-Identifier: Apache-2.0 */

/* Configurations: made and dropped on the config thread, used by the workers (spec/04-configuration). */

#include <sys/eventfd.h>
#include <unistd.h>

#include "minihost.h"

int config_event = -1;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static config *to_drop;
static size_t live;
static config **alive; /* [config-thread] For the uniqueness of values. */
static world *serving;

#define HTTP_PHASES 0x1feull
#define L4_PHASES 0xf0000ull

static void features_of(uint64_t *features) {
  memcpy(features, host_table()->features, 4 * sizeof *features);
  const uint64_t l4 = 1ull << PXG_F_L4 | 1ull << PXG_F_PEND_L4_OPEN | 1ull << PXG_F_PEND_L4_DATA;
  const uint64_t common = 1ull << PXG_F_OWNED_BUF | 1ull << PXG_F_THREAD_AFFINE | 1ull << PXG_F_BATCH_END |
                          1ull << PXG_F_CONFIG_REJECT | 1ull << PXG_F_CONFIG_THREAD | 1ull << PXG_F_APPLY |
                          1ull << PXG_F_METADATA | 1ull << PXG_F_FLUSH | 1ull << PXG_F_PARTIAL_RELEASE |
                          1ull << PXG_F_ROUTE;
  features[0] &= set.l4 ? l4 | common : ~l4;
  if (BUG("features-beyond-the-table")) features[0] |= 1ull << PXG_F_SUBREQUESTS;
}

typedef struct fault {
  int32_t status;
  char text[256];
} fault;

static bool bad(fault *f, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));

static bool bad(fault *f, int32_t status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  f->status = status;
  vsnprintf(f->text, sizeof f->text, format, args);
  va_end(args);
  return false;
}

static bool string_ok(const pxg_str *s, const call *lent, fault *f, const char *what) {
  if (s->flags & ~PXG_STR_SENSITIVE) return bad(f, PXG_E_ARG, "%s: found flags 0x%x, expected 0", what, s->flags);
  if (!s->len || !s->ptr) return bad(f, PXG_E_ARG, "%s: found an empty or NULL string, expected text", what);
  if (call_overruns(lent, s->ptr, s->len))
    return bad(f, PXG_E_ARG, "%s: found a string that leaves the lent scratch [PXG-MEM-012]", what);
  return true;
}

static bool features_ok(const config *c, const pxg_config_out *o, fault *f) {
  static const struct {
    uint64_t bit;
    unsigned feature;
    const char *name;
  } flags[] = {{PXG_CFG_RESIZES_REQUEST, PXG_F_RESIZE_REQUEST, "RESIZES_REQUEST"},
               {PXG_CFG_RESIZES_RESPONSE, PXG_F_RESIZE_RESPONSE, "RESIZES_RESPONSE"},
               {PXG_CFG_ORPHAN, PXG_F_ORPHAN, "ORPHAN"},
               {PXG_CFG_SUBREQUESTS, PXG_F_SUBREQUESTS, "SUBREQUESTS"},
               {PXG_CFG_UPGRADE_BODY, PXG_F_UPGRADE_BODY, "UPGRADE_BODY"}};
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
    if ((o->flags & flags[i].bit) && !has_feature(c->features, flags[i].feature))
      return bad(f, PXG_E_UNSUPPORTED, "flags: found %s, whose feature %u is clear [PXG-CFG-009]", flags[i].name,
                 flags[i].feature);
  for (uint32_t p = 1; p < 32; p++) {
    if (!(o->pend_phases >> p & 1)) continue;
    unsigned feature = p <= PXG_PHASE_RESPONSE_TRAILERS ? p - 1
                       : p == PXG_PHASE_L4_OPEN         ? PXG_F_PEND_L4_OPEN
                                                        : PXG_F_PEND_L4_DATA;
    if (!has_feature(c->features, feature))
      return bad(f, PXG_E_UNSUPPORTED, "pend_phases: found %s, whose feature %u is clear [PXG-CFG-009]", phase_name(p),
                 feature);
  }
  static const unsigned modes[] = {0, 0, PXG_F_BODY_STREAM_REQUEST, PXG_F_BODY_WHOLE_REQUEST,
                                   PXG_F_BODY_OBSERVE_REQUEST};
  for (int d = 0; d < 2; d++)
    if (o->body_mode[d] > PXG_BODY_SKIP && !has_feature(c->features, modes[o->body_mode[d]] + (unsigned)d))
      return bad(f, PXG_E_UNSUPPORTED, "body_mode[%d]: found mode %u, whose feature is clear [PXG-CFG-009]", d,
                 o->body_mode[d]);
  return true;
}

/* The checks of 4.1, in the order of the precedence of their codes. */
static bool declared_ok(const config *c, const pxg_config_out *o, const call *lent, fault *f) {
  if (BUG("declarations-unchecked")) return true;
  uint64_t phases = HTTP_PHASES | (has_feature(c->features, PXG_F_L4) ? L4_PHASES : 0);
  if (o->size < sizeof *o) return bad(f, PXG_E_ARG, "size: found %u, expected %zu", o->size, sizeof *o);
  if (o->subscribe & ~phases)
    return bad(f, PXG_E_UNSUPPORTED, "subscribe: found 0x%llx, expected bits of 0x%llx [PXG-CFG-009]",
               (unsigned long long)o->subscribe, (unsigned long long)phases);
  if (o->pend_phases & ~(HTTP_PHASES | L4_PHASES))
    return bad(f, PXG_E_UNSUPPORTED, "pend_phases: found 0x%llx with undefined bits [PXG-CFG-009]",
               (unsigned long long)o->pend_phases);
  if ((o->flags & ~0x7fu) && !BUG("undefined-bits-ignored"))
    return bad(f, PXG_E_UNSUPPORTED, "flags: found 0x%x, expected bits of 0x7f [PXG-CFG-009]", o->flags);
  for (int d = 0; d < 2; d++)
    if (o->body_mode[d] > PXG_BODY_OBSERVE)
      return bad(f, PXG_E_UNSUPPORTED, "body_mode[%d]: found %u, expected 0 to 4 [PXG-CFG-009]", d, o->body_mode[d]);
  const uint64_t never =
      PXG_PHASE_BIT(PXG_PHASE_LOG) | PXG_PHASE_BIT(PXG_PHASE_WAKE) | PXG_PHASE_BIT(PXG_PHASE_L4_CLOSE);
  if (o->pend_phases & (~o->subscribe | never))
    return bad(
        f, PXG_E_ARG,
        "pend_phases: found 0x%llx, expected phases of subscribe (0x%llx) without log, wake and l4_close [PXG-CFG-009]",
        (unsigned long long)o->pend_phases, (unsigned long long)o->subscribe);
  if (!features_ok(c, o, f)) return false;
  for (int d = 0; d < 2; d++)
    if (o->body_mode[d] > PXG_BODY_SKIP &&
        !(o->subscribe & PXG_PHASE_BIT(d ? PXG_PHASE_RESPONSE_BODY : PXG_PHASE_REQUEST_BODY)))
      return bad(f, PXG_E_ARG, "body_mode[%d]: found %u, expected its body phase in subscribe [PXG-CFG-009]", d,
                 o->body_mode[d]);
  if ((o->n_attrs && !o->attrs) || o->n_attrs > 1024)
    return bad(f, PXG_E_ARG, "attrs: found %s with n_attrs %llu, expected an array of at most 1024 [PXG-ABI-012]",
               o->attrs ? "an array" : "NULL", (unsigned long long)o->n_attrs);
  if ((o->n_projection && !o->projection) || o->n_projection > 1024)
    return bad(f, PXG_E_ARG,
               "projection: found %s with n_projection %llu, expected an array of at most 1024 [PXG-ABI-012]",
               o->projection ? "an array" : "NULL", (unsigned long long)o->n_projection);
  if (call_overruns(lent, o->attrs, o->n_attrs * sizeof *o->attrs) ||
      call_overruns(lent, o->projection, o->n_projection * sizeof *o->projection))
    return bad(f, PXG_E_ARG, "attrs or projection: found an array that leaves the lent scratch [PXG-MEM-012]");
  for (uint64_t i = 0; i < o->n_attrs; i++) {
    const pxg_attr_want *a = &o->attrs[i];
    if (!string_ok(&a->name, lent, f, "attrs")) return false;
    if ((a->flags & ~PXG_ATTR_REQUIRED) || a->reserved0 || a->phases & ~(HTTP_PHASES | L4_PHASES))
      return bad(f, PXG_E_UNSUPPORTED,
                 "attrs[%llu]: found flags 0x%x, reserved0 %u, phases 0x%llx, expected no undefined bit [PXG-CFG-009]",
                 (unsigned long long)i, a->flags, a->reserved0, (unsigned long long)a->phases);
    if ((a->flags & PXG_ATTR_REQUIRED) && attribute_find((const char *)a->name.ptr, a->name.len) == -1 &&
        !BUG("required-attribute-ignored"))
      return bad(f, PXG_E_NOTFOUND,
                 "attrs[%llu]: found the required attribute %.*s, expected one that this host has [PXG-ATT-003]",
                 (unsigned long long)i, (int)a->name.len, (const char *)a->name.ptr);
  }
  for (uint64_t i = 0; i < o->n_projection; i++) {
    const pxg_str *name = &o->projection[i].name;
    if (!string_ok(name, lent, f, "projection")) return false;
    if (o->projection[i].phases & ~(HTTP_PHASES | L4_PHASES))
      return bad(f, PXG_E_UNSUPPORTED, "projection[%llu]: found phases 0x%llx, expected no undefined bit [PXG-CFG-009]",
                 (unsigned long long)i, (unsigned long long)o->projection[i].phases);
    bool pseudo = name->ptr[0] == ':';
    if (!name_is_token(name->ptr + pseudo, name->len - pseudo, false))
      return bad(f, PXG_E_ARG, "projection[%llu]: found a name that is not a field's in lower case [PXG-HDR-010]",
                 (unsigned long long)i);
  }
  return true;
}

static uint64_t limited(const config *c, const char *what, uint64_t wish, uint64_t preset, uint64_t most) {
  if (!wish) return preset < most ? preset : most;
  if (wish <= most || BUG("limits-not-applied")) return wish;
  say(PXG_LOG_WARN, "%s/%s: %s %llu is set to the limit %llu [PXG-CFG-010]", c->lib->name, c->instance, what,
      (unsigned long long)wish, (unsigned long long)most);
  return most;
}

static void take(config *c, const pxg_config_out *o) {
  c->subscribe = o->subscribe;
  c->pend_phases = o->pend_phases;
  c->flags = o->flags;
  c->pend_ns = limited(c, "pend_ns", o->pend_ns, set.pend_ms * 1000000, c->spec->pend_limit_ms * 1000000);
  for (int d = 0; d < 2; d++) {
    c->mode[d] = o->body_mode[d] ? o->body_mode[d] : PXG_BODY_SKIP;
    c->max_body[d] = limited(c, "max_body", o->max_body[d], set.max_body, c->spec->max_body_limit);
  }
  c->n_attrs = o->n_attrs;
  c->attrs = zalloc(o->n_attrs * sizeof *c->attrs);
  for (uint64_t i = 0; i < o->n_attrs; i++) {
    attr *a = &c->attrs[i];
    a->name = copy_text(o->attrs[i].name.ptr, o->attrs[i].name.len);
    a->phases = o->attrs[i].phases;
    a->getter = attribute_find(a->name, o->attrs[i].name.len);
    a->meta = a->name + (a->getter == -2 ? strlen("metadata.") : 0);
  }
  c->n_projection = o->n_projection;
  c->projection = zalloc(o->n_projection * sizeof *c->projection);
  c->projection_phases = zalloc(o->n_projection * sizeof *c->projection_phases);
  for (uint64_t i = 0; i < o->n_projection; i++) {
    c->projection[i] = copy_text(o->projection[i].name.ptr, o->projection[i].name.len);
    c->projection_phases[i] = o->projection[i].phases;
  }
}

static void config_free(config *c) {
  for (size_t i = 0; i < c->n_attrs; i++) free(c->attrs[i].name);
  for (size_t i = 0; i < c->n_projection; i++) free(c->projection[i]);
  free(c->attrs);
  free(c->projection);
  free(c->projection_phases);
  free(c->pending);
  free(c->filter);
  free(c->instance);
  free(c);
}

static bool is_alive(const lib *l, uint64_t value) {
  for (size_t i = 0; i < live; i++)
    if (alive[i]->lib == l && alive[i]->value == value) return true;
  return false;
}

static char *read_file(const char *path, size_t *len) {
  FILE *f = fopen(path, "rb");
  if (!f) return NULL;
  char *text = NULL;
  size_t n = 0, cap = 0;
  do {
    cap = cap ? cap * 2 : 4096;
    text = must(realloc(text, cap));
    n += fread(text + n, 1, cap - n, f);
  } while (n == cap);
  fclose(f);
  *len = n;
  return text;
}

static config *make(const filter_spec *spec, const char *file, config *parent, uint32_t in_flags) {
  char *why = NULL;
  lib *l = lib_load(spec->path, &why);
  if (!l) {
    say(PXG_LOG_ERROR, "%s", why);
    free(why);
    return NULL;
  }
  size_t len;
  char *text = read_file(file, &len);
  if (!text) {
    say(PXG_LOG_ERROR, "%s/%s: found no file %s, expected the configuration's bytes", l->name, spec->instance, file);
    return NULL;
  }
  config *c = zalloc(sizeof *c);
  atomic_init(&c->refs, 1);
  c->lib = l;
  c->filter = copy_text(spec->filter, strlen(spec->filter));
  c->instance = copy_text(spec->instance, strlen(spec->instance));
  c->spec = spec;
  c->overriding = parent != NULL;
  features_of(c->features);
  c->stats = stats_of(l->name, c->filter, c->instance);
  c->pending = zalloc(set.workers * sizeof *c->pending);
  if (BUG("config-cut-at-nul")) len = strnlen(text, len);
  pxg_config_in in = {.size = sizeof in,
                      .flags = in_flags,
                      .filter = {(uint8_t *)c->filter, (uint32_t)strlen(c->filter), 0},
                      .name = {(uint8_t *)c->instance, (uint32_t)strlen(c->instance), 0},
                      .bytes = {(uint8_t *)text, (uint32_t)len, 0},
                      .parent = parent ? parent->value : 0};
  if (BUG("override-without-parent")) in.parent = 0;
  memcpy(in.features, c->features, sizeof in.features);
  call lent = {.scratch = must(aligned_alloc(16, SCRATCH_BYTES)), .scratch_cap = SCRATCH_BYTES};
  pxg_config_out out = {.size = sizeof out, .scratch = lent.scratch, .scratch_cap = lent.scratch_cap};
  fault f = {PXG_OK, ""};
  bool ok = false;
  for (int i = 0; i < 4 && !f.status; i++)
    if (l->table.required[i] & ~c->features[i] && !BUG("required-ignored")) {
      char missing[1024];
      name_features(missing, sizeof missing, l->table.required, c->features);
      bad(&f, PXG_E_UNSUPPORTED, "the library requires features that this configuration lacks: %s [PXG-NEG-003]",
          missing);
    }
  if (!f.status) {
    call_begin(&lent);
    int32_t status = l->table.on_config_new(l->table.ctx, &in, &out);
    if (BUG("unknown-status-is-ok") && status < -9) status = PXG_OK;
    if (status < 0) {
      char *error = out.error.ptr && !call_overruns(&lent, out.error.ptr, out.error.len)
                        ? clean_text(out.error.ptr, out.error.len)
                        : copy_text("", 0);
      bad(&f, status, "%s", BUG("refusal-without-text") ? "" : error);
      free(error);
    } else if ((!out.config || is_alive(l, out.config)) && !BUG("config-value-unchecked")) {
      bad(&f, PXG_E_ARG, "config: found %llu, expected a value that is not 0 and not in use [PXG-CFG-008]",
          (unsigned long long)out.config);
    } else {
      if (BUG("declaration-read-late") && out.n_attrs) {
        pxg_config_out again = {.size = sizeof again, .scratch = lent.scratch, .scratch_cap = lent.scratch_cap};
        pxg_config_in other = in;
        other.flags |= PXG_CFG_IN_VALIDATE_ONLY;
        if (l->table.on_config_new(l->table.ctx, &other, &again) >= 0)
          l->table.on_config_drop(l->table.ctx, again.config);
      }
      ok = declared_ok(c, &out, &lent, &f);
      if (ok) take(c, &out);
      call_end(&lent);
      if (!ok && !BUG("refused-not-dropped")) l->table.on_config_drop(l->table.ctx, out.config);
      c->value = out.config;
    }
    if (call_now) call_end(&lent);
  }
  free(lent.scratch);
  free(text);
  if (!ok) {
    say(PXG_LOG_ERROR, "guest=%s filter=%s config=%s file=%s: the configuration is refused: %s (%d): %s", l->name,
        c->filter, c->instance, l->path, status_name(f.status), f.status, f.text);
    config_free(c);
    return NULL;
  }
  if (parent) c->parent = config_ref(parent);
  alive = must(realloc(alive, (live + 1) * sizeof *alive));
  alive[live++] = c;
  return c;
}

config *config_ref(config *c) {
  atomic_fetch_add(&c->refs, 1);
  return c;
}

void config_unref(config *c) {
  if (atomic_fetch_sub(&c->refs, 1) != 1) return;
  if (BUG("drop-on-a-worker")) {
    c->lib->table.on_config_drop(c->lib->table.ctx, c->value);
    c->dropped = true;
  }
  pthread_mutex_lock(&lock);
  c->drop_next = to_drop;
  to_drop = c;
  pthread_mutex_unlock(&lock);
  uint64_t one = 1;
  if (write(config_event, &one, sizeof one) < 0) say(PXG_LOG_ERROR, "eventfd");
}

void configs_drop_now(void) {
  for (size_t i = 0; i < live; i++) {
    alive[i]->lib->table.on_config_drop(alive[i]->lib->table.ctx, alive[i]->value);
    alive[i]->dropped = true;
  }
}

/* A mutant. */
static void unload_if_unused(lib *l) {
  for (size_t i = 0; i < live; i++)
    if (alive[i]->lib == l) return;
  lib_unload(l);
}

bool configs_drop(void) {
  for (;;) {
    pthread_mutex_lock(&lock);
    config *c = to_drop;
    if (c) to_drop = c->drop_next;
    pthread_mutex_unlock(&lock);
    if (!c) return !live;
    config *parent = c->parent;
    lib *l = c->lib;
    if (parent && !parent->dropped && BUG("parent-dropped-first")) {
      parent->lib->table.on_config_drop(parent->lib->table.ctx, parent->value);
      parent->dropped = true;
    }
    if (!c->dropped && !BUG("config-never-dropped")) l->table.on_config_drop(l->table.ctx, c->value);
    if (BUG("config-dropped-twice")) l->table.on_config_drop(l->table.ctx, c->value);
    for (size_t i = 0; i < live; i++)
      if (alive[i] == c) alive[i] = alive[--live];
    config_free(c);
    if (BUG("library-unloaded")) unload_if_unused(l);
    if (parent) config_unref(parent);
    if (!live) {
      free(alive);
      alive = NULL;
    }
  }
}

/* ---- what is in force -------------------------------------------------------------------------------------------- */

bool world_load(uint32_t in_flags, world **out) {
  world *w = zalloc(sizeof *w);
  w->specs = set.specs;
  bool ok = true;
  for (size_t i = 0; ok && i < set.specs->n_filters; i++) {
    ok = (w->instances[i] = make(set.specs->filters[i], set.specs->filters[i]->file, NULL, in_flags));
    if (ok) w->n++;
  }
  for (size_t k = 0; ok && k < set.specs->n_chains; k++)
    for (size_t i = 0; ok && i < set.specs->chains[k].n; i++) {
      const int of = set.specs->chains[k].filters[i];
      if (set.specs->chains[k].files[i])
        ok = (w->overrides[k][i] =
                  make(set.specs->filters[of], set.specs->chains[k].files[i], w->instances[of], in_flags));
    }
  *out = ok ? w : NULL;
  if (!ok) world_free(w);
  return ok;
}

void world_free(world *w) {
  if (!w) return;
  for (size_t k = 0; k < w->specs->n_chains; k++)
    for (size_t i = 0; i < w->specs->chains[k].n; i++)
      if (w->overrides[k][i]) config_unref(w->overrides[k][i]);
  for (size_t i = 0; i < w->n; i++) config_unref(w->instances[i]);
  free(w);
}

void world_serve(world *w) {
  pthread_mutex_lock(&lock);
  world *old = serving;
  serving = w;
  pthread_mutex_unlock(&lock);
  world_free(old);
}

size_t world_take(const char *path, config **chain) {
  pthread_mutex_lock(&lock);
  const specs *of = serving ? serving->specs : NULL;
  size_t n = 0, best = 0, found = MAX_CHAINS;
  for (size_t k = 0; of && k < of->n_chains; k++) {
    size_t len = strlen(of->chains[k].prefix);
    if (path && strncmp(path, of->chains[k].prefix, len)) continue;
    if (found == MAX_CHAINS || len > best) found = k, best = len;
  }
  if (found < MAX_CHAINS) {
    const chain_spec *c = &of->chains[found];
    for (; n < c->n; n++)
      chain[n] = serving->overrides[found][n] ? serving->overrides[found][n] : serving->instances[c->filters[n]];
  } else if (of && !of->n_chains) {
    for (; n < serving->n && n < MAX_PLACES; n++) chain[n] = serving->instances[n];
  }
  for (size_t i = 0; BUG("chain-in-reverse") && i < n / 2; i++) {
    config *c = chain[i];
    chain[i] = chain[n - 1 - i];
    chain[n - 1 - i] = c;
  }
  for (size_t i = 0; i < n; i++) config_ref(chain[i]);
  pthread_mutex_unlock(&lock);
  return n;
}
