/* SPDX-License-Identifier: Apache-2.0 */

/* What nginx keeps of a request outside its list of headers, or derives from it. */

#include "ngx_http_pxg_fields.h"

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

/* ---- The view ------------------------------------------------------------------------------------------------------ */

/* The path as it will be forwarded. A proxied request whose path is not "valid" any more, because it was rewritten or
 * normalised, gets it from the decoded one, escaped in the same cases as here. */
static ngx_int_t ngx_http_pxg_path(ngx_http_request_t *r, ngx_str_t *path) {
  uintptr_t escape = 0;
  u_char *p;

  if (r->valid_unparsed_uri) {
    *path = r->unparsed_uri;
    return NGX_OK;
  }
  if (r->quoted_uri || r->internal) escape = 2 * ngx_escape_uri(NULL, r->uri.data, r->uri.len, NGX_ESCAPE_URI);
  p = ngx_pnalloc(r->pool, r->uri.len + escape + 1 + r->args.len);
  if (p == NULL) return NGX_ERROR;
  path->data = p;
  if (escape) {
    p = (u_char *)ngx_escape_uri(p, r->uri.data, r->uri.len, NGX_ESCAPE_URI);
  } else {
    p = ngx_cpymem(p, r->uri.data, r->uri.len);
  }
  if (r->args.len) {
    *p++ = '?';
    p = ngx_cpymem(p, r->args.data, r->args.len);
  }
  path->len = (size_t)(p - path->data);
  return NGX_OK;
}

static ngx_str_t ngx_http_pxg_scheme(ngx_http_request_t *r) {
  static const ngx_str_t http = ngx_string("http");
#if (NGX_HTTP_SSL)
  static const ngx_str_t https = ngx_string("https");
  if (r->schema.len == 0 && r->connection->ssl) return https;
#endif
  return r->schema.len ? r->schema : http;
}

static pxg_str ngx_http_pxg_str(const ngx_str_t *s, uint32_t flags) {
  return (pxg_str){s->data, (uint32_t)s->len, flags};
}

static uint32_t ngx_http_pxg_value_flags(const u_char *lower, size_t len) {
  const char *name = len == 6    ? "cookie"
                     : len == 10 ? "set-cookie"
                     : len == 13 ? "authorization"
                     : len == 19 ? "proxy-authorization"
                                 : NULL;
  return name && ngx_memcmp(lower, name, len) == 0 ? PXG_STR_SENSITIVE : 0;
}

ngx_int_t ngx_http_pxg_request_fields(ngx_http_request_t *r, pxg_field *to, size_t room, size_t *n) {
  static const pxg_str method = {(const uint8_t *)":method", 7, 0}, scheme = {(const uint8_t *)":scheme", 7, 0},
                       authority = {(const uint8_t *)":authority", 10, 0}, path = {(const uint8_t *)":path", 5, 0};
  ngx_list_part_t *part = &r->headers_in.headers.part;
  ngx_table_elt_t *e;
  pxg_field *at = to, *end = to + room;
  ngx_str_t s = ngx_http_pxg_scheme(r), p;
  ngx_uint_t i;

  if (ngx_http_pxg_path(r, &p) != NGX_OK) return NGX_DECLINED;
  *at++ = (pxg_field){method, ngx_http_pxg_str(&r->method_name, 0)};
  *at++ = (pxg_field){scheme, ngx_http_pxg_str(&s, 0)};
  if (r->headers_in.host) *at++ = (pxg_field){authority, ngx_http_pxg_str(&r->headers_in.host->value, 0)};
  *at++ = (pxg_field){path, ngx_http_pxg_str(&p, 0)};
  for (; part; part = part->next) {
    e = part->elts;
    for (i = 0; i < part->nelts; i++, e++) {
      if (e->key.len == 0 || (e->key.len == 4 && ngx_http_pxg_same(&e->key, "host"))) continue;
      if (at == end || e->lowcase_key == NULL) return NGX_DECLINED;
      at->name = (pxg_str){e->lowcase_key, (uint32_t)e->key.len, 0};
      at->value = ngx_http_pxg_str(&e->value, ngx_http_pxg_value_flags(e->lowcase_key, e->key.len));
      at++;
    }
  }
  *n = (size_t)(at - to);
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_request_view(ngx_http_pxg_fields_t *f) {
  ngx_http_request_t *r = f->request;
  ngx_str_t scheme = ngx_http_pxg_scheme(r), path;

  if (ngx_http_pxg_push_text(f, ":method", &r->method_name, NGX_HTTP_PXG_PSEUDO) != NGX_OK ||
      ngx_http_pxg_push_text(f, ":scheme", &scheme, NGX_HTTP_PXG_PSEUDO) != NGX_OK)
    return NGX_ERROR;
  if (r->headers_in.host &&
      ngx_http_pxg_push_text(f, ":authority", &r->headers_in.host->value, NGX_HTTP_PXG_PSEUDO) != NGX_OK)
    return NGX_ERROR;
  if (ngx_http_pxg_path(r, &path) != NGX_OK) return NGX_ERROR;
  if (ngx_http_pxg_push_text(f, ":path", &path, NGX_HTTP_PXG_PSEUDO) != NGX_OK) return NGX_ERROR;
  return ngx_http_pxg_push_list(f);
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

static ngx_int_t ngx_http_pxg_set_authority(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_table_elt_t *h = r->headers_in.host;
  u_char *p = ngx_http_pxg_copy(r->pool, v), *end, *low;
  size_t n;

  if (p == NULL) return NGX_ERROR;
  /* $host, by the rules that nginx has for clients: without the port and a dot at its end, in lower case. It may be part
   * of a path, so `..` is none. */
  n = v->len;
  if (p[0] == '[') {
    end = ngx_strlchr(p, p + n, ']');
    if (end) n = (size_t)(end + 1 - p);
  } else {
    end = ngx_strlchr(p, p + n, ':');
    if (end) n = (size_t)(end - p);
  }
  if (ngx_strnstr(p, "..", n)) return NGX_DECLINED;
  if (n && p[n - 1] == '.') n--;
  if (n == 0) return NGX_DECLINED;

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

  low = ngx_pnalloc(r->pool, n + 1);
  if (low == NULL) return NGX_ERROR;
  ngx_strlow(low, p, n);
  low[n] = '\0';
  r->headers_in.server.data = low, r->headers_in.server.len = n;
  return NGX_OK;
}

/* nginx keeps a path decoded (uri), as it came (unparsed_uri) and in parts. Its own parser works on a copy of the
 * request, so that a path which it refuses changes nothing. The location stays what it is (10.2: recompute). */
static ngx_int_t ngx_http_pxg_set_path(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_http_core_srv_conf_t *cscf = ngx_http_get_module_srv_conf(r, ngx_http_core_module);
  ngx_http_core_loc_conf_t *clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);
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
  r->complex_uri = t->complex_uri, r->quoted_uri = t->quoted_uri, r->plus_in_uri = t->plus_in_uri;
  /* As with `rewrite ... break`: what replaces the location's prefix (`alias`, the path of proxy_pass) has none here. */
  if (!clcf->named && !clcf->regex &&
      (r->uri.len < clcf->name.len || ngx_filename_cmp(r->uri.data, clcf->name.data, clcf->name.len) != 0))
    r->valid_location = 0;
  ngx_str_null(&r->args);
  if (t->args_start && t->uri_end > t->args_start) {
    r->args.data = t->args_start;
    r->args.len = (size_t)(t->uri_end - t->args_start);
  }
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_request_pseudo(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *v) {
  ngx_http_request_t *r = f->request;

  f->derived = 1;
  if (ngx_http_pxg_same(name, ":method")) return ngx_http_pxg_set_method(r, v);
  if (ngx_http_pxg_same(name, ":authority")) return ngx_http_pxg_set_authority(r, v);
  if (ngx_http_pxg_same(name, ":path")) return ngx_http_pxg_set_path(r, v);
  if (ngx_http_pxg_same(name, ":scheme")) {
    u_char *p = ngx_http_pxg_copy(r->pool, v);
    if (p == NULL) return NGX_ERROR;
    r->schema.data = p, r->schema.len = v->len;
    return NGX_OK;
  }
  return NGX_DECLINED;
}

/* ---- Before the first guest ---------------------------------------------------------------------------------------- */

/* One character of a path at `*p`, decoded. */
static u_char ngx_http_pxg_decode(u_char **p, u_char *end) {
  ngx_int_t c;

  if (**p != '%' || end - *p < 3 || (c = ngx_hextoi(*p + 1, 2)) == NGX_ERROR) return *(*p)++;
  *p += 3;
  return (u_char)c;
}

static ngx_uint_t ngx_http_pxg_is_unreserved(u_char c) {
  u_char lower = (u_char)(c | 0x20);
  return (lower >= 'a' && lower <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
}

/* The normal form of RFC 3986: unreserved characters are not escaped, dot segments are resolved, and slashes merged where
 * the operator has not said otherwise; all other escapes stay. `to` has room for `len`. */
static size_t ngx_http_pxg_normal(u_char *to, u_char *from, size_t len, ngx_flag_t merge_slashes) {
  u_char *p = from, *end = from + len, *at = to, *next, c;

  while (p < end) {
    next = p;
    c = ngx_http_pxg_decode(&next, end);
    if (next - p == 1 || ngx_http_pxg_is_unreserved(c)) {
      *at++ = c;
    } else {
      at = ngx_cpymem(at, p, next - p);
    }
    p = next;
    if (p < end && *p != '/' && at[-1] != '/') continue;
    /* The end of a segment, or of the path. */
    if (at[-1] == '/') {
      if (merge_slashes && at - to >= 2 && at[-2] == '/') at--;
      continue;
    }
    if (at - to >= 2 && at[-1] == '.' && at[-2] == '/') {
      at--;
    } else if (at - to >= 3 && at[-1] == '.' && at[-2] == '.' && at[-3] == '/') {
      for (at -= 3; at > to && at[-1] != '/'; at--) { /* void */
      }
      if (at == to) *at++ = '/';
    } else {
      continue;
    }
    if (p < end) p++; /* Its slash. */
  }
  return (size_t)(at - to);
}

/* A path that says something else than what nginx chooses locations by gets its normal form; where escapes still hide
 * a part of it, what nginx made of it. */
static ngx_int_t ngx_http_pxg_normalize_path(ngx_http_request_t *r) {
  ngx_http_core_srv_conf_t *cscf = ngx_http_get_module_srv_conf(r, ngx_http_core_module);
  ngx_str_t raw = r->unparsed_uri;
  u_char *args, *end, *to, *p, *u;
  size_t n, rest;

  end = ngx_strlchr(raw.data, raw.data + raw.len, '#');
  if (end == NULL) end = raw.data + raw.len;
  args = ngx_strlchr(raw.data, end, '?');
  if (args == NULL) args = end;
  rest = (size_t)(end - args);
  to = ngx_pnalloc(r->pool, raw.len + 1);
  if (to == NULL) return NGX_ERROR;
  n = ngx_http_pxg_normal(to, raw.data, (size_t)(args - raw.data), cscf->merge_slashes);

  for (p = to, u = r->uri.data; p < to + n && u < r->uri.data + r->uri.len; u++)
    if (ngx_http_pxg_decode(&p, to + n) != *u) break;
  if (p != to + n || u != r->uri.data + r->uri.len) {
    r->valid_unparsed_uri = 0;
    return NGX_OK;
  }
  ngx_memcpy(to + n, args, rest);
  if (n + rest == raw.len && ngx_memcmp(to, raw.data, raw.len) == 0) return NGX_OK;
  r->unparsed_uri.data = to, r->unparsed_uri.len = n + rest;
  return NGX_OK;
}

ngx_uint_t ngx_http_pxg_receives_trailers(ngx_http_request_t *r) {
  ngx_table_elt_t *te = r->headers_in.te;

  if (r->http_version >= NGX_HTTP_VERSION_20) return 1;
  return r->http_version == NGX_HTTP_VERSION_11 && te &&
         ngx_strlcasestrn(te->value.data, te->value.data + te->value.len, (u_char *)"trailers",
                          sizeof("trailers") - 1 - 1) != NULL;
}

ngx_int_t ngx_http_pxg_fields_normalize(ngx_http_request_t *r) {
  ngx_str_t authority;
  u_char *end;

  /* The authority of an absolute target counts, and not the field (RFC 9112, 3.2.2). */
  if (r->host_start && r->host_end && r->schema.len) {
    end = r->request_line.data + r->request_line.len;
    authority.data = r->host_start;
    for (authority.len = 0; r->host_start + authority.len < end; authority.len++)
      if (ngx_strchr("/?# ", r->host_start[authority.len])) break;
    if (authority.len &&
        (r->headers_in.host == NULL || r->headers_in.host->value.len != authority.len ||
         ngx_memcmp(r->headers_in.host->value.data, authority.data, authority.len) != 0) &&
        ngx_http_pxg_set_authority(r, &authority) != NGX_OK)
      return NGX_ERROR;
  }
  if (r->valid_unparsed_uri && (r->complex_uri || r->quoted_uri)) return ngx_http_pxg_normalize_path(r);
  return NGX_OK;
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

/* Variables that were asked for before keep their value, so that a condition of an earlier phase and a later one agree.
 * Those that only say what a request has are asked anew. */
static void ngx_http_pxg_forget_variables(ngx_http_request_t *r) {
  static const char *const names[] = {"request_uri",  "request_method", "host",        "scheme",
                                      "content_type", "content_length", "remote_user", "proxy_add_x_forwarded_for"};
  ngx_http_core_main_conf_t *cmcf = ngx_http_get_module_main_conf(r, ngx_http_core_module);
  ngx_http_variable_t *v = cmcf->variables.elts;
  ngx_uint_t i, k;

  for (i = 0; i < cmcf->variables.nelts; i++) {
    if (!r->variables[i].valid && !r->variables[i].not_found) continue;
    ngx_uint_t is = ngx_strncmp(v[i].name.data, "http_", 5) == 0 || ngx_strncmp(v[i].name.data, "cookie_", 7) == 0 ||
                    ngx_strncmp(v[i].name.data, "arg_", 4) == 0;
    for (k = 0; !is && k < sizeof(names) / sizeof(names[0]); k++) is = ngx_http_pxg_same(&v[i].name, names[k]);
    if (is) r->variables[i].valid = r->variables[i].not_found = 0;
  }
}

/* Modules of nginx copy headers_in.headers without a look at removed elements, so the list is made anew. */
ngx_int_t ngx_http_pxg_request_commit(ngx_http_pxg_fields_t *f) {
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
  ngx_http_pxg_forget_variables(r);
  return f->removed || f->derived ? ngx_http_pxg_rederive_in(r) : NGX_OK;
}

static ngx_uint_t ngx_http_pxg_remove_all(ngx_http_request_t *r, u_char *name, size_t len) {
  ngx_list_part_t *part;
  ngx_table_elt_t *e, *end;
  ngx_uint_t found = 0;

  for (part = &r->headers_in.headers.part; part; part = part->next)
    for (e = part->elts, end = e + part->nelts; e < end; e++)
      if (e->key.len == len && ngx_strncasecmp(e->key.data, name, len) == 0) e->hash = 0, e->key.len = 0, found = 1;
  return found;
}

ngx_int_t ngx_http_pxg_request_edits(ngx_http_request_t *r, const pxg_op *edits, size_t n) {
  ngx_http_core_main_conf_t *cmcf = ngx_http_get_module_main_conf(r, ngx_http_core_module);
  ngx_http_pxg_fields_t f;
  ngx_table_elt_t *e;
  ngx_uint_t hash;
  const pxg_str *value;
  u_char *name, *p;
  size_t len;

  f.request = r, f.removed = 0, f.derived = 0;
  for (; n; n--, edits++) {
    name = (u_char *)(uintptr_t)edits->key.ptr, len = edits->key.len, value = &edits->val.bytes;
    if (edits->kind != PXG_OP_HEADER_ADD && ngx_http_pxg_remove_all(r, name, len)) f.removed = 1;
    if (edits->kind == PXG_OP_HEADER_DELETE) continue;
    p = ngx_pnalloc(r->pool, len + value->len + 2);
    if (p == NULL) return NGX_ERROR;
    e = ngx_list_push(&r->headers_in.headers);
    if (e == NULL) return NGX_ERROR;
    ngx_memzero(e, sizeof(*e));
    hash = ngx_hash_key(name, len);
    if (!f.derived) f.derived = ngx_hash_find(&cmcf->headers_in_hash, hash, name, len) != NULL;
    e->hash = hash ? hash : 1;
    e->key.data = e->lowcase_key = p, e->key.len = len;
    p = ngx_cpymem(p, name, len);
    *p++ = '\0';
    e->value.data = p, e->value.len = value->len;
    if (value->len) p = ngx_cpymem(p, value->ptr, value->len);
    *p = '\0'; /* nginx reads some values up to a NUL. */
  }
  return ngx_http_pxg_request_commit(&f);
}

ngx_uint_t ngx_http_pxg_request_derives(ngx_http_request_t *r, const ngx_str_t *name) {
  ngx_http_core_main_conf_t *cmcf = ngx_http_get_module_main_conf(r, ngx_http_core_module);
  return ngx_hash_find(&cmcf->headers_in_hash, ngx_hash_key(name->data, name->len), name->data, name->len) != NULL;
}

ngx_int_t ngx_http_pxg_request_length(ngx_http_request_t *r, off_t length) {
  ngx_http_pxg_fields_t f;
  ngx_str_t name = ngx_string("content-length");
  ngx_table_elt_t *h = r->headers_in.content_length;
  u_char *p;

  if (length < 0) { /* content_length_n stays: nginx reads the body by it. */
    if (h == NULL) return NGX_OK;
    ngx_memzero(&f, sizeof(f));
    f.request = r, f.direction = PXG_DIR_REQUEST;
    ngx_http_pxg_remove_name(&f, &name);
    return ngx_http_pxg_request_commit(&f);
  }
  r->headers_in.content_length_n = length;
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
