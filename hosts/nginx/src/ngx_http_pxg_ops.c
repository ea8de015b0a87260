/* SPDX-License-Identifier: Apache-2.0 */

/* What the engine asks of this host for a stream: fields, trailers, attributes, routes. */

#include "ngx_http_pxg.h"

static pxg_edit ngx_http_pxg_edit(ngx_int_t rc) {
  return rc == NGX_OK ? PXG_EDIT_DONE : rc == NGX_DECLINED ? PXG_EDIT_GONE : PXG_EDIT_NO_MEMORY;
}

static bool ngx_http_pxg_op_view(void *data, int d, bool trailers, const pxg_field **at, size_t *n) {
  ngx_http_pxg_ctx_t *ctx = data;
  ngx_http_pxg_fields_t *f = &ctx->fields[d];

  *at = NULL, *n = 0;
  if (trailers) return true;
  if (ngx_http_pxg_fields_view(f, ctx->request, (ngx_uint_t)d) != NGX_OK) return false;
  *at = f->fields, *n = f->n;
  return true;
}

/* An operation may come before any view was asked for. */
static ngx_http_pxg_fields_t *ngx_http_pxg_edited(void *data, int d) {
  ngx_http_pxg_ctx_t *ctx = data;
  ctx->fields[d].request = ctx->request;
  ctx->fields[d].direction = (ngx_uint_t)d;
  return &ctx->fields[d];
}

static pxg_edit ngx_http_pxg_op_set(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_set(ngx_http_pxg_edited(data, d), name, value));
}

static pxg_edit ngx_http_pxg_op_add(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_add(ngx_http_pxg_edited(data, d), name, value));
}

static pxg_edit ngx_http_pxg_op_remove(void *data, int d, bool trailers, const pxg_str *name) {
  return trailers ? PXG_EDIT_GONE : ngx_http_pxg_edit(ngx_http_pxg_fields_delete(ngx_http_pxg_edited(data, d), name));
}

static pxg_edit ngx_http_pxg_op_set_at(void *data, int d, bool trailers, size_t index, const pxg_str *value) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_set_at(ngx_http_pxg_edited(data, d), index, value));
}

static pxg_edit ngx_http_pxg_op_remove_at(void *data, int d, bool trailers, size_t index) {
  return trailers ? PXG_EDIT_GONE
                  : ngx_http_pxg_edit(ngx_http_pxg_fields_delete_at(ngx_http_pxg_edited(data, d), index));
}

static bool ngx_http_pxg_op_commit(void *data, int d, bool trailers) {
  return trailers || ngx_http_pxg_fields_commit(ngx_http_pxg_edited(data, d)) == NGX_OK;
}

static bool ngx_http_pxg_op_length(void *data, int d, int64_t length) {
  ngx_http_pxg_ctx_t *ctx = data;
  return ngx_http_pxg_fields_length(ctx->request, (ngx_uint_t)d, (off_t)length) == NGX_OK;
}

static bool ngx_http_pxg_op_replace(void *data, uint32_t status, const pxg_field *fields, size_t n) {
  ngx_http_pxg_fields_t *f = ngx_http_pxg_edited(data, PXG_DIR_RESPONSE);
  ngx_http_request_t *r = f->request;
  size_t i;

  ngx_http_clean_header(r);
  r->headers_out.status = status;
  r->headers_out.content_type_len = 0;
  r->headers_out.content_type_lowcase = NULL;
  r->allow_ranges = 0;
  if (ngx_list_init(&r->headers_out.headers, r->pool, 20, sizeof(ngx_table_elt_t)) != NGX_OK) return false;
  for (i = 0; i < n; i++)
    if (ngx_http_pxg_fields_add(f, &fields[i].name, &fields[i].value) == NGX_ERROR) return false;
  return ngx_http_pxg_fields_commit(f) == NGX_OK;
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
    .attribute = ngx_http_pxg_op_attribute,
    .cluster = ngx_http_pxg_op_cluster,
};
