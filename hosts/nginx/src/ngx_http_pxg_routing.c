/* SPDX-License-Identifier: Apache-2.0 */

/* ROUTE and METADATA (spec/10-operations.md, 16.5) as nginx knows them: variables, and the choice of a location. */

#include "ngx_http_pxg.h"

/* ---- Clusters ------------------------------------------------------------------------------------------------------ */

static ngx_http_upstream_srv_conf_t *ngx_http_pxg_upstream(ngx_http_request_t *r, const u_char *name, size_t len) {
  ngx_http_upstream_main_conf_t *m = ngx_http_get_module_main_conf(r, ngx_http_upstream_module);
  ngx_http_upstream_srv_conf_t **u = m->upstreams.elts;
  ngx_uint_t i;

  for (i = 0; i < m->upstreams.nelts; i++) {
    /* Without a configuration of its own it was made for an address in a directive. */
    if (u[i]->srv_conf && u[i]->host.len == len && ngx_memcmp(u[i]->host.data, name, len) == 0) return u[i];
  }
  return NULL;
}

bool ngx_http_pxg_op_cluster(void *data, const uint8_t *name, size_t len) {
  ngx_http_pxg_ctx_t *ctx = data;
  return ngx_http_pxg_upstream(ctx->request, name, len) != NULL;
}

void ngx_http_pxg_check_route(ngx_http_pxg_ctx_t *ctx) {
  const char *cluster = pxg_stream_cluster(ctx->stream, NULL);
  ngx_http_upstream_t *u = ctx->request->upstream;

  if (cluster == NULL || u == NULL || u->upstream == NULL) return;
  if (u->upstream->host.len == ngx_strlen(cluster) &&
      ngx_memcmp(u->upstream->host.data, cluster, u->upstream->host.len) == 0)
    return;
  ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                "proxy_golang: a guest chose the cluster \"%s\", and the location sent the request to \"%V\"; expected "
                "$proxy_golang_cluster in its proxy_pass",
                cluster, &u->upstream->host);
}

/* ---- Locations ----------------------------------------------------------------------------------------------------- */

ngx_int_t ngx_http_pxg_reroute(ngx_http_pxg_ctx_t *ctx) {
  ngx_http_request_t *r = ctx->request;
  ngx_http_core_main_conf_t *cmcf = ngx_http_get_module_main_conf(r, ngx_http_core_module);
  ngx_http_core_srv_conf_t *cscf = ngx_http_get_module_srv_conf(r, ngx_http_core_module);
  ngx_http_phase_handler_t *ph = cmcf->phase_engine.handlers;
  ngx_uint_t i;
  bool recompute;

  (void)pxg_stream_cluster(ctx->stream, &recompute);
  if (!recompute || ctx->rerouted) return NGX_DECLINED;
  ctx->rerouted = 1;
  for (i = 0; ph[i].checker != ngx_http_core_find_config_phase; i++) { /* Every server has this phase. */
  }
  /* As `rewrite ... last` does: unlike an internal redirect this opens no `internal` location. */
  r->valid_location = 1;
  r->loc_conf = cscf->ctx->loc_conf;
  r->phase_handler = (ngx_int_t)i;
  ngx_http_core_run_phases(r);
  return NGX_DONE;
}

/* ---- Variables ----------------------------------------------------------------------------------------------------- */

static ngx_int_t ngx_http_pxg_cluster_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r->main);
  const char *cluster = ctx && ctx->stream ? pxg_stream_cluster(ctx->stream, NULL) : NULL;

  v->valid = 1, v->no_cacheable = 0, v->not_found = 0;
  v->data = (u_char *)(uintptr_t)(cluster ? cluster : "");
  v->len = (unsigned)ngx_strlen(v->data);
  return NGX_OK;
}

typedef struct {
  const ngx_str_t *name;
  pxg_str value; /* ABSENT: not found. */
} ngx_http_pxg_wanted_t;

/* Names of variables have letters, digits and `_` only, and no case. */
static bool ngx_http_pxg_is_wanted(void *data, const char *key, size_t len, const pxg_str *value) {
  ngx_http_pxg_wanted_t *w = data;
  size_t i;

  if (len != w->name->len) return true;
  for (i = 0; i < len; i++) {
    u_char c = ngx_tolower((u_char)key[i]);
    if (c == '.' || c == '-' || c == '/') c = '_';
    if (c != w->name->data[i]) return true;
  }
  w->value = *value;
  return false;
}

static ngx_int_t ngx_http_pxg_metadata_variable(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data) {
  ngx_http_pxg_ctx_t *ctx = ngx_http_pxg_ctx(r->main);
  ngx_str_t name = *(ngx_str_t *)data;
  ngx_http_pxg_wanted_t w = {&name, {NULL, 0, PXG_STR_ABSENT}};

  name.data += sizeof("proxy_golang_metadata_") - 1, name.len -= sizeof("proxy_golang_metadata_") - 1;
  if (ctx && ctx->stream) pxg_stream_metadata(ctx->stream, ngx_http_pxg_is_wanted, &w);
  if (w.value.flags & PXG_STR_ABSENT) {
    v->not_found = 1;
    return NGX_OK;
  }
  /* A later event may put another value in its place. */
  v->data = ngx_pnalloc(r->pool, w.value.len + 1);
  if (v->data == NULL) return NGX_ERROR;
  ngx_memcpy(v->data, w.value.ptr, w.value.len);
  v->len = w.value.len;
  v->valid = 1, v->no_cacheable = 0, v->not_found = 0;
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_routing_variables(ngx_conf_t *cf) {
  static const struct {
    ngx_str_t name;
    ngx_http_get_variable_pt get;
    ngx_uint_t flags;
  } variables[] = {
      {ngx_string("proxy_golang_cluster"), ngx_http_pxg_cluster_variable, NGX_HTTP_VAR_NOCACHEABLE},
      {ngx_string("proxy_golang_metadata_"), ngx_http_pxg_metadata_variable,
       NGX_HTTP_VAR_NOCACHEABLE | NGX_HTTP_VAR_PREFIX},
  };
  ngx_http_variable_t *v;
  ngx_uint_t i;

  for (i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
    ngx_str_t name = variables[i].name;
    v = ngx_http_add_variable(cf, &name, variables[i].flags);
    if (v == NULL) return NGX_ERROR;
    v->get_handler = variables[i].get;
  }
  return NGX_OK;
}
