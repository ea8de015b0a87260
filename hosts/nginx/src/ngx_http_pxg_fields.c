/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg_fields.h"

static ngx_str_t ngx_http_pxg_view_of(const pxg_str *s) {
  ngx_str_t v = {s->len, (u_char *)(uintptr_t)s->ptr};
  return v;
}

ngx_int_t ngx_http_pxg_same(const ngx_str_t *a, const char *text) {
  size_t n = ngx_strlen(text);
  return a->len == n && ngx_strncasecmp(a->data, (u_char *)(uintptr_t)text, n) == 0;
}

/* nginx reads some values up to a NUL. */
u_char *ngx_http_pxg_copy(ngx_pool_t *pool, const ngx_str_t *s) {
  u_char *p = ngx_pnalloc(pool, s->len + 1);
  if (p == NULL) return NULL;
  if (s->len) ngx_memcpy(p, s->data, s->len);
  p[s->len] = '\0';
  return p;
}

/* An element without a name has been removed from headers_in, where hash may be anything; one without a hash from
 * headers_out, where nginx itself does it so. */
ngx_int_t ngx_http_pxg_gone(ngx_uint_t direction, const ngx_table_elt_t *e) {
  return direction == PXG_DIR_REQUEST ? e->key.len == 0 : e->hash == 0;
}

static ngx_list_t *ngx_http_pxg_list(ngx_http_pxg_fields_t *f) {
  ngx_http_request_t *r = f->request;
  if (f->trailers) return &r->headers_out.trailers;
  return f->direction == PXG_DIR_REQUEST ? &r->headers_in.headers : &r->headers_out.headers;
}

/* Walks a list; start with *part NULL. */
ngx_table_elt_t *ngx_http_pxg_next(ngx_list_t *list, ngx_list_part_t **part, ngx_uint_t *i) {
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

ngx_int_t ngx_http_pxg_push(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value,
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

ngx_int_t ngx_http_pxg_push_text(ngx_http_pxg_fields_t *f, const char *name, const ngx_str_t *value,
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

ngx_int_t ngx_http_pxg_push_list(ngx_http_pxg_fields_t *f) {
  ngx_list_part_t *part = NULL;
  ngx_table_elt_t *e;
  ngx_uint_t i = 0;
  ngx_str_t name;

  while ((e = ngx_http_pxg_next(ngx_http_pxg_list(f), &part, &i)) != NULL) {
    if (ngx_http_pxg_gone(f->direction, e) || e->key.len == 0) continue;
    if (ngx_http_pxg_lower(f, e, &name) != NGX_OK) return NGX_ERROR;
    if (f->direction == PXG_DIR_REQUEST && ngx_http_pxg_same(&name, "host")) continue;
    if (ngx_http_pxg_push(f, &name, &e->value, NGX_HTTP_PXG_IN_LIST, e) != NGX_OK) return NGX_ERROR;
  }
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_fields_view(ngx_http_pxg_fields_t *f, ngx_http_request_t *r, ngx_uint_t direction) {
  f->request = r, f->direction = direction, f->n = 0;
  if (f->trailers) return ngx_http_pxg_push_list(f);
  return direction == PXG_DIR_REQUEST ? ngx_http_pxg_request_view(f) : ngx_http_pxg_response_view(f);
}

static ngx_int_t ngx_http_pxg_set_pseudo(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *v) {
  f->edited = 1;
  return f->direction == PXG_DIR_REQUEST ? ngx_http_pxg_request_pseudo(f, name, v)
                                         : ngx_http_pxg_response_pseudo(f, name, v);
}

/* Whether nginx keeps more of a field than its element in the list. */
static void ngx_http_pxg_derive(ngx_http_pxg_fields_t *f, const ngx_str_t *name) {
  f->edited = 1;
  if (!f->derived && !f->trailers)
    f->derived = f->direction == PXG_DIR_REQUEST ? ngx_http_pxg_request_derives(f->request, name)
                                                 : ngx_http_pxg_response_derives(name);
}

/* True if the name lives outside the list; `v` NULL removes it. */
static ngx_int_t ngx_http_pxg_outside(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *v,
                                      ngx_int_t *rc) {
  if (f->trailers || f->direction != PXG_DIR_RESPONSE || !ngx_http_pxg_same(name, "content-type")) return 0;
  ngx_str_t none = ngx_null_string;
  *rc = ngx_http_pxg_set_content_type(f->request, v ? v : &none);
  return 1;
}

/* ---- Edits --------------------------------------------------------------------------------------------------------- */

static ngx_int_t ngx_http_pxg_append(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value) {
  ngx_pool_t *pool = f->request->pool;
  ngx_table_elt_t *e = ngx_list_push(ngx_http_pxg_list(f));
  if (e == NULL) return NGX_ERROR;

  ngx_memzero(e, sizeof(*e));
  ngx_http_pxg_derive(f, name);
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
  if (f->direction == PXG_DIR_RESPONSE) ngx_http_pxg_derive(f, &e->key);
  e->hash = 0;
  if (f->direction == PXG_DIR_REQUEST) e->key.len = 0;
  f->removed = 1, f->edited = 1;
}

void ngx_http_pxg_remove_name(ngx_http_pxg_fields_t *f, const ngx_str_t *name) {
  ngx_list_part_t *part = NULL;
  ngx_table_elt_t *e;
  ngx_uint_t i = 0;

  while ((e = ngx_http_pxg_next(ngx_http_pxg_list(f), &part, &i)) != NULL)
    if (!ngx_http_pxg_gone(f->direction, e) && e->key.len == name->len &&
        ngx_strncasecmp(e->key.data, name->data, name->len) == 0)
      ngx_http_pxg_remove(f, e);

  if (!f->trailers && f->direction == PXG_DIR_RESPONSE && ngx_http_pxg_same(name, "last-modified")) {
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
    ngx_http_pxg_derive(f, &name);
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

ngx_int_t ngx_http_pxg_fields_commit(ngx_http_pxg_fields_t *f) {
  ngx_int_t rc = NGX_OK;

  if (!f->edited) return NGX_OK;
  if (f->direction == PXG_DIR_REQUEST)
    rc = ngx_http_pxg_request_commit(f);
  else if (f->derived && !f->trailers)
    rc = ngx_http_pxg_response_commit(f->request);
  f->edited = f->derived = f->removed = 0;
  return rc;
}

ngx_int_t ngx_http_pxg_fields_length(ngx_http_request_t *r, ngx_uint_t direction, off_t length) {
  if (direction == PXG_DIR_REQUEST) return ngx_http_pxg_request_length(r, length);
  ngx_http_pxg_response_length(r, length);
  return NGX_OK;
}
