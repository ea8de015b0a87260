/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg_lua.h"

/* In name.flags, from a removal until commit: a view that was lent keeps its names and values. */
#define NGX_HTTP_PXG_LUA_GONE 0x80000000u

static bool ngx_http_pxg_lua_gone(const pxg_field *f) { return (f->name.flags & NGX_HTTP_PXG_LUA_GONE) != 0; }

static bool ngx_http_pxg_lua_is(const pxg_field *f, const pxg_str *name) {
  return !ngx_http_pxg_lua_gone(f) && f->name.len == name->len && ngx_memcmp(f->name.ptr, name->ptr, name->len) == 0;
}

/* Copies are in the pool until the stream ends: what a view lent stays valid longer than it has to. */
static bool ngx_http_pxg_lua_str(ngx_pool_t *pool, pxg_str *to, const pxg_str *from) {
  u_char *p = ngx_pnalloc(pool, from->len ? from->len : 1);
  if (p == NULL) return false;
  ngx_memcpy(p, from->ptr ? from->ptr : p, from->len);
  *to = (pxg_str){p, from->len, from->flags & PXG_STR_SENSITIVE};
  return true;
}

static bool ngx_http_pxg_lua_room(ngx_http_pxg_lua_message_t *m, ngx_http_pxg_lua_list_t *l, size_t n) {
  pxg_field *at;

  if (n <= l->cap) return true;
  n = ngx_max(n, l->cap * 2);
  at = ngx_palloc(m->pool, n * sizeof(*at));
  if (at == NULL) return false;
  if (l->n) ngx_memcpy(at, l->at, l->n * sizeof(*at));
  l->at = at, l->cap = n;
  return true;
}

static bool ngx_http_pxg_lua_push(ngx_http_pxg_lua_message_t *m, ngx_http_pxg_lua_list_t *l, const pxg_str *name,
                                  const pxg_str *value) {
  if (!ngx_http_pxg_lua_room(m, l, l->n + 1) || !ngx_http_pxg_lua_str(m->pool, &l->at[l->n].name, name) ||
      !ngx_http_pxg_lua_str(m->pool, &l->at[l->n].value, value))
    return false;
  l->n++;
  return true;
}

bool ngx_http_pxg_lua_copy(ngx_http_pxg_lua_message_t *m, int d, bool trailers, const pxg_field *fields, size_t n) {
  ngx_http_pxg_lua_list_t *l = &m->lists[d][trailers];
  size_t i, bytes = 0;
  u_char *p;

  l->n = 0, l->gone = l->pseudo = 0;
  if (n == 0) return true;
  for (i = 0; i < n; i++) bytes += fields[i].name.len + fields[i].value.len;
  p = ngx_pnalloc(m->pool, bytes + 1);
  if (p == NULL || !ngx_http_pxg_lua_room(m, l, n)) return false;
  for (i = 0; i < n; i++) {
    l->at[i] = fields[i];
    l->at[i].name.ptr = p, p = ngx_cpymem(p, fields[i].name.ptr, fields[i].name.len);
    l->at[i].value.ptr = p, p = ngx_cpymem(p, fields[i].value.ptr, fields[i].value.len);
  }
  l->n = n;
  return true;
}

static ngx_http_pxg_lua_list_t *ngx_http_pxg_lua_list(void *data, int d, bool trailers) {
  return &((ngx_http_pxg_lua_message_t *)data)->lists[d][trailers];
}

static bool ngx_http_pxg_lua_view(void *data, int d, bool trailers, const pxg_field **at, size_t *n) {
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, d, trailers);
  *at = l->at, *n = l->n;
  return true;
}

static pxg_edit ngx_http_pxg_lua_add(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, d, trailers);

  if (name->len && name->ptr[0] == ':') l->pseudo = 1;
  return ngx_http_pxg_lua_push(data, l, name, value) ? PXG_EDIT_DONE : PXG_EDIT_NO_MEMORY;
}

static pxg_edit ngx_http_pxg_lua_remove(void *data, int d, bool trailers, const pxg_str *name) {
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, d, trailers);
  size_t i;

  for (i = 0; i < l->n; i++)
    if (ngx_http_pxg_lua_is(&l->at[i], name)) l->at[i].name.flags |= NGX_HTTP_PXG_LUA_GONE, l->gone = 1;
  return PXG_EDIT_DONE;
}

/* What had the name is gone for indices, too (PXG-HDR-004). */
static pxg_edit ngx_http_pxg_lua_set(void *data, int d, bool trailers, const pxg_str *name, const pxg_str *value) {
  (void)ngx_http_pxg_lua_remove(data, d, trailers, name);
  return ngx_http_pxg_lua_add(data, d, trailers, name, value);
}

static pxg_edit ngx_http_pxg_lua_set_at(void *data, int d, bool trailers, size_t index, const pxg_str *value) {
  ngx_http_pxg_lua_message_t *m = data;
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, d, trailers);

  if (index >= l->n || ngx_http_pxg_lua_gone(&l->at[index])) return PXG_EDIT_GONE;
  return ngx_http_pxg_lua_str(m->pool, &l->at[index].value, value) ? PXG_EDIT_DONE : PXG_EDIT_NO_MEMORY;
}

static pxg_edit ngx_http_pxg_lua_remove_at(void *data, int d, bool trailers, size_t index) {
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, d, trailers);

  if (index >= l->n || ngx_http_pxg_lua_gone(&l->at[index])) return PXG_EDIT_GONE;
  l->at[index].name.flags |= NGX_HTTP_PXG_LUA_GONE, l->gone = 1;
  return PXG_EDIT_DONE;
}

static bool ngx_http_pxg_lua_commit(void *data, int d, bool trailers) {
  ngx_http_pxg_lua_message_t *m = data;
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, d, trailers);
  pxg_field *from = l->at, *to = l->at;
  size_t i, n = 0;
  int pseudo;

  if (!l->gone && !l->pseudo) return true;
  if (l->pseudo) {
    to = ngx_palloc(m->pool, l->cap * sizeof(*to));
    if (to == NULL) return false;
  }
  for (pseudo = l->pseudo; pseudo >= 0; pseudo--)
    for (i = 0; i < l->n; i++) {
      if (ngx_http_pxg_lua_gone(&from[i]) || (l->pseudo && (from[i].name.ptr[0] == ':') != pseudo)) continue;
      to[n++] = from[i];
    }
  l->at = to, l->n = n;
  l->gone = l->pseudo = 0;
  return true;
}

static bool ngx_http_pxg_lua_length(void *data, int d, int64_t length) {
  static const pxg_str name = {(const uint8_t *)"content-length", 14, 0};
  u_char text[NGX_OFF_T_LEN];
  pxg_str value = {text, 0, 0};

  if (length < 0)
    (void)ngx_http_pxg_lua_remove(data, d, false, &name);
  else {
    value.len = (uint32_t)(ngx_sprintf(text, "%O", (off_t)length) - text);
    if (ngx_http_pxg_lua_set(data, d, false, &name, &value) != PXG_EDIT_DONE) return false;
  }
  return ngx_http_pxg_lua_commit(data, d, false);
}

static bool ngx_http_pxg_lua_replace(void *data, uint32_t status, const pxg_field *fields, size_t n) {
  static const pxg_str name = {(const uint8_t *)":status", 7, 0};
  ngx_http_pxg_lua_list_t *l = ngx_http_pxg_lua_list(data, PXG_DIR_RESPONSE, false);
  u_char text[NGX_INT32_LEN];
  pxg_str value = {text, (uint32_t)(ngx_sprintf(text, "%uD", status) - text), 0};
  size_t i;

  /* The reply's fields may come from a view of the message that they replace: its array is left as it is. */
  *l = (ngx_http_pxg_lua_list_t){0};
  *ngx_http_pxg_lua_list(data, PXG_DIR_RESPONSE, true) = (ngx_http_pxg_lua_list_t){0};
  if (!ngx_http_pxg_lua_push(data, l, &name, &value)) return false;
  for (i = 0; i < n; i++)
    if (!ngx_http_pxg_lua_push(data, l, &fields[i].name, &fields[i].value)) return false;
  return true;
}

static bool ngx_http_pxg_lua_trailers(void *data, const pxg_field *fields, size_t n) {
  return ngx_http_pxg_lua_copy(data, PXG_DIR_RESPONSE, true, fields, n);
}

/* A request that lua-nginx-module made, for a timer and the like, has nothing to show; nor has one whose pool is being
 * destroyed. */
static bool ngx_http_pxg_lua_attribute(void *data, int32_t id, uint32_t phase, pxg_str *value) {
  ngx_http_pxg_lua_stream_t *s = data;
  ngx_http_request_t *r = s->request;
  ngx_http_pxg_subject_t subject = {
      .request = r,
      .stream = s->stream,
      .body_bytes = s->body_bytes,
      .raw_path = s->raw_path,
      .started_ns = s->started_ns,
      .origin = s->origin && (r->upstream || r->err_status) ? ngx_http_pxg_origin(r) : s->origin,
  };
  if (r->pool == NULL || r->connection->fd == (ngx_socket_t)-1) return false;
  return ngx_http_pxg_show_attribute(&subject, id, phase, value);
}

/* To the error log of the request that the stream was opened for. */
static void ngx_http_pxg_lua_log(void *data, uint32_t level, const char *line, size_t len) {
  ngx_http_pxg_lua_stream_t *s = data;
  ngx_http_pxg_log_to(s->request->connection->log, level, line, len);
}

const pxg_stream_ops ngx_http_pxg_lua_ops = {
    .view = ngx_http_pxg_lua_view,
    .set = ngx_http_pxg_lua_set,
    .add = ngx_http_pxg_lua_add,
    .remove = ngx_http_pxg_lua_remove,
    .set_at = ngx_http_pxg_lua_set_at,
    .remove_at = ngx_http_pxg_lua_remove_at,
    .commit = ngx_http_pxg_lua_commit,
    .length = ngx_http_pxg_lua_length,
    .replace = ngx_http_pxg_lua_replace,
    .trailers = ngx_http_pxg_lua_trailers,
    .attribute = ngx_http_pxg_lua_attribute,
    .log = ngx_http_pxg_lua_log,
};
