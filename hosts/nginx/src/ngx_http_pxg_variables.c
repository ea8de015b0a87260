/* SPDX-License-Identifier: Apache-2.0 */

/* Variables: what became of a request, and what its guests took. */

#include "ngx_http_pxg.h"

static ngx_int_t ngx_http_pxg_verdict(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_pxg_details(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_pxg_time(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_pxg_time_of(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data);

#define NGX_HTTP_PXG_TIME_OF "proxy_golang_time_"

static ngx_http_variable_t ngx_http_pxg_vars[] = {
    {ngx_string("proxy_golang_verdict"), NULL, ngx_http_pxg_verdict, 0, NGX_HTTP_VAR_NOCACHEABLE, 0},
    {ngx_string("proxy_golang_details"), NULL, ngx_http_pxg_details, 0, NGX_HTTP_VAR_NOCACHEABLE, 0},
    {ngx_string("proxy_golang_time"), NULL, ngx_http_pxg_time, 0, NGX_HTTP_VAR_NOCACHEABLE, 0},
    {ngx_string(NGX_HTTP_PXG_TIME_OF), NULL, ngx_http_pxg_time_of, 0, NGX_HTTP_VAR_NOCACHEABLE | NGX_HTTP_VAR_PREFIX,
     0},
};

ngx_int_t ngx_http_pxg_add_variables(ngx_conf_t *cf) {
  ngx_http_variable_t *v;
  size_t i;

  for (i = 0; i < sizeof(ngx_http_pxg_vars) / sizeof(ngx_http_pxg_vars[0]); i++) {
    v = ngx_http_add_variable(cf, &ngx_http_pxg_vars[i].name, ngx_http_pxg_vars[i].flags);
    if (v == NULL) return NGX_ERROR;
    v->get_handler = ngx_http_pxg_vars[i].get_handler;
  }
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_value(ngx_http_variable_value_t *v, const char *text, size_t len) {
  v->data = (u_char *)(uintptr_t)text;
  v->len = (unsigned)len;
  v->valid = 1, v->no_cacheable = 0, v->not_found = text == NULL;
  return NGX_OK;
}

/* Null: the request is no stream. */
static pxg_stream *ngx_http_pxg_stream_of(ngx_http_request_t *r, ngx_http_pxg_ctx_t **ctx) {
  *ctx = ngx_http_pxg_ctx(r->main);
  return *ctx ? (*ctx)->stream : NULL;
}

/* One place of a stream, or of a request that got none for its one filter. */
static ngx_uint_t ngx_http_pxg_place(ngx_http_request_t *r, size_t i, pxg_place_info *place) {
  ngx_http_pxg_ctx_t *ctx;
  pxg_stream *s = ngx_http_pxg_stream_of(r, &ctx);
  ngx_http_pxg_glance_t *g = s || i ? NULL : ngx_http_pxg_glance(r->main);

  if (s) return pxg_stream_place(s, i, place);
  if (g) *place = (pxg_place_info){.config = g->engine.config, .time_ns = g->engine.time_ns};
  return g != NULL;
}

static ngx_int_t ngx_http_pxg_verdict(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data) {
  ngx_http_pxg_ctx_t *ctx;
  pxg_stream *s = ngx_http_pxg_stream_of(r, &ctx);
  ngx_http_pxg_glance_t *g = s ? NULL : ngx_http_pxg_glance(r->main);
  ngx_uint_t failed = 0, replied = 0;
  pxg_place_info place;
  const char *word;
  size_t i;

  if (g) word = g->reset ? "reset" : g->engine.answered ? "passed" : "aborted";
  if (s == NULL) return ngx_http_pxg_value(v, g ? word : NULL, g ? ngx_strlen(word) : 0);
  for (i = 0; pxg_stream_place(s, i, &place); i++) failed |= place.failed, replied |= place.replied;
  word = ctx->reset                        ? "reset"
         : replied                         ? "replied"
         : failed && pxg_stream_details(s) ? "failed"
         : failed                          ? "bypassed"
         : ctx->request_head               ? "passed"
                                           : "aborted";
  return ngx_http_pxg_value(v, word, ngx_strlen(word));
}

static ngx_int_t ngx_http_pxg_details(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data) {
  ngx_http_pxg_ctx_t *ctx;
  pxg_stream *s = ngx_http_pxg_stream_of(r, &ctx);
  const char *text = s ? pxg_stream_details(s) : NULL;
  return ngx_http_pxg_value(v, text, text ? ngx_strlen(text) : 0);
}

/* Seconds with microseconds, as $request_time has them with milliseconds. */
static ngx_int_t ngx_http_pxg_seconds(ngx_http_request_t *r, ngx_http_variable_value_t *v, uint64_t ns) {
  u_char *p = ngx_pnalloc(r->pool, NGX_INT64_LEN + sizeof(".000000")), *last;
  uint64_t us = (ns + 500) / 1000;

  if (p == NULL) return NGX_ERROR;
  last = ngx_sprintf(p, "%uL.%06uL", us / 1000000, us % 1000000);
  return ngx_http_pxg_value(v, (char *)p, (size_t)(last - p));
}

static ngx_int_t ngx_http_pxg_time(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data) {
  pxg_place_info place;
  uint64_t ns = 0;
  size_t i;

  for (i = 0; ngx_http_pxg_place(r, i, &place); i++) ns += place.time_ns;
  return i ? ngx_http_pxg_seconds(r, v, ns) : ngx_http_pxg_value(v, NULL, 0);
}

/* Names of variables have no `-` and `/`. */
static ngx_uint_t ngx_http_pxg_is_named(const char *instance, const u_char *name, size_t len) {
  size_t i;

  for (i = 0; i < len && instance[i]; i++) {
    u_char c = ngx_tolower((u_char)instance[i]);
    if ((c == '-' || c == '/' ? '_' : c) != name[i]) return 0;
  }
  return i == len && instance[i] == '\0';
}

static ngx_int_t ngx_http_pxg_time_of(ngx_http_request_t *r, ngx_http_variable_value_t *v, uintptr_t data) {
  ngx_str_t *name = (ngx_str_t *)data;
  size_t i, skip = sizeof(NGX_HTTP_PXG_TIME_OF) - 1;
  ngx_uint_t found = 0;
  pxg_place_info place;
  uint64_t ns = 0;

  for (i = 0; ngx_http_pxg_place(r, i, &place); i++)
    if (ngx_http_pxg_is_named(place.config->instance, name->data + skip, name->len - skip))
      ns += place.time_ns, found = 1;
  return found ? ngx_http_pxg_seconds(r, v, ns) : ngx_http_pxg_value(v, NULL, 0);
}
