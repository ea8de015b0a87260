/* SPDX-License-Identifier: Apache-2.0 */

/* What nginx keeps of a response outside its list of headers, or derives from it. */

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

/* ---- The view ------------------------------------------------------------------------------------------------------ */

ngx_int_t ngx_http_pxg_response_view(ngx_http_pxg_fields_t *f) {
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

  /* Of slices guests see the first; the others are subrequests, and the length is that of all. */
  if (h->content_length == NULL && h->content_length_n >= 0 && !r->subrequest_ranges) {
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

/* ---- Fields that headers_out keeps outside its list ---------------------------------------------------------------- */

ngx_int_t ngx_http_pxg_set_content_type(ngx_http_request_t *r, const ngx_str_t *v) {
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

static ngx_int_t ngx_http_pxg_set_status(ngx_http_request_t *r, const ngx_str_t *v) {
  ngx_int_t status = ngx_atoi(v->data, v->len);
  if (v->len != 3 || status < 200 || status > 599) return NGX_DECLINED;
  if ((ngx_uint_t)status == r->headers_out.status) return NGX_OK;
  r->headers_out.status = (ngx_uint_t)status;
  ngx_str_null(&r->headers_out.status_line); /* That of the upstream, with its text. */
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_response_pseudo(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *v) {
  return ngx_http_pxg_same(name, ":status") ? ngx_http_pxg_set_status(f->request, v) : NGX_DECLINED;
}

/* ---- Commit -------------------------------------------------------------------------------------------------------- */

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

ngx_int_t ngx_http_pxg_response_commit(ngx_http_request_t *r) {
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

ngx_uint_t ngx_http_pxg_response_derives(const ngx_str_t *name) {
  ngx_uint_t k;
  for (k = 0; k < sizeof(ngx_http_pxg_out_shortcuts) / sizeof(ngx_http_pxg_out_shortcuts[0]); k++)
    if (ngx_http_pxg_same(name, (char *)ngx_http_pxg_out_shortcuts[k].name.data)) return 1;
#if (nginx_version < 1023000)
  for (k = 0; k < sizeof(ngx_http_pxg_out_arrays) / sizeof(ngx_http_pxg_out_arrays[0]); k++)
    if (ngx_http_pxg_same(name, (char *)ngx_http_pxg_out_arrays[k].name.data)) return 1;
#endif
  return 0;
}

void ngx_http_pxg_response_length(ngx_http_request_t *r, off_t length) {
  ngx_http_clear_content_length(r);
  r->headers_out.content_length_n = length;
}
