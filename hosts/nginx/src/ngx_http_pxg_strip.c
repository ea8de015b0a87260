/* SPDX-License-Identifier: Apache-2.0 */

/* proxy_golang_strip_request_fields: fields that upstreams trust guests to set, removed from what clients send. */

#include "ngx_http_pxg.h"

static ngx_uint_t ngx_http_pxg_is_token(const ngx_str_t *s) {
  static const char others[] = "!#$%&'*+-.^_`|~";
  ngx_uint_t i;

  for (i = 0; i < s->len; i++) {
    u_char c = s->data[i], low = (u_char)(c | 0x20);
    if (!((low >= 'a' && low <= 'z') || (c >= '0' && c <= '9') || (c && ngx_strchr(others, c)))) return 0;
  }
  return s->len > 0;
}

char *ngx_http_pxg_strip_fields(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_loc_conf_t *l = conf;
  ngx_str_t *v = cf->args->elts, *slot;
  ngx_uint_t i;

  if (l->strip != NGX_CONF_UNSET_PTR) return "is duplicate";
  if (cf->args->nelts == 2 && ngx_strcmp(v[1].data, "off") == 0) {
    l->strip = NULL;
    return NGX_CONF_OK;
  }
  ((ngx_http_pxg_main_conf_t *)ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module))->strips = 1;
  l->strip = ngx_array_create(cf->pool, cf->args->nelts - 1, sizeof(ngx_str_t));
  if (l->strip == NULL) return NGX_CONF_ERROR;
  for (i = 1; i < cf->args->nelts; i++) {
    if (ngx_strcmp(v[i].data, "off") == 0) return ngx_http_pxg_off_alone(cf);
    if (!ngx_http_pxg_is_token(&v[i])) {
      ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                         "invalid value \"%V\" in \"%V\" directive, expected names of header fields, or off", &v[i],
                         &v[0]);
      return NGX_CONF_ERROR;
    }
    slot = ngx_array_push(l->strip);
    *slot = v[i];
    ngx_strlow(slot->data, slot->data, slot->len);
  }
  return NGX_CONF_OK;
}

/* What CGI makes one name of is one name here. */
static ngx_uint_t ngx_http_pxg_same_name(const ngx_str_t *low, const ngx_str_t *name) {
  ngx_uint_t i;

  if (low->len != name->len) return 0;
  for (i = 0; i < low->len; i++) {
    u_char a = low->data[i], b = ngx_tolower(name->data[i]);
    if ((a == '_' ? '-' : a) != (b == '_' ? '-' : b)) return 0;
  }
  return 1;
}

static ngx_int_t ngx_http_pxg_strip_one(ngx_http_pxg_fields_t *f, const ngx_str_t *low) {
  ngx_list_part_t *part;
  ngx_table_elt_t *h;
  pxg_str name;
  ngx_uint_t i;

  for (part = &f->request->headers_in.headers.part; part; part = part->next) {
    h = part->elts;
    for (i = 0; i < part->nelts; i++) {
      if (!ngx_http_pxg_same_name(low, &h[i].key)) continue;
      name.ptr = h[i].key.data, name.len = (uint32_t)h[i].key.len, name.flags = 0;
      if (ngx_http_pxg_fields_delete(f, &name) == NGX_ERROR) return NGX_ERROR;
    }
  }
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_strip_handler(ngx_http_request_t *r) {
  ngx_http_pxg_loc_conf_t *l = ngx_http_get_module_loc_conf(r, ngx_http_proxy_golang_module);
  ngx_http_pxg_fields_t f;
  ngx_str_t *name;
  ngx_uint_t i;

  /* After an internal redirect they may be what guests have set. */
  if (l->strip == NULL || r != r->main || ngx_http_pxg_any(r)) return NGX_DECLINED;
  ngx_memzero(&f, sizeof(f));
  f.request = r, f.direction = PXG_DIR_REQUEST;
  name = l->strip->elts;
  for (i = 0; i < l->strip->nelts; i++)
    if (ngx_http_pxg_strip_one(&f, &name[i]) != NGX_OK) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  return f.removed && ngx_http_pxg_fields_commit(&f) != NGX_OK ? NGX_HTTP_INTERNAL_SERVER_ERROR : NGX_DECLINED;
}
