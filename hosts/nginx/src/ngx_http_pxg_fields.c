/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg_fields.h"

typedef struct {
  ngx_str_t name;
  size_t offset;
} ngx_http_pxg_shortcut_t;

/* Pointers of headers_out to the one element of a name. */
static const ngx_http_pxg_shortcut_t ngx_http_pxg_out_shortcuts[] = {
    {ngx_string("server"), offsetof(ngx_http_headers_out_t, server)},
    {ngx_string("date"), offsetof(ngx_http_headers_out_t, date)},
    {ngx_string("content-encoding"), offsetof(ngx_http_headers_out_t, content_encoding)},
    {ngx_string("location"), offsetof(ngx_http_headers_out_t, location)},
    {ngx_string("refresh"), offsetof(ngx_http_headers_out_t, refresh)},
    {ngx_string("last-modified"), offsetof(ngx_http_headers_out_t, last_modified)},
    {ngx_string("content-range"), offsetof(ngx_http_headers_out_t, content_range)},
    {ngx_string("accept-ranges"), offsetof(ngx_http_headers_out_t, accept_ranges)},
    {ngx_string("www-authenticate"), offsetof(ngx_http_headers_out_t, www_authenticate)},
    {ngx_string("expires"), offsetof(ngx_http_headers_out_t, expires)},
    {ngx_string("etag"), offsetof(ngx_http_headers_out_t, etag)},
#if (nginx_version >= 1023000)
    {ngx_string("cache-control"), offsetof(ngx_http_headers_out_t, cache_control)},
    {ngx_string("link"), offsetof(ngx_http_headers_out_t, link)},
#endif
};

#if (nginx_version < 1023000)
/* Arrays of pointers to all elements of a name. */
static const ngx_http_pxg_shortcut_t ngx_http_pxg_out_arrays[] = {
    {ngx_string("cache-control"), offsetof(ngx_http_headers_out_t, cache_control)},
    {ngx_string("link"), offsetof(ngx_http_headers_out_t, link)},
};
#endif

static const struct {
  ngx_str_t name;
  ngx_uint_t method;
} ngx_http_pxg_methods[] = {
    {ngx_string("GET"), NGX_HTTP_GET},
    {ngx_string("HEAD"), NGX_HTTP_HEAD},
    {ngx_string("POST"), NGX_HTTP_POST},
    {ngx_string("PUT"), NGX_HTTP_PUT},
    {ngx_string("DELETE"), NGX_HTTP_DELETE},
    {ngx_string("MKCOL"), NGX_HTTP_MKCOL},
    {ngx_string("COPY"), NGX_HTTP_COPY},
    {ngx_string("MOVE"), NGX_HTTP_MOVE},
    {ngx_string("OPTIONS"), NGX_HTTP_OPTIONS},
    {ngx_string("PROPFIND"), NGX_HTTP_PROPFIND},
    {ngx_string("PROPPATCH"), NGX_HTTP_PROPPATCH},
    {ngx_string("LOCK"), NGX_HTTP_LOCK},
    {ngx_string("UNLOCK"), NGX_HTTP_UNLOCK},
    {ngx_string("PATCH"), NGX_HTTP_PATCH},
    {ngx_string("TRACE"), NGX_HTTP_TRACE},
};

static ngx_str_t ngx_http_pxg_view_of(const pxg_str *s) {
  ngx_str_t v = {s->len, (u_char *)(uintptr_t)s->ptr};
  return v;
}

static ngx_int_t ngx_http_pxg_same(const ngx_str_t *a, const char *text) {
  size_t n = ngx_strlen(text);
  return a->len == n && ngx_strncasecmp(a->data, (u_char *)(uintptr_t)text, n) == 0;
}

/* nginx reads some values up to a NUL. */
static u_char *ngx_http_pxg_copy(ngx_pool_t *pool, const ngx_str_t *s) {
  u_char *p = ngx_pnalloc(pool, s->len + 1);
  if (p == NULL) return NULL;
  ngx_memcpy(p, s->data, s->len);
  p[s->len] = '\0';
  return p;
}

/* An element without a name has been removed from headers_in, where hash may be anything; one without a hash from
 * headers_out, where nginx itself does it so. */
static ngx_int_t ngx_http_pxg_gone(ngx_uint_t direction, const ngx_table_elt_t *e) {
  return direction == PXG_DIR_REQUEST ? e->key.len == 0 : e->hash == 0;
}

static ngx_list_t *ngx_http_pxg_list(ngx_http_request_t *r, ngx_uint_t direction) {
  return direction == PXG_DIR_REQUEST ? &r->headers_in.headers : &r->headers_out.headers;
}

/* Walks a list; start with *part NULL. */
static ngx_table_elt_t *ngx_http_pxg_next(ngx_list_t *list, ngx_list_part_t **part, ngx_uint_t *i) {
  if (*part == NULL) {
    *part = &list->part;
    *i = 0;
  }
  while (*i >= (*part)->nelts) {
    if ((*part)->next == NULL) return NULL;
    *part = (*part)->next;
    *i = 0;
  }
  return (ngx_table_elt_t *)(*part)->elts + (*i)++;
}

static ngx_int_t ngx_http_pxg_sensitive(const ngx_str_t *lower) {
  return ngx_http_pxg_same(lower, "authorization") || ngx_http_pxg_same(lower, "proxy-authorization") ||
         ngx_http_pxg_same(lower, "cookie") || ngx_http_pxg_same(lower, "set-cookie");
}

static ngx_int_t ngx_http_pxg_push(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value,
                                   ngx_http_pxg_home_e home, ngx_table_elt_t *elt) {
  ngx_pool_t *pool = f->request->pool;

  if (f->n == f->cap) {
    size_t cap = f->cap ? f->cap * 2 : 32;
    pxg_field *fields = ngx_palloc(pool, cap * sizeof(pxg_field));
    ngx_http_pxg_slot_t *slots = ngx_palloc(pool, cap * sizeof(ngx_http_pxg_slot_t));
    if (fields == NULL || slots == NULL) return NGX_ERROR;
    if (f->n) {
      ngx_memcpy(fields, f->fields, f->n * sizeof(pxg_field));
      ngx_memcpy(slots, f->slots, f->n * sizeof(ngx_http_pxg_slot_t));
    }
    f->fields = fields, f->slots = slots, f->cap = cap;
  }

  uint32_t flags = home == NGX_HTTP_PXG_IN_LIST && ngx_http_pxg_sensitive(name) ? PXG_STR_SENSITIVE : 0;
  f->fields[f->n] = (pxg_field){{name->data, (uint32_t)name->len, 0}, {value->data, (uint32_t)value->len, flags}};
  f->slots[f->n] = (ngx_http_pxg_slot_t){home, elt};
  f->n++;
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_push_text(ngx_http_pxg_fields_t *f, const char *name, const ngx_str_t *value,
                                        ngx_http_pxg_home_e home) {
  ngx_str_t n = {ngx_strlen(name), (u_char *)(uintptr_t)name};
  return ngx_http_pxg_push(f, &n, value, home, NULL);
}

/* Lower-case name of an element; modules of nginx seldom fill lowcase_key in headers_out. */
static ngx_int_t ngx_http_pxg_lower(ngx_http_pxg_fields_t *f, ngx_table_elt_t *e, ngx_str_t *name) {
  name->len = e->key.len;
  name->data = f->direction == PXG_DIR_REQUEST ? e->lowcase_key : NULL;
  if (name->data) return NGX_OK;

  ngx_uint_t i;
  for (i = 0; i < e->key.len && ngx_tolower(e->key.data[i]) == e->key.data[i]; i++) { /* void */
  }
  if (i == e->key.len) {
    name->data = e->key.data;
    return NGX_OK;
  }
  name->data = ngx_pnalloc(f->request->pool, e->key.len);
  if (name->data == NULL) return NGX_ERROR;
  ngx_strlow(name->data, e->key.data, e->key.len);
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_push_list(ngx_http_pxg_fields_t *f) {
  ngx_list_part_t *part = NULL;
  ngx_table_elt_t *e;
  ngx_uint_t i = 0;
  ngx_str_t name;

  while ((e = ngx_http_pxg_next(ngx_http_pxg_list(f->request, f->direction), &part, &i)) != NULL) {
    if (ngx_http_pxg_gone(f->direction, e) || e->key.len == 0) continue;
    if (ngx_http_pxg_lower(f, e, &name) != NGX_OK) return NGX_ERROR;
    if (f->direction == PXG_DIR_REQUEST && ngx_http_pxg_same(&name, "host")) continue;
    if (ngx_http_pxg_push(f, &name, &e->value, NGX_HTTP_PXG_IN_LIST, e) != NGX_OK) return NGX_ERROR;
  }
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_request_view(ngx_http_pxg_fields_t *f) {
  ngx_http_request_t *r = f->request;
  ngx_str_t https = ngx_string("https"), http = ngx_string("http"), *scheme = &http;

  if (r->schema.len) scheme = &r->schema;
#if (NGX_HTTP_SSL)
  else if (r->connection->ssl)
    scheme = &https;
#else
  (void)https;
#endif

  if (ngx_http_pxg_push_text(f, ":method", &r->method_name, NGX_HTTP_PXG_PSEUDO) != NGX_OK ||
      ngx_http_pxg_push_text(f, ":scheme", scheme, NGX_HTTP_PXG_PSEUDO) != NGX_OK)
    return NGX_ERROR;
  if (r->headers_in.host &&
      ngx_http_pxg_push_text(f, ":authority", &r->headers_in.host->value, NGX_HTTP_PXG_PSEUDO) != NGX_OK)
    return NGX_ERROR;
  if (ngx_http_pxg_push_text(f, ":path", &r->unparsed_uri, NGX_HTTP_PXG_PSEUDO) != NGX_OK) return NGX_ERROR;
  return ngx_http_pxg_push_list(f);
}

static ngx_int_t ngx_http_pxg_response_view(ngx_http_pxg_fields_t *f) {
  ngx_http_request_t *r = f->request;
  ngx_http_headers_out_t *h = &r->headers_out;
  ngx_str_t v;
  u_char *p;

  p = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
  if (p == NULL) return NGX_ERROR;
  v.data = p;
  v.len = ngx_sprintf(p, "%03ui", h->status) - p;
  if (ngx_http_pxg_push_text(f, ":status", &v, NGX_HTTP_PXG_PSEUDO) != NGX_OK) return NGX_ERROR;

  if (h->content_type.len) {
    v = h->content_type;
    if (h->charset.len && h->content_type_len == h->content_type.len) {
      v.len = h->content_type.len + sizeof("; charset=") - 1 + h->charset.len;
      v.data = ngx_pnalloc(r->pool, v.len);
      if (v.data == NULL) return NGX_ERROR;
      ngx_sprintf(v.data, "%V; charset=%V", &h->content_type, &h->charset);
    }
    if (ngx_http_pxg_push_text(f, "content-type", &v, NGX_HTTP_PXG_CONTENT_TYPE) != NGX_OK) return NGX_ERROR;
  }

  if (h->content_length == NULL && h->content_length_n >= 0) {
    v.data = ngx_pnalloc(r->pool, NGX_OFF_T_LEN);
    if (v.data == NULL) return NGX_ERROR;
    v.len = ngx_sprintf(v.data, "%O", h->content_length_n) - v.data;
    if (ngx_http_pxg_push_text(f, "content-length", &v, NGX_HTTP_PXG_CONTENT_LENGTH) != NGX_OK) return NGX_ERROR;
  }

  /* nginx leaves it out at the same statuses. */
  if (h->last_modified == NULL && h->last_modified_time != -1 &&
      (h->status == NGX_HTTP_OK || h->status == NGX_HTTP_PARTIAL_CONTENT || h->status == NGX_HTTP_NOT_MODIFIED)) {
    v.data = ngx_pnalloc(r->pool, sizeof("Mon, 28 Sep 1970 06:00:00 GMT"));
    if (v.data == NULL) return NGX_ERROR;
    v.len = ngx_http_time(v.data, h->last_modified_time) - v.data;
    if (ngx_http_pxg_push_text(f, "last-modified", &v, NGX_HTTP_PXG_LAST_MODIFIED) != NGX_OK) return NGX_ERROR;
  }

  return ngx_http_pxg_push_list(f);
}

ngx_int_t ngx_http_pxg_fields_view(ngx_http_pxg_fields_t *f, ngx_http_request_t *r, ngx_uint_t direction) {
  f->request = r, f->direction = direction, f->n = 0;
  return direction == PXG_DIR_REQUEST ? ngx_http_pxg_request_view(f) : ngx_http_pxg_response_view(f);
}

/* ---- Pseudo-headers ------------------------------------------------------------------------------------------------ */

static ngx_int_t ngx_http_pxg_set_method(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_uint_t i;
  u_char *p = ngx_http_pxg_copy(r->pool, v);
  if (p == NULL) return NGX_ERROR;

  r->method_name.data = p, r->method_name.len = v->len;
  r->method = NGX_HTTP_UNKNOWN;
  for (i = 0; i < sizeof(ngx_http_pxg_methods) / sizeof(ngx_http_pxg_methods[0]); i++)
    if (v->len == ngx_http_pxg_methods[i].name.len && ngx_memcmp(p, ngx_http_pxg_methods[i].name.data, v->len) == 0)
      r->method = ngx_http_pxg_methods[i].method;
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_set_authority(ngx_http_pxg_fields_t *f, const ngx_str_t *v) {
  ngx_http_request_t *r = f->request;
  ngx_table_elt_t *h = r->headers_in.host;
  u_char *p = ngx_http_pxg_copy(r->pool, v), *end, *low;
  size_t n;

  if (p == NULL) return NGX_ERROR;
  if (h == NULL) {
    h = ngx_list_push(&r->headers_in.headers);
    if (h == NULL) return NGX_ERROR;
    ngx_memzero(h, sizeof(*h));
    ngx_str_set(&h->key, "Host");
    h->lowcase_key = (u_char *)"host";
    h->hash = ngx_hash_key(h->lowcase_key, h->key.len);
    r->headers_in.host = h;
  }
  h->value.data = p, h->value.len = v->len;

  /* $host: without the port, in lower case. */
  n = v->len;
  if (p[0] == '[') {
    end = ngx_strlchr(p, p + n, ']');
    if (end) n = (size_t)(end + 1 - p);
  } else {
    end = ngx_strlchr(p, p + n, ':');
    if (end) n = (size_t)(end - p);
  }
  low = ngx_pnalloc(r->pool, n + 1);
  if (low == NULL) return NGX_ERROR;
  ngx_strlow(low, p, n);
  low[n] = '\0';
  r->headers_in.server.data = low, r->headers_in.server.len = n;
  f->edited = 1;
  return NGX_OK;
}

/* nginx keeps a path decoded (uri), as it came (unparsed_uri) and in parts. Its own parser works on a copy of the
 * request, so that a path which it refuses changes nothing. */
static ngx_int_t ngx_http_pxg_set_path(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_http_core_srv_conf_t *cscf = ngx_http_get_module_srv_conf(r, ngx_http_core_module);
  ngx_http_request_t *t;
  u_char *p;

  if (v->len == 0 || v->data[0] != '/') return NGX_DECLINED;
  p = ngx_http_pxg_copy(r->pool, v);
  t = ngx_pcalloc(r->pool, sizeof(*t));
  if (p == NULL || t == NULL) return NGX_ERROR;

  t->connection = r->connection, t->pool = r->pool;
  t->uri_start = p, t->uri_end = p + v->len;
  if (ngx_http_parse_uri(t) != NGX_OK) return NGX_DECLINED;

  t->uri.len = (size_t)((t->args_start ? t->args_start - 1 : t->uri_end) - t->uri_start);
  if (t->complex_uri || t->quoted_uri) {
    t->uri.data = ngx_pnalloc(r->pool, t->uri.len + 1);
    if (t->uri.data == NULL) return NGX_ERROR;
    if (ngx_http_parse_complex_uri(t, cscf->merge_slashes) != NGX_OK) return NGX_DECLINED;
  } else {
    t->uri.data = p;
    if (t->uri_ext) {
      t->exten.data = t->uri_ext;
      t->exten.len = (size_t)((t->args_start ? t->args_start - 1 : t->uri_end) - t->uri_ext);
    }
  }

  r->unparsed_uri.data = p, r->unparsed_uri.len = v->len;
  r->valid_unparsed_uri = 1;
  r->uri = t->uri, r->exten = t->exten;
  ngx_str_null(&r->args);
  if (t->args_start && t->uri_end > t->args_start) {
    r->args.data = t->args_start;
    r->args.len = (size_t)(t->uri_end - t->args_start);
  }
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_set_status(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_int_t status = ngx_atoi(v->data, v->len);
  if (v->len != 3 || status < 200 || status > 599) return NGX_DECLINED;
  if ((ngx_uint_t)status == r->headers_out.status) return NGX_OK;
  r->headers_out.status = (ngx_uint_t)status;
  ngx_str_null(&r->headers_out.status_line); /* That of the upstream, with its text. */
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_set_pseudo(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *v) {
  ngx_http_request_t *r = f->request;

  if (f->direction == PXG_DIR_RESPONSE)
    return ngx_http_pxg_same(name, ":status") ? ngx_http_pxg_set_status(r, v) : NGX_DECLINED;
  if (ngx_http_pxg_same(name, ":method")) return ngx_http_pxg_set_method(r, v);
  if (ngx_http_pxg_same(name, ":authority")) return ngx_http_pxg_set_authority(f, v);
  if (ngx_http_pxg_same(name, ":path")) return ngx_http_pxg_set_path(r, v);
  if (ngx_http_pxg_same(name, ":scheme")) {
    u_char *p = ngx_http_pxg_copy(r->pool, v);
    if (p == NULL) return NGX_ERROR;
    r->schema.data = p, r->schema.len = v->len;
    return NGX_OK;
  }
  return NGX_DECLINED;
}

/* ---- Fields that headers_out keeps outside its list ---------------------------------------------------------------- */

static ngx_int_t ngx_http_pxg_set_content_type(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_http_headers_out_t *h = &r->headers_out;
  u_char *p = NULL;

  if (v->len) {
    p = ngx_http_pxg_copy(r->pool, v);
    if (p == NULL) return NGX_ERROR;
  }
  h->content_type.data = p, h->content_type.len = v->len;
  /* Up to the parameters: what gzip_types and others compare. */
  h->content_type_len = v->len;
  u_char *semicolon = p ? ngx_strlchr(p, p + v->len, ';') : NULL;
  if (semicolon) h->content_type_len = (size_t)(semicolon - p);
  while (h->content_type_len && p[h->content_type_len - 1] == ' ') h->content_type_len--;
  h->content_type_lowcase = NULL;
  h->content_type_hash = 0;
  ngx_str_null(&h->charset);
  return NGX_OK;
}

/* True if the name lives outside the list; `v` NULL removes it. */
static ngx_int_t ngx_http_pxg_outside(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *v,
                                      ngx_int_t *rc) {
  if (f->direction != PXG_DIR_RESPONSE || !ngx_http_pxg_same(name, "content-type")) return 0;
  ngx_str_t none = ngx_null_string;
  *rc = ngx_http_pxg_set_content_type(f->request, v ? v : &none);
  return 1;
}

/* ---- Edits --------------------------------------------------------------------------------------------------------- */

static ngx_int_t ngx_http_pxg_append(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value) {
  ngx_pool_t *pool = f->request->pool;
  ngx_table_elt_t *e = ngx_list_push(ngx_http_pxg_list(f->request, f->direction));
  if (e == NULL) return NGX_ERROR;

  ngx_memzero(e, sizeof(*e));
  f->edited = 1;
  e->value.data = ngx_http_pxg_copy(pool, value);
  e->lowcase_key = ngx_http_pxg_copy(pool, name);
  if (e->value.data == NULL || e->lowcase_key == NULL) return NGX_ERROR; /* The element has no name and no hash. */
  e->value.len = value->len;
  e->key.data = e->lowcase_key, e->key.len = name->len;
  e->hash = ngx_hash_key(e->lowcase_key, name->len);
  if (e->hash == 0) e->hash = 1;
  return NGX_OK;
}

static void ngx_http_pxg_remove(ngx_http_pxg_fields_t *f, ngx_table_elt_t *e) {
  e->hash = 0;
  if (f->direction == PXG_DIR_REQUEST) e->key.len = 0;
  f->removed = 1, f->edited = 1;
}

static void ngx_http_pxg_remove_name(ngx_http_pxg_fields_t *f, const ngx_str_t *name) {
  ngx_list_part_t *part = NULL;
  ngx_table_elt_t *e;
  ngx_uint_t i = 0;

  while ((e = ngx_http_pxg_next(ngx_http_pxg_list(f->request, f->direction), &part, &i)) != NULL)
    if (!ngx_http_pxg_gone(f->direction, e) && e->key.len == name->len &&
        ngx_strncasecmp(e->key.data, name->data, name->len) == 0)
      ngx_http_pxg_remove(f, e);

  if (f->direction == PXG_DIR_RESPONSE && ngx_http_pxg_same(name, "last-modified")) {
    f->request->headers_out.last_modified_time = -1;
    f->request->headers_out.last_modified = NULL;
  }
}

ngx_int_t ngx_http_pxg_fields_set(ngx_http_pxg_fields_t *f, const pxg_str *name, const pxg_str *value) {
  ngx_str_t n = ngx_http_pxg_view_of(name), v = ngx_http_pxg_view_of(value);
  ngx_int_t rc;

  if (n.len && n.data[0] == ':') return ngx_http_pxg_set_pseudo(f, &n, &v);
  if (ngx_http_pxg_outside(f, &n, &v, &rc)) return rc;
  ngx_http_pxg_remove_name(f, &n);
  return ngx_http_pxg_append(f, &n, &v);
}

ngx_int_t ngx_http_pxg_fields_add(ngx_http_pxg_fields_t *f, const pxg_str *name, const pxg_str *value) {
  ngx_str_t n = ngx_http_pxg_view_of(name), v = ngx_http_pxg_view_of(value);
  ngx_int_t rc;

  /* The first one goes to its place; another is a field like any. */
  if (f->direction == PXG_DIR_RESPONSE && f->request->headers_out.content_type.len == 0 &&
      ngx_http_pxg_outside(f, &n, &v, &rc))
    return rc;
  return ngx_http_pxg_append(f, &n, &v);
}

ngx_int_t ngx_http_pxg_fields_delete(ngx_http_pxg_fields_t *f, const pxg_str *name) {
  ngx_str_t n = ngx_http_pxg_view_of(name);
  ngx_int_t rc;

  (void)ngx_http_pxg_outside(f, &n, NULL, &rc);
  ngx_http_pxg_remove_name(f, &n);
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_fields_set_at(ngx_http_pxg_fields_t *f, size_t index, const pxg_str *value) {
  ngx_http_pxg_slot_t *s = &f->slots[index];
  ngx_str_t v = ngx_http_pxg_view_of(value), name = ngx_http_pxg_view_of(&f->fields[index].name);
  ngx_http_request_t *r = f->request;

  switch (s->home) {
  case NGX_HTTP_PXG_IN_LIST: {
    if (ngx_http_pxg_gone(f->direction, s->elt)) return NGX_DECLINED;
    u_char *p = ngx_http_pxg_copy(r->pool, &v);
    if (p == NULL) return NGX_ERROR;
    s->elt->value.data = p, s->elt->value.len = v.len;
    f->edited = 1;
    return NGX_OK;
  }
  case NGX_HTTP_PXG_PSEUDO: return ngx_http_pxg_set_pseudo(f, &name, &v);
  case NGX_HTTP_PXG_CONTENT_TYPE:
    return r->headers_out.content_type.len ? ngx_http_pxg_set_content_type(r, &v) : NGX_DECLINED;
  case NGX_HTTP_PXG_LAST_MODIFIED:
    if (r->headers_out.last_modified_time == -1) return NGX_DECLINED;
    return ngx_http_pxg_fields_set(f, &f->fields[index].name, value);
  case NGX_HTTP_PXG_CONTENT_LENGTH: break;
  }
  return NGX_DECLINED;
}

ngx_int_t ngx_http_pxg_fields_delete_at(ngx_http_pxg_fields_t *f, size_t index) {
  ngx_http_pxg_slot_t *s = &f->slots[index];
  ngx_str_t none = ngx_null_string;
  ngx_http_request_t *r = f->request;

  switch (s->home) {
  case NGX_HTTP_PXG_IN_LIST:
    if (ngx_http_pxg_gone(f->direction, s->elt)) return NGX_DECLINED;
    ngx_http_pxg_remove(f, s->elt);
    return NGX_OK;
  case NGX_HTTP_PXG_CONTENT_TYPE:
    return r->headers_out.content_type.len ? ngx_http_pxg_set_content_type(r, &none) : NGX_DECLINED;
  case NGX_HTTP_PXG_LAST_MODIFIED:
    if (r->headers_out.last_modified_time == -1) return NGX_DECLINED;
    r->headers_out.last_modified_time = -1;
    return NGX_OK;
  case NGX_HTTP_PXG_PSEUDO:
  case NGX_HTTP_PXG_CONTENT_LENGTH: break;
  }
  return NGX_DECLINED;
}

/* ---- Commit -------------------------------------------------------------------------------------------------------- */

static ngx_http_header_t *ngx_http_pxg_known_in(const char *name) {
  ngx_http_header_t *h;
  for (h = ngx_http_headers_in; h->name.len; h++)
    if (ngx_http_pxg_same(&h->name, name)) return h;
  return NULL;
}

/* Makes the pointers of headers_in anew with nginx's own handlers, which differ by version; those that would end the
 * request at a second field of a name are not called for it. */
static ngx_int_t ngx_http_pxg_rederive_in(ngx_http_request_t *r) {
  ngx_http_core_main_conf_t *cmcf = ngx_http_get_module_main_conf(r, ngx_http_core_module);
  ngx_http_header_t *h, *length = ngx_http_pxg_known_in("Content-Length"), *cookie = ngx_http_pxg_known_in("Cookie");
  ngx_list_part_t *part = NULL;
  ngx_table_elt_t *e, **slot;
  ngx_uint_t i = 0;

  for (h = ngx_http_headers_in; h->name.len; h++) {
    if (ngx_http_pxg_same(&h->name, "Host") || ngx_http_pxg_same(&h->name, "Connection")) continue;
#if (nginx_version < 1023000)
    if (cookie && h->handler == cookie->handler) {
      ((ngx_array_t *)((char *)&r->headers_in + h->offset))->nelts = 0;
      continue;
    }
#else
    (void)cookie;
#endif
    *(ngx_table_elt_t **)((char *)&r->headers_in + h->offset) = NULL;
  }
  r->headers_in.msie = r->headers_in.msie6 = r->headers_in.opera = r->headers_in.gecko = 0;
  r->headers_in.chrome = r->headers_in.safari = r->headers_in.konqueror = 0;
  ngx_str_null(&r->headers_in.user);
  ngx_str_null(&r->headers_in.passwd);

  while ((e = ngx_http_pxg_next(&r->headers_in.headers, &part, &i)) != NULL) {
    h = ngx_hash_find(&cmcf->headers_in_hash, e->hash, e->lowcase_key, e->key.len);
#if (nginx_version >= 1023000)
    e->next = NULL;
#endif
    if (ngx_http_pxg_same(&e->key, "host")) {
      r->headers_in.host = e;
      continue;
    }
    if (h == NULL || h->handler == NULL || ngx_http_pxg_same(&h->name, "Connection")) continue;
    slot = (ngx_table_elt_t **)((char *)&r->headers_in + h->offset);
    if (length && h->handler == length->handler && *slot) continue;
    if (h->handler(r, e, h->offset) != NGX_OK) return NGX_ERROR;
  }
  return NGX_OK;
}

/* Modules of nginx copy headers_in.headers without a look at removed elements, so the list is made anew. */
static ngx_int_t ngx_http_pxg_commit_in(ngx_http_pxg_fields_t *f) {
  ngx_http_request_t *r = f->request;
  ngx_list_part_t *part = NULL;
  ngx_list_t list;
  ngx_table_elt_t *e, *to;
  ngx_uint_t i = 0;

  if (f->removed) {
    if (ngx_list_init(&list, r->pool, 20, sizeof(ngx_table_elt_t)) != NGX_OK) return NGX_ERROR;
    while ((e = ngx_http_pxg_next(&r->headers_in.headers, &part, &i)) != NULL) {
      if (e->key.len == 0) continue;
      to = ngx_list_push(&list);
      if (to == NULL) return NGX_ERROR;
      *to = *e;
    }
    r->headers_in.headers = list;
    /* ngx_list_push compares with the address of the first part, which has moved with the struct. */
    if (list.last == &list.part) r->headers_in.headers.last = &r->headers_in.headers.part;
  }
  return ngx_http_pxg_rederive_in(r);
}

#if (nginx_version < 1023000)
static ngx_int_t ngx_http_pxg_rederive_array(ngx_http_request_t *r, const ngx_http_pxg_shortcut_t *s) {
  ngx_array_t *a = (ngx_array_t *)((char *)&r->headers_out + s->offset);
  ngx_list_part_t *part = NULL;
  ngx_table_elt_t *e, **p;
  ngx_uint_t i = 0;

  a->nelts = 0;
  while ((e = ngx_http_pxg_next(&r->headers_out.headers, &part, &i)) != NULL) {
    if (e->hash == 0 || e->key.len != s->name.len || ngx_strncasecmp(e->key.data, s->name.data, s->name.len) != 0)
      continue;
    if (a->elts == NULL && ngx_array_init(a, r->pool, 1, sizeof(ngx_table_elt_t *)) != NGX_OK) return NGX_ERROR;
    p = ngx_array_push(a);
    if (p == NULL) return NGX_ERROR;
    *p = e;
  }
  /* The modules that use it take an array with memory for one with elements. */
  if (a->nelts == 0) a->elts = NULL;
  return NGX_OK;
}
#endif

static ngx_int_t ngx_http_pxg_commit_out(ngx_http_request_t *r) {
  ngx_list_part_t *part;
  ngx_table_elt_t *e, **slot, *found;
  ngx_uint_t i, k;
  time_t t;

  for (k = 0; k < sizeof(ngx_http_pxg_out_shortcuts) / sizeof(ngx_http_pxg_out_shortcuts[0]); k++) {
    const ngx_http_pxg_shortcut_t *s = &ngx_http_pxg_out_shortcuts[k];
    slot = (ngx_table_elt_t **)((char *)&r->headers_out + s->offset);
    part = NULL, i = 0, found = NULL;
#if (nginx_version >= 1023000)
    ngx_table_elt_t **link = &found;
#endif
    while ((e = ngx_http_pxg_next(&r->headers_out.headers, &part, &i)) != NULL) {
      if (e->hash == 0 || e->key.len != s->name.len || ngx_strncasecmp(e->key.data, s->name.data, s->name.len) != 0)
        continue;
#if (nginx_version >= 1023000)
      *link = e, link = &e->next, e->next = NULL;
#else
      if (found == NULL) found = e;
#endif
    }
    *slot = found;
  }

#if (nginx_version < 1023000)
  for (k = 0; k < sizeof(ngx_http_pxg_out_arrays) / sizeof(ngx_http_pxg_out_arrays[0]); k++)
    if (ngx_http_pxg_rederive_array(r, &ngx_http_pxg_out_arrays[k]) != NGX_OK) return NGX_ERROR;
#endif

  if (r->headers_out.last_modified) {
    t = ngx_parse_http_time(r->headers_out.last_modified->value.data, r->headers_out.last_modified->value.len);
    r->headers_out.last_modified_time = t == NGX_ERROR ? -1 : t;
  }
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_fields_commit(ngx_http_pxg_fields_t *f) {
  if (!f->edited) return NGX_OK;
  ngx_int_t rc = f->direction == PXG_DIR_REQUEST ? ngx_http_pxg_commit_in(f) : ngx_http_pxg_commit_out(f->request);
  f->edited = f->removed = 0;
  return rc;
}

ngx_int_t ngx_http_pxg_fields_length(ngx_http_request_t *r, ngx_uint_t direction, off_t length) {
  ngx_table_elt_t *h;
  u_char *p;

  if (direction == PXG_DIR_RESPONSE) {
    ngx_http_clear_content_length(r);
    r->headers_out.content_length_n = length;
    return NGX_OK;
  }

  h = r->headers_in.content_length;
  r->headers_in.content_length_n = length;
  if (length < 0) return NGX_OK; /* The caller makes the request chunked. */
  p = ngx_pnalloc(r->pool, NGX_OFF_T_LEN + 1);
  if (p == NULL) return NGX_ERROR;
  if (h == NULL) {
    h = ngx_list_push(&r->headers_in.headers);
    if (h == NULL) return NGX_ERROR;
    ngx_memzero(h, sizeof(*h));
    ngx_str_set(&h->key, "Content-Length");
    h->lowcase_key = (u_char *)"content-length";
    h->hash = ngx_hash_key(h->lowcase_key, h->key.len);
    r->headers_in.content_length = h;
  }
  h->value.data = p;
  h->value.len = (size_t)(ngx_sprintf(p, "%O", length) - p);
  p[h->value.len] = '\0';
  return NGX_OK;
}
