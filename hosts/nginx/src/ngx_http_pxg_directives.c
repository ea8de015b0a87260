/* SPDX-License-Identifier: Apache-2.0 */

/* Directives, their inheritance, and the chain that results for each location. */

#include "ngx_http_pxg.h"

static char *ngx_http_pxg_use(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

ngx_command_t ngx_http_pxg_commands[] = {

    {ngx_string("proxy_golang_filter"), NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE1, ngx_http_pxg_filter_block,
     NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL},

    {ngx_string("proxy_golang_metrics_zone"), NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1, ngx_http_pxg_metrics_zone,
     NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL},

    {ngx_string("proxy_golang"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_1MORE,
     ngx_http_pxg_use, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},

    {ngx_string("proxy_golang_override"),
     NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE1,
     ngx_http_pxg_override_block, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},

    {ngx_string("proxy_golang_strip_request_fields"),
     NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_1MORE, ngx_http_pxg_strip_fields,
     NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},

    {ngx_string("proxy_golang_status"), NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS | NGX_CONF_TAKE1,
     ngx_http_pxg_status, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},

    ngx_null_command};

void *ngx_http_pxg_create_main_conf(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_pcalloc(cf->pool, sizeof(*m));
  if (m == NULL || ngx_array_init(&m->filters, cf->pool, 4, sizeof(ngx_http_pxg_filter_t *)) != NGX_OK ||
      ngx_array_init(&m->overrides, cf->pool, 4, sizeof(ngx_http_pxg_filter_t *)) != NGX_OK)
    return NULL;
  m->log_level = PXG_LOG_OFF;
  m->zone_size = NGX_CONF_UNSET_SIZE;
  return m;
}

char *ngx_http_pxg_init_main_conf(ngx_conf_t *cf, void *conf) {
  return ngx_http_pxg_add_zone(cf, conf) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}

void *ngx_http_pxg_create_loc_conf(ngx_conf_t *cf) {
  ngx_http_pxg_loc_conf_t *l = ngx_pcalloc(cf->pool, sizeof(*l));
  if (l) l->declared = l->strip = NGX_CONF_UNSET_PTR;
  return l;
}

ngx_http_pxg_filter_t *ngx_http_pxg_find(const ngx_array_t *filters, const ngx_str_t *name) {
  ngx_http_pxg_filter_t **f = filters->elts;
  ngx_uint_t i;
  for (i = 0; i < filters->nelts; i++)
    if (f[i]->name.len == name->len && ngx_memcmp(f[i]->name.data, name->data, name->len) == 0) return f[i];
  return NULL;
}

/* ---- Inheritance --------------------------------------------------------------------------------------------------- */

/* The innermost block for a NAME counts; others are inherited beside it. */
static ngx_int_t ngx_http_pxg_inherit_overrides(ngx_conf_t *cf, const ngx_http_pxg_loc_conf_t *prev,
                                                ngx_http_pxg_loc_conf_t *conf) {
  ngx_http_pxg_filter_t **f, **slot;
  ngx_uint_t i;

  if (prev->overrides == NULL) return NGX_OK;
  if (conf->overrides == NULL) {
    conf->overrides = prev->overrides;
    return NGX_OK;
  }
  f = prev->overrides->elts;
  for (i = 0; i < prev->overrides->nelts; i++) {
    if (ngx_http_pxg_find(conf->overrides, &f[i]->name)) continue;
    slot = ngx_array_push(conf->overrides);
    if (slot == NULL) return NGX_ERROR;
    *slot = f[i];
  }
  return NGX_OK;
}

/* What a place of the chain is in this location. */
static ngx_http_pxg_filter_t *ngx_http_pxg_effective(const ngx_http_pxg_loc_conf_t *l, ngx_http_pxg_filter_t *f) {
  ngx_http_pxg_filter_t *o = l->overrides ? ngx_http_pxg_find(l->overrides, &f->name) : NULL;

  if (o == NULL) return f;
  o->used = 1;
  if (o->disabled) return NULL;
  return o->plain ? f : o;
}

/* The core module's part of this location has been merged before. */
static void ngx_http_pxg_note_level(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_http_core_loc_conf_t *clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

  m->log_level = ngx_min(m->log_level, ngx_http_pxg_log_level(clcf->error_log));
}

char *ngx_http_pxg_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child) {
  ngx_http_pxg_loc_conf_t *prev = parent, *conf = child;
  ngx_http_pxg_filter_t **f, **slot, *e;
  ngx_uint_t i;

  ngx_http_pxg_note_level(cf);
  ngx_conf_merge_ptr_value(conf->declared, prev->declared, NULL);
  ngx_conf_merge_ptr_value(conf->strip, prev->strip, NULL);
  if (ngx_http_pxg_inherit_overrides(cf, prev, conf) != NGX_OK) return NGX_CONF_ERROR;
  conf->chain = NULL;
  if (conf->declared == NULL) return NGX_CONF_OK;
  if (conf->overrides == NULL) {
    conf->chain = conf->declared;
    return NGX_CONF_OK;
  }
  conf->chain = ngx_array_create(cf->pool, conf->declared->nelts, sizeof(ngx_http_pxg_filter_t *));
  if (conf->chain == NULL) return NGX_CONF_ERROR;
  f = conf->declared->elts;
  for (i = 0; i < conf->declared->nelts; i++) {
    e = ngx_http_pxg_effective(conf, f[i]);
    if (e == NULL) continue;
    slot = ngx_array_push(conf->chain);
    *slot = e;
  }
  if (conf->chain->nelts == 0) conf->chain = NULL;
  return NGX_CONF_OK;
}

char *ngx_http_pxg_off_alone(ngx_conf_t *cf) {
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"off\" stands beside other names in \"%V\", expected it alone or not at all",
                     (ngx_str_t *)cf->args->elts);
  return NGX_CONF_ERROR;
}

/* ---- proxy_golang NAME... | off ------------------------------------------------------------------------------------ */

static char *ngx_http_pxg_use(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_http_pxg_loc_conf_t *l = conf;
  ngx_http_pxg_filter_t *f, **slot;
  ngx_str_t *v = cf->args->elts;
  ngx_uint_t i, n = cf->args->nelts - 1;

  if (l->declared != NGX_CONF_UNSET_PTR) return "is duplicate";
  if (n == 1 && ngx_strcmp(v[1].data, "off") == 0) {
    l->declared = NULL;
    return NGX_CONF_OK;
  }
  if (n > PXG_MAX_PLACES) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "\"proxy_golang\" names %ui filters, expected at most %ui for one location", n,
                       (ngx_uint_t)PXG_MAX_PLACES);
    return NGX_CONF_ERROR;
  }
  l->declared = ngx_array_create(cf->pool, n, sizeof(ngx_http_pxg_filter_t *));
  if (l->declared == NULL) return NGX_CONF_ERROR;
  for (i = 1; i <= n; i++) {
    if (ngx_strcmp(v[i].data, "off") == 0) return ngx_http_pxg_off_alone(cf);
    f = ngx_http_pxg_find(&m->filters, &v[i]);
    if (f == NULL) {
      ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                         "unknown filter \"%V\" in \"proxy_golang\": define it before with \"proxy_golang_filter %V "
                         "{ ... }\" in http",
                         &v[i], &v[i]);
      return NGX_CONF_ERROR;
    }
    f->used = 1;
    slot = ngx_array_push(l->declared);
    *slot = f;
  }
  return NGX_CONF_OK;
}
