/* SPDX-License-Identifier: Apache-2.0 */

/* Configurations: made, counted and dropped (chapter 4). */

#define _XOPEN_SOURCE 700

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "pxg_loading.h"

#define SCRATCH_BYTES 8192
#define INSTANCE_MAX 128

/* Inside the lock of config-thread calls: what has not been dropped yet, for the uniqueness of values. */
static pxg_config *live;
static size_t n_live;

/* What has no reference left; pushed by any thread, taken as a whole. */
static _Atomic(pxg_config *) to_drop;

/* ---- Policy ------------------------------------------------------------------------------------------------------ */

void pxg_policy_default(pxg_policy *p) {
  const uint64_t ms = 1000000, s = 1000 * ms;
  *p = (pxg_policy){.fail_status = 500,
                    .pend_default_ns = 5 * s,
                    .pend_limit_ns = 60 * s,
                    .hold_limit_ns = 30 * s,
                    .hold_time_ns = 100 * ms,
                    .max_pending = 4096,
                    .max_body_default = 1u << 20,
                    .max_body_limit = 64u << 20,
                    .max_ops = 4096,
                    .max_fields = 256,
                    .max_bytes = 64u << 10};
}

static void free_list(const char *const *list, size_t n) {
  for (size_t i = 0; list && i < n; i++) free((void *)(uintptr_t)list[i]);
  free((void *)(uintptr_t)list);
}

static bool copy_list(const char *const **to, size_t n) {
  const char *const *from = *to;
  char **copy = calloc(n + 1, sizeof *copy);
  *to = (const char *const *)copy;
  for (size_t i = 0; copy && i < n; i++)
    if (!(copy[i] = pxg_text_copy(from[i], strlen(from[i])))) return false;
  return copy;
}

static bool in_list(const char *const *list, size_t n, const void *name, size_t len) {
  for (size_t i = 0; i < n; i++)
    if (strlen(list[i]) == len && !memcmp(list[i], name, len)) return true;
  return false;
}

bool pxg_config_may_cluster(const pxg_config *c, const void *name, size_t len) {
  return !c->policy.n_clusters || in_list(c->policy.clusters, c->policy.n_clusters, name, len);
}

bool pxg_config_may_namespace(const pxg_config *c, const void *name, size_t len) {
  return (strlen(c->instance) == len && !memcmp(c->instance, name, len)) ||
         in_list(c->policy.namespaces, c->policy.n_namespaces, name, len);
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static void config_free(pxg_config *c) {
  for (size_t i = 0; i < c->n_attrs; i++) free((void *)(uintptr_t)c->attrs[i].name);
  for (size_t i = 0; i < c->n_projection; i++) free((void *)(uintptr_t)c->projection[i].name);
  free(c->attrs);
  free(c->projection);
  free_list(c->policy.clusters, c->policy.n_clusters);
  free_list(c->policy.namespaces, c->policy.n_namespaces);
  free((void *)c->pending);
  free((void *)(uintptr_t)c->filter);
  free((void *)(uintptr_t)c->instance);
  free(c);
}

static bool spec_ok(const pxg_config_spec *s, pxg_error *why) {
  static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/";
  const pxg_driver *d = pxg_host_driver();
  size_t len = strlen(s->instance);
  if (!len || len > INSTANCE_MAX || s->instance[strspn(s->instance, allowed)])
    return pxg_fail(why, PXG_E_ARG,
                    "name: found \"%.*s\", expected 1 to %u characters of a-z A-Z 0-9 _ - / for an instance", 160,
                    s->instance, INSTANCE_MAX);
  for (int i = 0; i < 4; i++)
    if (s->features[i] & ~d->features[i])
      return pxg_fail(why, PXG_E_ARG,
                      "features[%d]: found 0x%llx, expected a subset of the host's 0x%llx [PXG-NEG-008]", i,
                      (unsigned long long)s->features[i], (unsigned long long)d->features[i]);
  if (s->policy.fail_status < 500 || s->policy.fail_status > 599)
    return pxg_fail(why, PXG_E_ARG, "failure status: found %u, expected 500 to 599", s->policy.fail_status);
  return true;
}

static bool parent_ok(const pxg_config_spec *s, const pxg_guest_lib *lib, pxg_error *why) {
  const pxg_config *p = s->parent;
  if (!p) return true;
  if (p->parent) return pxg_fail(why, PXG_E_ARG, "parent: found an override, expected a configuration with parent 0");
  if (p->lib != lib || strcmp(p->filter, s->filter))
    return pxg_fail(why, PXG_E_ARG,
                    "parent: found filter %s of %s, expected filter %s of %s, as an override is of the same filter",
                    p->filter, p->lib->path, s->filter, lib->path);
  if (strcmp(p->instance, s->instance))
    return pxg_fail(why, PXG_E_ARG, "name: found %s for an override, expected its parent's, %s", s->instance,
                    p->instance);
  return true;
}

static pxg_config *config_alloc(const pxg_config_spec *s, pxg_guest_lib *lib) {
  pxg_config *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  atomic_init(&c->refs, 1);
  c->lib = lib;
  memcpy(c->features, s->features, sizeof c->features);
  c->no_attributes = s->no_attributes;
  c->policy = s->policy;
  bool ok = copy_list(&c->policy.clusters, s->policy.n_clusters);
  ok = copy_list(&c->policy.namespaces, s->policy.n_namespaces) && ok;
  c->filter = pxg_text_copy(s->filter, strlen(s->filter));
  c->instance = pxg_text_copy(s->instance, strlen(s->instance));
  c->pending = calloc(pxg_host_driver()->n_workers, sizeof *c->pending);
  if (ok && c->filter && c->instance && c->pending) return c;
  config_free(c);
  return NULL;
}

static bool value_ok(const pxg_guest_lib *lib, uint64_t value, pxg_error *why) {
  bool used = false;
  for (const pxg_config *c = live; c; c = c->next_live) used |= c->lib == lib && c->value == value;
  if (value && !used) return true;
  return pxg_fail(why, PXG_E_ARG, "config: found %llu, %s, expected one that is not 0 and not in use [PXG-CFG-008]",
                  (unsigned long long)value, used ? "the value of a live configuration" : "which is never a value");
}

/* The guest's own text, or the names that it could have meant. */
static bool refused(const pxg_config *c, int32_t status, const pxg_config_out *o, const pxg_call *lent,
                    const char *said, pxg_error *why) {
  char text[1024];
  size_t n = 0;
  text[0] = 0;
  if (o->error.ptr && !pxg_call_overruns(lent, o->error.ptr, o->error.len))
    n = pxg_clean(text, sizeof text, o->error.ptr, o->error.len);
  if (!n && *said) n = pxg_clean(text, sizeof text, said, strlen(said));
  if (n || status != PXG_E_NOTFOUND) return pxg_fail(why, status, "%s", n ? text : "the guest does not say why");
  for (uint64_t i = 0; i < c->lib->table.n_filters && n + 160 < sizeof text; i++) {
    const pxg_str *name = &c->lib->table.filters[i];
    if (i) text[n++] = ',', text[n++] = ' ';
    n += pxg_clean(text + n, 128, name->ptr, name->len);
  }
  return pxg_fail(why, status, "filter: found %s, expected one of %s [PXG-CFG-001]", c->filter, text);
}

/* One on_config_new. On true the configuration lives in the guest. */
static bool ask(pxg_config *c, const pxg_config_spec *s, uint8_t *scratch, pxg_error *why) {
  const pxg_guest *g = &c->lib->table;
  pxg_config_in in = {.size = sizeof in,
                      .flags = s->validate_only ? PXG_CFG_IN_VALIDATE_ONLY : 0,
                      .filter = {(const uint8_t *)c->filter, (uint32_t)strlen(c->filter), 0},
                      .name = {(const uint8_t *)c->instance, (uint32_t)strlen(c->instance), 0},
                      .bytes = {s->bytes, s->n_bytes, 0},
                      .parent = s->parent ? s->parent->value : 0};
  memcpy(in.features, c->features, sizeof in.features);
  pxg_call lent = {.scratch = scratch, .scratch_cap = SCRATCH_BYTES, .config = c};
  pxg_config_out out = {.size = sizeof out, .scratch = scratch, .scratch_cap = SCRATCH_BYTES};
  char said[512];
  pxg_log_capture(said, sizeof said);
  pxg_call_begin(&lent);
  int32_t status = g->on_config_new(g->ctx, &in, &out);
  pxg_log_capture(NULL, 0);
  bool made = status >= 0 && value_ok(c->lib, out.config, why);
  bool ok = made && pxg_declared_ok(c, &out, &lent, why);
  if (status < 0) refused(c, status, &out, &lent, said, why);
  if (ok && !pxg_declared_take(c, &out)) ok = pxg_fail(why, PXG_E_INTERNAL, "out of memory");
  pxg_call_end(&lent);
  /* A value of 0 or of another configuration is not dropped: that would reach nobody, or somebody else (4.1). */
  if (made && !ok) g->on_config_drop(g->ctx, out.config);
  return ok;
}

static bool make(const pxg_config_spec *s, pxg_guest_lib *lib, pxg_config **out, pxg_error *why) {
  char missing[1024];
  pxg_features_missing(missing, sizeof missing, lib->table.required, s->features);
  if (*missing)
    return pxg_fail(why, PXG_E_UNSUPPORTED,
                    "features: found none of %s, expected all that the library requires [PXG-NEG-003]", missing);
  if (!parent_ok(s, lib, why)) return false;
  void *scratch = NULL;
  pxg_config *c = config_alloc(s, lib);
  bool ok = c && !posix_memalign(&scratch, 16, SCRATCH_BYTES);
  ok = ok ? ask(c, s, scratch, why) : pxg_fail(why, PXG_E_INTERNAL, "out of memory");
  free(scratch);
  if (!ok) {
    if (c) config_free(c);
    return false;
  }
  c->counters = pxg_zone_counters(s->validate_only ? NULL : pxg_host_driver()->zone, lib->name, c->filter, c->instance);
  if (s->parent) c->parent = pxg_config_ref(s->parent);
  c->next_live = live;
  live = c;
  n_live++;
  *out = c;
  return true;
}

pxg_config *pxg_config_new(const pxg_config_spec *s, pxg_error *why) {
  pxg_error own;
  pxg_config *c = NULL;
  if (!why) why = &own;
  *why = (pxg_error){.status = PXG_OK};
  pxg_error cause = {.status = PXG_OK};
  if (!pxg_config_enter(why)) return NULL;
  pxg_guest_lib *lib = spec_ok(s, &cause) ? pxg_guest_load_inside(s->library, &cause) : NULL;
  if (lib) make(s, lib, &c, &cause);
  pxg_config_leave();
  if (!c) {
    pxg_fail(why, cause.status, "guest=%s filter=%s config=%s file=%s: %s (%d): %s", lib ? lib->name : "not loaded",
             s->filter, s->instance, s->library, pxg_status_name(cause.status), cause.status, cause.text);
    if (!s->validate_only) pxg_say(PXG_LOG_ERROR, "%s", why->text);
  }
  return c;
}

/* ---- Dropping ---------------------------------------------------------------------------------------------------- */

pxg_config *pxg_config_ref(pxg_config *c) {
  atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
  return c;
}

void pxg_config_unref(pxg_config *c) {
  if (atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1) return;
  pxg_config *first = atomic_load_explicit(&to_drop, memory_order_relaxed);
  do c->next_drop = first;
  while (!atomic_compare_exchange_weak_explicit(&to_drop, &first, c, memory_order_release, memory_order_relaxed));
}

bool pxg_configs_to_drop(void) { return atomic_load_explicit(&to_drop, memory_order_relaxed); }

static void drop(pxg_config *c) {
  pxg_config *parent = c->parent, **at = &live;
  c->lib->table.on_config_drop(c->lib->table.ctx, c->value);
  while (*at != c) at = &(*at)->next_live;
  *at = c->next_live;
  n_live--;
  pxg_visitors_wait();
  config_free(c);
  /* The parent comes onto the queue only now, behind its child (PXG-CFG-003). */
  if (parent) pxg_config_unref(parent);
}

size_t pxg_configs_drop(void) {
  pxg_error why;
  if (!pxg_config_enter(&why)) {
    pxg_say(PXG_LOG_ERROR, "configurations cannot be dropped here: %s", why.text);
    return SIZE_MAX;
  }
  for (pxg_config *c; (c = atomic_exchange_explicit(&to_drop, NULL, memory_order_acquire));) {
    pxg_config *in_order = NULL;
    for (pxg_config *next; c; c = next) {
      next = c->next_drop;
      c->next_drop = in_order;
      in_order = c;
    }
    for (pxg_config *next; in_order; in_order = next) {
      next = in_order->next_drop;
      drop(in_order);
    }
  }
  size_t left = n_live;
  pxg_config_leave();
  return left;
}
