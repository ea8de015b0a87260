/* SPDX-License-Identifier: Apache-2.0 */

/* proxy_golang_status: what was counted (15.4), what guests count, and how the filters are set, as text for people, as
 * JSON, or for Prometheus. */

#include "ngx_http_pxg.h"

typedef struct {
  ngx_http_request_t *request;
  ngx_http_pxg_main_conf_t *main;
  ngx_chain_t *first, **last;
  ngx_buf_t *buf;
  off_t len;
  ngx_uint_t n; /* Elements of a list so far. */
  const char *family;
} ngx_http_pxg_page_t;

/* ---- Writing ------------------------------------------------------------------------------------------------------- */

static bool ngx_http_pxg_put(void *data, const char *text, size_t len) {
  ngx_http_pxg_page_t *p = data;
  ngx_chain_t *cl;
  size_t n;

  p->len += (off_t)len;
  while (len) {
    if (p->buf == NULL || p->buf->last == p->buf->end) {
      p->buf = ngx_create_temp_buf(p->request->pool, 16384);
      cl = p->buf ? ngx_alloc_chain_link(p->request->pool) : NULL;
      if (cl == NULL) return false;
      cl->buf = p->buf, cl->next = NULL;
      *p->last = cl, p->last = &cl->next;
    }
    n = ngx_min(len, (size_t)(p->buf->end - p->buf->last));
    p->buf->last = ngx_cpymem(p->buf->last, text, n);
    text += n, len -= n;
  }
  return true;
}

static bool ngx_http_pxg_print(ngx_http_pxg_page_t *p, const char *format, ...) {
  u_char line[4096], *last;
  va_list args;

  va_start(args, format);
  last = ngx_vslprintf(line, line + sizeof(line), format, args);
  va_end(args);
  return ngx_http_pxg_put(p, (char *)line, (size_t)(last - line));
}

/* What is between the quotes of a JSON string. `escaped`: quotes and backslashes are. */
static bool ngx_http_pxg_json_text(ngx_http_pxg_page_t *p, const u_char *s, size_t len, ngx_uint_t escaped) {
  size_t i, from = 0;

  for (i = 0; i < len; i++) {
    if (s[i] >= 0x20 && (escaped || (s[i] != '"' && s[i] != '\\'))) continue;
    if (!ngx_http_pxg_put(p, (const char *)s + from, i - from) || !ngx_http_pxg_print(p, "\\u%04xd", (int)s[i]))
      return false;
    from = i + 1;
  }
  return ngx_http_pxg_put(p, (const char *)s + from, len - from);
}

/* A JSON string of what nginx.conf holds. */
static bool ngx_http_pxg_json(ngx_http_pxg_page_t *p, const ngx_str_t *s) {
  return ngx_http_pxg_put(p, "\"", 1) && ngx_http_pxg_json_text(p, s->data, s->len, 0) && ngx_http_pxg_put(p, "\"", 1);
}

static void ngx_http_pxg_number_of(const pxg_sample *s, char *to, size_t room) {
  if (s->real)
    (void)snprintf(to, room, "%.9g", s->f);
  else if (s->is_signed)
    (void)snprintf(to, room, "%lld", (long long)s->i);
  else
    (void)snprintf(to, room, "%llu", (unsigned long long)s->i);
}

/* The next `name="value"` of labels; the value keeps its escapes. Null: there is none. */
static const char *ngx_http_pxg_label(const char *at, ngx_str_t *name, ngx_str_t *value) {
  const char *equals = ngx_strchr(at, '=');

  if (*at == '\0' || equals == NULL) return NULL;
  name->data = (u_char *)(uintptr_t)at, name->len = (size_t)(equals - at);
  at = equals + 2;
  value->data = (u_char *)(uintptr_t)at;
  while (*at && *at != '"') at += *at == '\\' && at[1] ? 2 : 1;
  value->len = (size_t)(at - (char *)value->data);
  if (*at) at++;
  return *at == ',' ? at + 1 : at;
}

static const struct {
  const char *name;
  size_t offset;
} ngx_http_pxg_steps[] = {{"batch_end", offsetof(ngx_http_pxg_filter_t, batch_end)},
                          {"warm_up", offsetof(ngx_http_pxg_filter_t, warm_up)},
                          {"all_cpus", offsetof(ngx_http_pxg_filter_t, all_cpus)}};

static ngx_uint_t ngx_http_pxg_step(const ngx_http_pxg_filter_t *f, ngx_uint_t i) {
  return *((u_char *)f + ngx_http_pxg_steps[i].offset);
}

static const struct {
  const char *name, *text;
  size_t offset;
} ngx_http_pxg_sums[] = {
    {"pxg_worker_starts_total", "workers started", offsetof(ngx_http_pxg_totals_t, workers)},
    {"pxg_worker_refused_filters_total", "filters refused by a worker", offsetof(ngx_http_pxg_totals_t, refusals)},
    {"pxg_worker_wakes_total", "wake-ups by guests", offsetof(ngx_http_pxg_totals_t, wakes)},
    {"pxg_worker_completions_total", "streams served by them", offsetof(ngx_http_pxg_totals_t, mails)},
    {"pxg_worker_batch_ends_total", "batches", offsetof(ngx_http_pxg_totals_t, batch_ends)},
};

enum {
  NGX_HTTP_PXG_N_SUMS = sizeof(ngx_http_pxg_sums) / sizeof(ngx_http_pxg_sums[0]),
  NGX_HTTP_PXG_N_STEPS = sizeof(ngx_http_pxg_steps) / sizeof(ngx_http_pxg_steps[0])
};

static unsigned long ngx_http_pxg_sum(ngx_uint_t i) {
  return *(ngx_atomic_t *)(void *)((u_char *)ngx_http_pxg_totals + ngx_http_pxg_sums[i].offset);
}

/* ---- Prometheus ---------------------------------------------------------------------------------------------------- */

static bool ngx_http_pxg_prometheus(ngx_http_pxg_page_t *p) {
  ngx_http_pxg_filter_t **f = p->main->filters.elts;
  ngx_uint_t i, k;

  if (!pxg_zone_prometheus(ngx_http_pxg_zone(p->main), ngx_http_pxg_put, p)) return false;
  for (i = 0; i < NGX_HTTP_PXG_N_SUMS; i++)
    if (!ngx_http_pxg_print(p, "# HELP %s All workers: %s.\n# TYPE %s counter\n%s %ul\n", ngx_http_pxg_sums[i].name,
                            ngx_http_pxg_sums[i].text, ngx_http_pxg_sums[i].name, ngx_http_pxg_sums[i].name,
                            ngx_http_pxg_sum(i)))
      return false;
  if (!ngx_http_pxg_print(p,
                          "# HELP pxg_host_info The module and the nginx that it is in.\n# TYPE pxg_host_info gauge\n"
                          "pxg_host_info{host=\"nginx\",version=\"%s\",module=\"%s\",abi=\"%d.%d\"} 1\n",
                          NGINX_VERSION, NGX_HTTP_PXG_VERSION, PXG_VERSION_MAJOR, PXG_VERSION_MINOR))
    return false;
  if (p->main->filters.nelts &&
      !ngx_http_pxg_print(
          p, "# HELP pxg_recipe What the host does for runtimes: 1 where it is on.\n# TYPE pxg_recipe gauge\n"))
    return false;
  for (i = 0; i < p->main->filters.nelts; i++)
    for (k = 0; k < NGX_HTTP_PXG_N_STEPS; k++)
      if (!ngx_http_pxg_print(p, "pxg_recipe{config=\"%V\",step=\"%s\"} %ui\n", &f[i]->name, ngx_http_pxg_steps[k].name,
                              ngx_http_pxg_step(f[i], k)))
        return false;
  return true;
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------- */

/* A label's value in Prometheus' escapes, which JSON has, too: \\, \" and \n. */
static bool ngx_http_pxg_json_labels(ngx_http_pxg_page_t *p, const char *labels) {
  ngx_str_t name, value;
  ngx_uint_t n = 0;

  if (!ngx_http_pxg_put(p, "{", 1)) return false;
  for (; (labels = ngx_http_pxg_label(labels, &name, &value)) != NULL; n++)
    if (!ngx_http_pxg_print(p, "%s\"%V\":\"", n ? "," : "", &name) ||
        !ngx_http_pxg_json_text(p, value.data, value.len, 1) || !ngx_http_pxg_put(p, "\"", 1))
      return false;
  return ngx_http_pxg_put(p, "}", 1);
}

static bool ngx_http_pxg_json_sample(void *data, const pxg_sample *s) {
  ngx_http_pxg_page_t *p = data;
  char number[64];

  ngx_http_pxg_number_of(s, number, sizeof(number));
  return ngx_http_pxg_print(p, "%s\n{\"name\":\"%s%s\",\"type\":\"%s\",\"labels\":", p->n++ ? "," : "", s->family,
                            s->suffix, s->type) &&
         ngx_http_pxg_json_labels(p, s->labels) && ngx_http_pxg_print(p, ",\"value\":%s}", number);
}

static bool ngx_http_pxg_json_filter(ngx_http_pxg_page_t *p, const ngx_http_pxg_filter_t *f) {
  return ngx_http_pxg_print(p, "%s\n{\"name\":\"%V\",\"guest\":", p->n++ ? "," : "", &f->name) &&
         ngx_http_pxg_json(p, &f->guest) && ngx_http_pxg_print(p, ",\"filter\":") && ngx_http_pxg_json(p, &f->filter) &&
         ngx_http_pxg_print(p,
                            ",\"loaded\":%s,\"failure_mode\":\"%s\",\"recipe\":{\"batch_end\":%s,\"warm_up\":%s,"
                            "\"all_cpus\":%s}}",
                            f->config ? "true" : "false", f->policy.fail_open ? "open" : "closed",
                            f->batch_end ? "true" : "false", f->warm_up ? "true" : "false",
                            f->all_cpus ? "true" : "false");
}

static bool ngx_http_pxg_json_page(ngx_http_pxg_page_t *p) {
  ngx_http_pxg_filter_t **f = p->main->filters.elts;
  ngx_uint_t i;

  if (!ngx_http_pxg_print(p,
                          "{\"host\":\"nginx\",\"version\":\"%s\",\"module\":\"%s\",\"abi\":\"%d.%d\",\"worker\":%P,"
                          "\"filters\":[",
                          NGINX_VERSION, NGX_HTTP_PXG_VERSION, PXG_VERSION_MAJOR, PXG_VERSION_MINOR, ngx_pid))
    return false;
  for (i = 0; i < p->main->filters.nelts; i++)
    if (!ngx_http_pxg_json_filter(p, f[i])) return false;
  if (!ngx_http_pxg_print(p, "],\n\"workers\":{")) return false;
  for (i = 0; i < NGX_HTTP_PXG_N_SUMS; i++)
    if (!ngx_http_pxg_print(p, "%s\"%s\":%ul", i ? "," : "", ngx_http_pxg_sums[i].name, ngx_http_pxg_sum(i)))
      return false;
  p->n = 0;
  return ngx_http_pxg_print(p, "},\n\"metrics\":[") &&
         pxg_zone_walk(ngx_http_pxg_zone(p->main), ngx_http_pxg_json_sample, p) && ngx_http_pxg_print(p, "]}\n");
}

/* ---- Text ---------------------------------------------------------------------------------------------------------- */

static bool ngx_http_pxg_text_sample(void *data, const pxg_sample *s) {
  ngx_http_pxg_page_t *p = data;
  ngx_str_t name, value;
  const char *at = s->labels;
  char number[64];
  ngx_uint_t n;

  if (ngx_strcmp(s->suffix, "_bucket") == 0) return true;
  if (!s->real && s->i == 0) return true;
  if (p->family == NULL || ngx_strcmp(p->family, s->family) != 0) {
    p->family = s->family;
    if (!ngx_http_pxg_print(p, "\n%s\n", s->family)) return false;
  }
  ngx_http_pxg_number_of(s, number, sizeof(number));
  if (!ngx_http_pxg_print(p, "  %s%s", number,
                          *s->suffix ? (ngx_strcmp(s->suffix, "_sum") == 0 ? " sum" : " count") : ""))
    return false;
  for (n = 0; (at = ngx_http_pxg_label(at, &name, &value)) != NULL; n++)
    if (!ngx_http_pxg_print(p, "%s%V=%V", n ? " " : "  ", &name, &value)) return false;
  return ngx_http_pxg_put(p, "\n", 1);
}

static bool ngx_http_pxg_text_page(ngx_http_pxg_page_t *p) {
  ngx_http_pxg_filter_t **f = p->main->filters.elts;
  ngx_uint_t i;

  if (!ngx_http_pxg_print(p, "proxy_golang %s in nginx %s, %ui filters\n\n", NGX_HTTP_PXG_VERSION, NGINX_VERSION,
                          p->main->filters.nelts))
    return false;
  for (i = 0; i < p->main->filters.nelts; i++)
    if (!ngx_http_pxg_print(p, "%V: %s\n  filter %V of %V\n  failure_mode %s, batch_end %s, warm_up %s, all_cpus %s\n",
                            &f[i]->name, f[i]->config ? "loaded" : "REFUSED by this worker, see the error log",
                            &f[i]->filter, &f[i]->guest, f[i]->policy.fail_open ? "open" : "closed",
                            f[i]->batch_end ? "on" : "off", f[i]->warm_up ? "on" : "off",
                            f[i]->all_cpus ? "on" : "off"))
      return false;
  if (!ngx_http_pxg_print(p, "\nall workers\n")) return false;
  for (i = 0; i < NGX_HTTP_PXG_N_SUMS; i++)
    if (!ngx_http_pxg_print(p, "  %ul %s\n", ngx_http_pxg_sum(i), ngx_http_pxg_sums[i].text)) return false;
  return pxg_zone_walk(ngx_http_pxg_zone(p->main), ngx_http_pxg_text_sample, p);
}

/* ---- The location -------------------------------------------------------------------------------------------------- */

/* nginx keeps the Accept field as a member only where it was built with modules that need it. */
static ngx_str_t ngx_http_pxg_accept(ngx_http_request_t *r) {
  ngx_list_part_t *part;
  ngx_table_elt_t *h;
  ngx_uint_t i;
  ngx_str_t none = ngx_null_string;

  for (part = &r->headers_in.headers.part; part; part = part->next)
    for (h = part->elts, i = 0; i < part->nelts; i++)
      if (h[i].key.len == sizeof("accept") - 1 && ngx_strncasecmp(h[i].key.data, (u_char *)"accept", 6) == 0)
        return h[i].value;
  return none;
}

static ngx_uint_t ngx_http_pxg_format_named(const ngx_str_t *v) {
  if (v->len == 4 && ngx_strncmp(v->data, "text", 4) == 0) return NGX_HTTP_PXG_STATUS_TEXT;
  if (v->len == 4 && ngx_strncmp(v->data, "json", 4) == 0) return NGX_HTTP_PXG_STATUS_JSON;
  if (v->len == 10 && ngx_strncmp(v->data, "prometheus", 10) == 0) return NGX_HTTP_PXG_STATUS_PROMETHEUS;
  return NGX_HTTP_PXG_STATUS_NONE;
}

/* What a scraper sends names the version of the format; a browser asks for HTML first and gets text. */
static ngx_uint_t ngx_http_pxg_format(ngx_http_request_t *r, ngx_uint_t set) {
  ngx_str_t v;
  ngx_uint_t named;

  if (set != NGX_HTTP_PXG_STATUS_ASKED) return set;
  if (ngx_http_arg(r, (u_char *)"format", 6, &v) == NGX_OK) {
    named = ngx_http_pxg_format_named(&v);
    if (named) return named;
  }
  v = ngx_http_pxg_accept(r);
  if (v.len == 0) return NGX_HTTP_PXG_STATUS_TEXT;
  if (ngx_strlcasestrn(v.data, v.data + v.len, (u_char *)"openmetrics", 10) ||
      ngx_strlcasestrn(v.data, v.data + v.len, (u_char *)"version=0.0.4", 12))
    return NGX_HTTP_PXG_STATUS_PROMETHEUS;
  if (ngx_strlcasestrn(v.data, v.data + v.len, (u_char *)"application/json", 15)) return NGX_HTTP_PXG_STATUS_JSON;
  return NGX_HTTP_PXG_STATUS_TEXT;
}

/* A cache on the way would show old numbers, or show them to others. */
static ngx_int_t ngx_http_pxg_no_store(ngx_http_request_t *r) {
  ngx_table_elt_t *h = ngx_list_push(&r->headers_out.headers);

  if (h == NULL) return NGX_ERROR;
  ngx_memzero(h, sizeof(*h));
  h->hash = 1;
  ngx_str_set(&h->key, "Cache-Control");
  ngx_str_set(&h->value, "no-store");
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_status_handler(ngx_http_request_t *r) {
  ngx_http_pxg_loc_conf_t *l = ngx_http_get_module_loc_conf(r, ngx_http_proxy_golang_module);
  ngx_http_pxg_page_t p;
  ngx_uint_t format;
  ngx_int_t rc;
  bool ok;

  if (!(r->method & (NGX_HTTP_GET | NGX_HTTP_HEAD))) return NGX_HTTP_NOT_ALLOWED;
  rc = ngx_http_discard_request_body(r);
  if (rc != NGX_OK) return rc;
  ngx_memzero(&p, sizeof(p));
  p.request = r, p.last = &p.first;
  p.main = ngx_http_get_module_main_conf(r, ngx_http_proxy_golang_module);
  format = ngx_http_pxg_format(r, l->status);
  if (format == NGX_HTTP_PXG_STATUS_PROMETHEUS) {
    ngx_str_set(&r->headers_out.content_type, "text/plain; version=0.0.4; charset=utf-8");
    ok = ngx_http_pxg_prometheus(&p);
  } else if (format == NGX_HTTP_PXG_STATUS_JSON) {
    ngx_str_set(&r->headers_out.content_type, "application/json");
    ok = ngx_http_pxg_json_page(&p);
  } else {
    ngx_str_set(&r->headers_out.content_type, "text/plain; charset=utf-8");
    ok = ngx_http_pxg_text_page(&p);
  }
  if (!ok || p.buf == NULL) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  r->headers_out.content_type_len = r->headers_out.content_type.len;
  r->headers_out.content_type_lowcase = NULL;
  r->headers_out.status = NGX_HTTP_OK;
  r->headers_out.content_length_n = p.len;
  if (ngx_http_pxg_no_store(r) != NGX_OK) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  p.buf->last_buf = r == r->main;
  p.buf->last_in_chain = 1;
  rc = ngx_http_send_header(r);
  if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) return rc;
  return ngx_http_output_filter(r, p.first);
}

char *ngx_http_pxg_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_core_loc_conf_t *clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
  ngx_http_pxg_loc_conf_t *l = conf;
  ngx_str_t *v = cf->args->elts;

  if (l->status != NGX_HTTP_PXG_STATUS_NONE) return "is duplicate";
  l->status = cf->args->nelts == 1 ? NGX_HTTP_PXG_STATUS_ASKED : ngx_http_pxg_format_named(&v[1]);
  if (l->status == NGX_HTTP_PXG_STATUS_NONE) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" in \"%V\" directive, expected text, json or prometheus, or no value",
                       &v[1], &v[0]);
    return NGX_CONF_ERROR;
  }
  clcf->handler = ngx_http_pxg_status_handler;
  return NGX_CONF_OK;
}
