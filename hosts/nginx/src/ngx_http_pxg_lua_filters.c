/* SPDX-License-Identifier: Apache-2.0 */

/* Configurations that Lua uses. They are its own, also where proxy_golang_filter describes them: what a driver in Lua
 * can do differs from what the module does for a location, and a guest is told so by the features of its configuration.
 */

#include "ngx_http_pxg_lua.h"

#define NGX_HTTP_PXG_LUA_BIT(f) (1ull << ((f) % 64))
#define NGX_HTTP_PXG_LUA_BOTH(f) \
  (NGX_HTTP_PXG_LUA_BIT(PXG_F_##f##_REQUEST) | NGX_HTTP_PXG_LUA_BIT(PXG_F_##f##_RESPONSE))
#define NGX_HTTP_PXG_LUA_PEND(d)                                                                  \
  (NGX_HTTP_PXG_LUA_BIT(PXG_F_PEND_##d##_HEADERS) | NGX_HTTP_PXG_LUA_BIT(PXG_F_PEND_##d##_BODY) | \
   NGX_HTTP_PXG_LUA_BIT(PXG_F_PEND_##d##_TRAILERS))

/* What a Lua program that keeps to the library's rules does for a stream. Cleared: APPLY, STREAM_REPLY, FLUSH and
 * BODY_INJECT (nothing wakes a program that is not waiting), ROUTE, SUBREQUESTS, UPGRADE_BODY, WIRE_ORDER and L4 (it has
 * none of them), EXACT_EOS of responses (a filter of nginx does not know). */
static const uint64_t ngx_http_pxg_lua_features =
    NGX_HTTP_PXG_LUA_PEND(REQUEST) | NGX_HTTP_PXG_LUA_PEND(RESPONSE) | NGX_HTTP_PXG_LUA_BOTH(BODY_STREAM) |
    NGX_HTTP_PXG_LUA_BOTH(BODY_WHOLE) | NGX_HTTP_PXG_LUA_BOTH(BODY_OBSERVE) | NGX_HTTP_PXG_LUA_BOTH(HOLD) |
    NGX_HTTP_PXG_LUA_BOTH(RESIZE) | NGX_HTTP_PXG_LUA_BOTH(TRAILERS_IN) | NGX_HTTP_PXG_LUA_BOTH(TRAILERS_OUT) |
    NGX_HTTP_PXG_LUA_BIT(PXG_F_EXACT_EOS_REQUEST) | NGX_HTTP_PXG_LUA_BIT(PXG_F_PARTIAL_RELEASE) |
    NGX_HTTP_PXG_LUA_BIT(PXG_F_CONTINUE_GATE) | NGX_HTTP_PXG_LUA_BIT(PXG_F_REPLY_REFILTER) |
    NGX_HTTP_PXG_LUA_BIT(PXG_F_METADATA) | NGX_HTTP_PXG_LUA_BIT(PXG_F_ORPHAN) |
    NGX_HTTP_PXG_LUA_BIT(PXG_F_THREAD_AFFINE) | NGX_HTTP_PXG_LUA_BIT(PXG_F_BATCH_END) |
    NGX_HTTP_PXG_LUA_BIT(PXG_F_CONFIG_REJECT);

typedef struct {
  char *name;
  uint64_t without;
  bool attributes;
  pxg_config *config;
} ngx_http_pxg_lua_filter_t;

static ngx_http_pxg_lua_filter_t *ngx_http_pxg_lua_filters;
static int ngx_http_pxg_lua_n_filters;

static int ngx_http_pxg_lua_refuse(char *err, size_t *errlen, const char *text, const char *what) {
  u_char *p = ngx_snprintf((u_char *)err, *errlen, text, what);
  *errlen = (size_t)(p - (u_char *)err);
  return -1;
}

static int ngx_http_pxg_lua_find(const char *name, uint64_t without, bool attributes) {
  const ngx_http_pxg_lua_filter_t *f = ngx_http_pxg_lua_filters;
  int i;
  for (i = 0; i < ngx_http_pxg_lua_n_filters; i++)
    if (f[i].without == without && f[i].attributes == attributes && ngx_strcmp(f[i].name, name) == 0) return i;
  return -1;
}

/* Takes over the reference. */
static int ngx_http_pxg_lua_keep(const char *name, uint64_t without, bool attributes, pxg_config *c) {
  ngx_http_pxg_lua_filter_t *all;
  int i = ngx_http_pxg_lua_find(name, without, attributes);

  if (i >= 0) {
    pxg_config_unref(ngx_http_pxg_lua_filters[i].config);
    ngx_http_pxg_lua_filters[i].config = c;
    if (pxg_configs_to_drop()) (void)pxg_configs_drop();
    return i;
  }
  i = ngx_http_pxg_lua_n_filters;
  all = realloc(ngx_http_pxg_lua_filters, ((size_t)i + 1) * sizeof(*all));
  if (all == NULL) return pxg_config_unref(c), -1;
  ngx_http_pxg_lua_filters = all;
  all[i] = (ngx_http_pxg_lua_filter_t){.name = strdup(name), .without = without, .attributes = attributes, .config = c};
  if (all[i].name == NULL) return pxg_config_unref(c), -1;
  return ngx_http_pxg_lua_n_filters++;
}

static int ngx_http_pxg_lua_make(pxg_config_spec *spec, uint64_t without, bool attributes, char *err, size_t *errlen) {
  pxg_config *c;
  pxg_error why;
  int i;

  ngx_memzero(spec->features, sizeof(spec->features));
  spec->features[0] = ngx_http_pxg_lua_features & pxg_host_driver()->features[0] & ~without;
  spec->no_attributes = !attributes;
  c = ngx_http_pxg_config_new(spec, &why);
  if (c == NULL) return ngx_http_pxg_lua_refuse(err, errlen, "%s", why.text);
  i = ngx_http_pxg_lua_keep(spec->instance, without, attributes, c);
  return i >= 0 ? i : ngx_http_pxg_lua_refuse(err, errlen, "no memory%s", "");
}

/* The engine runs in workers only: a guest that was loaded before the fork could not serve after it (PXG-LOAD-004). While
 * the first configuration is read nginx does not say yet that this is the master, but there are no connections. */
static bool ngx_http_pxg_lua_ready(char *err, size_t *errlen) {
  if ((ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE) || ngx_cycle->connections == NULL)
    return ngx_http_pxg_lua_refuse(err, errlen,
                                   "guests run in worker processes: call this in init_worker_by_lua* or later%s", ""),
           false;
  if (ngx_http_pxg_worker_start((ngx_cycle_t *)ngx_cycle) != NGX_OK)
    return ngx_http_pxg_lua_refuse(err, errlen, "the host could not start: see the error log%s", ""), false;
  (void)ngx_http_pxg_worker();
  return true;
}

int ngx_http_pxg_lua_filter(const char *name, uint64_t without, int attributes, char *err, size_t *errlen) {
  ngx_http_pxg_main_conf_t *m;
  ngx_http_pxg_filter_t **f;
  pxg_config_spec spec;
  ngx_uint_t i;
  int at = ngx_http_pxg_lua_find(name, without, attributes != 0);

  if (at >= 0) return at;
  if (!ngx_http_pxg_lua_ready(err, errlen)) return -1;
  m = ngx_http_cycle_get_module_main_conf(ngx_cycle, ngx_http_proxy_golang_module);
  f = m ? m->filters.elts : NULL;
  for (i = 0; m && i < m->filters.nelts; i++) {
    if (ngx_strcmp(f[i]->name.data, name) != 0) continue;
    ngx_http_pxg_filter_spec(f[i], &spec);
    spec.validate_only = false;
    return ngx_http_pxg_lua_make(&spec, without, attributes != 0, err, errlen);
  }
  return ngx_http_pxg_lua_refuse(
      err, errlen, "no filter \"%s\": define it with proxy_golang_filter in nginx.conf, or load it before", name);
}

int ngx_http_pxg_lua_load(const ngx_http_pxg_lua_spec_t *l, char *err, size_t *errlen) {
  pxg_config_spec spec;
  char path[NGX_MAX_PATH];
  pxg_policy *p;
  u_char *end;

  if (!ngx_http_pxg_lua_ready(err, errlen)) return -1;
  ngx_memzero(&spec, sizeof(spec));
  end = l->guest[0] == '/' ? ngx_snprintf((u_char *)path, sizeof(path), "%s%Z", l->guest)
                           : ngx_snprintf((u_char *)path, sizeof(path), "%V%s%Z", &ngx_cycle->prefix, l->guest);
  if (end[-1] != '\0') return ngx_http_pxg_lua_refuse(err, errlen, "the path of the guest is too long%s", "");
  spec.library = path;
  spec.filter = l->filter, spec.instance = l->name;
  spec.bytes = l->config, spec.n_bytes = l->n_config;
  p = &spec.policy;
  pxg_policy_default(p);
  p->fail_open = l->fail_open != 0;
  if (l->failure_status) p->fail_status = l->failure_status;
  if (l->max_pending) p->max_pending = l->max_pending;
  if (l->pend_limit_ns) p->pend_limit_ns = l->pend_limit_ns;
  if (l->hold_limit_ns) p->hold_limit_ns = l->hold_limit_ns;
  if (l->max_body) p->max_body_limit = l->max_body;
  p->pend_default_ns = ngx_min(p->pend_default_ns, p->pend_limit_ns);
  p->max_body_default = ngx_min(p->max_body_default, p->max_body_limit);
  return ngx_http_pxg_lua_make(&spec, l->without, l->attributes != 0, err, errlen);
}

pxg_config *ngx_http_pxg_lua_config(int filter) {
  return filter >= 0 && filter < ngx_http_pxg_lua_n_filters ? ngx_http_pxg_lua_filters[filter].config : NULL;
}

void ngx_http_pxg_lua_filters_exit(void) {
  int i;
  for (i = 0; i < ngx_http_pxg_lua_n_filters; i++) {
    pxg_config_unref(ngx_http_pxg_lua_filters[i].config);
    free(ngx_http_pxg_lua_filters[i].name);
  }
  free(ngx_http_pxg_lua_filters);
  ngx_http_pxg_lua_filters = NULL, ngx_http_pxg_lua_n_filters = 0;
}
