/* SPDX-License-Identifier: Apache-2.0 */

/* What the engine asks of this host for a stream: fields, trailers, attributes, routes. */

#include "ngx_http_pxg.h"

static pxg_edit ngx_http_pxg_edit(ngx_int_t rc) {
  return rc == NGX_OK ? PXG_EDIT_DONE : rc == NGX_DECLINED ? PXG_EDIT_GONE : PXG_EDIT_NO_MEMORY;
}

/* The list that an operation means. An operation may come before any view was asked for. Null: trailers of a request,
 * which nginx drops. */
static ngx_http_pxg_fields_t *ngx_http_pxg_list_of(void *data, int d, bool trailers) {
  ngx_http_pxg_ctx_t *ctx = data;
  ngx_http_pxg_fields_t *f = trailers ? &ctx->trailers : &ctx->fields[d];

  if (trailers && d == PXG_DIR_REQUEST) return NULL;
  f->request = ctx->request;
  f->direction = (ngx_uint_t)d;
  f->trailers = trailers;
  return f;
}

static bool ngx_http_pxg_op_view(void *data, int d, bool trailers, const pxg_field **at, size_t *n) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);

  *at = NULL, *n = 0;
  if (f == NULL) return true;
  if (ngx_http_pxg_fields_view(f, f->request, f->direction) != NGX_OK) return false;
  *at = f->fields, *n = f->n;
  return true;
}

static pxg_edit ngx_http_pxg_op_set(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);
  return f ? ngx_http_pxg_edit(ngx_http_pxg_fields_set(f, name, value)) : PXG_EDIT_GONE;
}

static pxg_edit ngx_http_pxg_op_add(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);
  return f ? ngx_http_pxg_edit(ngx_http_pxg_fields_add(f, name, value)) : PXG_EDIT_GONE;
}

static pxg_edit ngx_http_pxg_op_remove(void *data, int d, bool trailers, const pxg_str *name) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);
  return f ? ngx_http_pxg_edit(ngx_http_pxg_fields_delete(f, name)) : PXG_EDIT_GONE;
}

static pxg_edit ngx_http_pxg_op_set_at(void *data, int d, bool trailers, size_t index, const pxg_str *value) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);
  return f ? ngx_http_pxg_edit(ngx_http_pxg_fields_set_at(f, index, value)) : PXG_EDIT_GONE;
}

static pxg_edit ngx_http_pxg_op_remove_at(void *data, int d, bool trailers, size_t index) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);
  return f ? ngx_http_pxg_edit(ngx_http_pxg_fields_delete_at(f, index)) : PXG_EDIT_GONE;
}

static bool ngx_http_pxg_op_commit(void *data, int d, bool trailers) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, d, trailers);
  return f == NULL || ngx_http_pxg_fields_commit(f) == NGX_OK;
}

static bool ngx_http_pxg_op_length(void *data, int d, int64_t length) {
  ngx_http_pxg_ctx_t *ctx = data;
  if (d == PXG_DIR_REQUEST && length < 0) ctx->resized = 1;
  return ngx_http_pxg_fields_length(ctx->request, (ngx_uint_t)d, (off_t)length) == NGX_OK;
}

static bool ngx_http_pxg_op_replace(void *data, uint32_t status, const pxg_field *fields, size_t n) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, PXG_DIR_RESPONSE, false);
  ngx_http_request_t *r = f->request;
  size_t i;

  r->method = ((ngx_http_pxg_ctx_t *)data)->method;
  ngx_http_clean_header(r);
  r->headers_out.status = status;
  r->headers_out.content_type_len = 0;
  r->headers_out.content_type_lowcase = NULL;
  r->allow_ranges = 0;
  r->err_status = 0;
  if (ngx_list_init(&r->headers_out.headers, r->pool, 20, sizeof(ngx_table_elt_t)) != NGX_OK) return false;
  for (i = 0; i < n; i++)
    if (ngx_http_pxg_fields_add(f, &fields[i].name, &fields[i].value) == NGX_ERROR) return false;
  return ngx_http_pxg_fields_commit(f) == NGX_OK;
}

static bool ngx_http_pxg_op_trailers(void *data, const pxg_field *fields, size_t n) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_list_of(data, PXG_DIR_RESPONSE, true);
  ngx_http_request_t *r = f->request;
  size_t i;

  if (ngx_list_init(&r->headers_out.trailers, r->pool, 4, sizeof(ngx_table_elt_t)) != NGX_OK) return false;
  r->expect_trailers = 1;
  for (i = 0; i < n; i++)
    if (ngx_http_pxg_fields_add(f, &fields[i].name, &fields[i].value) == NGX_ERROR) return false;
  return ngx_http_pxg_fields_commit(f) == NGX_OK;
}

static void ngx_http_pxg_op_log(void *data, uint32_t level, const char *line, size_t len) {
  ngx_http_pxg_ctx_t *ctx = data;
  ngx_http_pxg_log_to(ctx->request->connection->log, level, line, len);
}

const pxg_stream_ops ngx_http_pxg_ops = {
    .view = ngx_http_pxg_op_view,
    .set = ngx_http_pxg_op_set,
    .add = ngx_http_pxg_op_add,
    .remove = ngx_http_pxg_op_remove,
    .set_at = ngx_http_pxg_op_set_at,
    .remove_at = ngx_http_pxg_op_remove_at,
    .commit = ngx_http_pxg_op_commit,
    .length = ngx_http_pxg_op_length,
    .replace = ngx_http_pxg_op_replace,
    .trailers = ngx_http_pxg_op_trailers,
    .attribute = ngx_http_pxg_op_attribute,
    .cluster = ngx_http_pxg_op_cluster,
    .log = ngx_http_pxg_op_log,
};
