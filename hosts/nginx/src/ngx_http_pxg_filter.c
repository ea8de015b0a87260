/* SPDX-License-Identifier: Apache-2.0 */

/* proxy_golang_filter NAME { ... } and proxy_golang_override NAME { ... }. */

#include "ngx_http_pxg.h"

enum { NGX_HTTP_PXG_NAME_MAX = 128, NGX_HTTP_PXG_CONFIG_MAX = 64 << 20, NGX_HTTP_PXG_LINES_TEXT = 512 };

/* Flags of lines. */
#define NGX_HTTP_PXG_OVERRIDES 0x1u /* May stand in an override. */
#define NGX_HTTP_PXG_ONLY 0x2u      /* In an override only. */
#define NGX_HTTP_PXG_LIST 0x4u      /* Takes several values. */

typedef struct ngx_http_pxg_line_s ngx_http_pxg_line_t;
struct ngx_http_pxg_line_s {
  ngx_str_t name;
  uint32_t flags;
  char *(*set)(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f);
  size_t offset; /* In pxg_policy, of times and sizes. */
};

static char *ngx_http_pxg_expected(ngx_conf_t *cf, const char *expected) {
  ngx_str_t *v = cf->args->elts;
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid value \"%V\" in \"%V\" directive, expected %s", &v[1], &v[0],
                     expected);
  return NGX_CONF_ERROR;
}

static uint64_t *ngx_http_pxg_number(ngx_http_pxg_filter_t *f, const ngx_http_pxg_line_t *line) {
  return (uint64_t *)(void *)((u_char *)&f->policy + line->offset);
}

/* ---- Values -------------------------------------------------------------------------------------------------------- */

static char *ngx_http_pxg_set_guest(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  f->guest = ((ngx_str_t *)cf->args->elts)[1];
  if (f->guest.len == 0) return ngx_http_pxg_expected(cf, "the path of a library");
  return ngx_conf_full_name(cf->cycle, &f->guest, 0) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}

static char *ngx_http_pxg_set_filter(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  f->filter = ((ngx_str_t *)cf->args->elts)[1];
  return f->filter.len ? NGX_CONF_OK : ngx_http_pxg_expected(cf, "the name of one of the library's filters");
}

static char *ngx_http_pxg_given_twice(ngx_conf_t *cf, const ngx_http_pxg_filter_t *f) {
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                     "the configuration of \"%V\" is given twice, expected either \"config\" or \"config_file\"",
                     &f->name);
  return NGX_CONF_ERROR;
}

static char *ngx_http_pxg_set_config(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  if (f->bytes.data) return ngx_http_pxg_given_twice(cf, f);
  f->bytes = ((ngx_str_t *)cf->args->elts)[1];
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_read_config(ngx_conf_t *cf, ngx_file_t *file, ngx_str_t *bytes) {
  ngx_file_info_t fi;
  ssize_t n;

  if (ngx_fd_info(file->fd, &fi) == NGX_FILE_ERROR) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno, ngx_fd_info_n " \"%V\" failed", &file->name);
    return NGX_CONF_ERROR;
  }
  if (!ngx_is_file(&fi) || ngx_file_size(&fi) > NGX_HTTP_PXG_CONFIG_MAX) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" is %s, expected a regular file of at most 64m as \"config_file\"",
                       &file->name, ngx_is_file(&fi) ? "too large" : "no regular file");
    return NGX_CONF_ERROR;
  }
  bytes->len = (size_t)ngx_file_size(&fi);
  bytes->data = ngx_pnalloc(cf->pool, bytes->len + 1);
  if (bytes->data == NULL) return NGX_CONF_ERROR;
  n = ngx_read_file(file, bytes->data, bytes->len, 0);
  if (n == (ssize_t)bytes->len) return NGX_CONF_OK;
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                     "\"%V\" could not be read whole: %z of %uz bytes; do not change it meanwhile", &file->name, n,
                     bytes->len);
  return NGX_CONF_ERROR;
}

static char *ngx_http_pxg_set_config_file(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  ngx_file_t file;
  char *rc;

  if (f->bytes.data) return ngx_http_pxg_given_twice(cf, f);
  ngx_memzero(&file, sizeof(file));
  file.name = ((ngx_str_t *)cf->args->elts)[1], file.log = cf->log;
  if (ngx_conf_full_name(cf->cycle, &file.name, 1) != NGX_OK) return NGX_CONF_ERROR;
  /* A FIFO would keep an open for reading waiting. */
  file.fd = ngx_open_file(file.name.data, NGX_FILE_RDONLY, NGX_FILE_NONBLOCK, 0);
  if (file.fd == NGX_INVALID_FILE) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                       ngx_open_file_n " \"%V\" failed, expected a file with the configuration of \"%V\"", &file.name,
                       &f->name);
    return NGX_CONF_ERROR;
  }
  rc = ngx_http_pxg_read_config(cf, &file, &f->bytes);
  if (ngx_close_file(file.fd) == NGX_FILE_ERROR)
    ngx_log_error(NGX_LOG_ALERT, cf->log, ngx_errno, ngx_close_file_n " \"%V\" failed", &file.name);
  return rc;
}

static char *ngx_http_pxg_set_failure_mode(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;

  f->policy.fail_open = ngx_strcmp(v[1].data, "open") == 0;
  if (f->policy.fail_open || ngx_strcmp(v[1].data, "closed") == 0) return NGX_CONF_OK;
  return ngx_http_pxg_expected(cf, "open or closed");
}

static char *ngx_http_pxg_set_failure_status(ngx_conf_t *cf, const ngx_http_pxg_line_t *line,
                                             ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;
  ngx_int_t n = ngx_atoi(v[1].data, v[1].len);

  if (n < 500 || n > 599) return ngx_http_pxg_expected(cf, "a status from 500 to 599");
  f->policy.fail_status = (uint32_t)n;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_set_time(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;
  ngx_int_t ms = ngx_parse_time(&v[1], 0);

  if (ms <= 0 || ms > NGX_MAX_INT32_VALUE)
    return ngx_http_pxg_expected(cf, "a time from 1ms to 24d, for example 500ms or 30s");
  *ngx_http_pxg_number(f, line) = (uint64_t)ms * 1000000;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_set_size(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;
  off_t n = ngx_parse_offset(&v[1]);

  if (n <= 0) return ngx_http_pxg_expected(cf, "a size above 0, for example 64k or 1m");
  *ngx_http_pxg_number(f, line) = (uint64_t)n;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_set_max_pending(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;
  ngx_int_t n = ngx_atoi(v[1].data, v[1].len);

  if (n < 1 || n > NGX_MAX_INT32_VALUE) return ngx_http_pxg_expected(cf, "a number from 1 to 2147483647");
  f->policy.max_pending = (uint32_t)n;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_set_list(ngx_conf_t *cf, const char *const **list, size_t *n) {
  ngx_str_t *v = cf->args->elts;
  const char **to = ngx_palloc(cf->pool, cf->args->nelts * sizeof(*to));
  ngx_uint_t i;

  if (to == NULL) return NGX_CONF_ERROR;
  for (i = 1; i < cf->args->nelts; i++) to[i - 1] = (char *)v[i].data;
  *list = to, *n = cf->args->nelts - 1;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_set_clusters(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  return ngx_http_pxg_set_list(cf, &f->policy.clusters, &f->policy.n_clusters);
}

static char *ngx_http_pxg_set_namespaces(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  return ngx_http_pxg_set_list(cf, &f->policy.namespaces, &f->policy.n_namespaces);
}

static char *ngx_http_pxg_set_flag(ngx_conf_t *cf, const ngx_http_pxg_line_t *line, ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;
  ngx_uint_t on = ngx_strcmp(v[1].data, "on") == 0;

  if (!on && ngx_strcmp(v[1].data, "off") != 0) return ngx_http_pxg_expected(cf, "on or off");
  if (ngx_strcmp(v[0].data, "reply_refilter") == 0)
    f->reply_refilter = on;
  else if (ngx_strcmp(v[0].data, "flush") == 0)
    f->flush = on;
  else if (ngx_strcmp(v[0].data, "response_trailers") == 0)
    f->response_trailers = on;
  else if (ngx_strcmp(v[0].data, "batch_end") == 0)
    f->batch_end = on;
  else if (ngx_strcmp(v[0].data, "warm_up") == 0)
    f->warm_up = on;
  else if (ngx_strcmp(v[0].data, "all_cpus") == 0)
    f->all_cpus = on;
  else
    f->disabled = on;
  return NGX_CONF_OK;
}

#define NGX_HTTP_PXG_POLICY(member) offsetof(pxg_policy, member)

static const ngx_http_pxg_line_t ngx_http_pxg_lines[] = {
    {ngx_string("guest"), 0, ngx_http_pxg_set_guest, 0},
    {ngx_string("filter"), 0, ngx_http_pxg_set_filter, 0},
    {ngx_string("config"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_config, 0},
    {ngx_string("config_file"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_config_file, 0},
    {ngx_string("failure_mode"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_failure_mode, 0},
    {ngx_string("failure_status"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_failure_status, 0},
    {ngx_string("pend_default"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_time, NGX_HTTP_PXG_POLICY(pend_default_ns)},
    {ngx_string("pend_limit"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_time, NGX_HTTP_PXG_POLICY(pend_limit_ns)},
    {ngx_string("hold_limit"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_time, NGX_HTTP_PXG_POLICY(hold_limit_ns)},
    {ngx_string("hold_time"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_time, NGX_HTTP_PXG_POLICY(hold_time_ns)},
    {ngx_string("max_pending"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_max_pending, 0},
    {ngx_string("max_body"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_size, NGX_HTTP_PXG_POLICY(max_body_limit)},
    {ngx_string("body_default"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_size, NGX_HTTP_PXG_POLICY(max_body_default)},
    {ngx_string("clusters"), NGX_HTTP_PXG_OVERRIDES | NGX_HTTP_PXG_LIST, ngx_http_pxg_set_clusters, 0},
    {ngx_string("metadata_namespaces"), NGX_HTTP_PXG_OVERRIDES | NGX_HTTP_PXG_LIST, ngx_http_pxg_set_namespaces, 0},
    {ngx_string("reply_refilter"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_flag, 0},
    {ngx_string("flush"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_flag, 0},
    {ngx_string("response_trailers"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_flag, 0},
    {ngx_string("batch_end"), NGX_HTTP_PXG_OVERRIDES, ngx_http_pxg_set_flag, 0},
    {ngx_string("warm_up"), 0, ngx_http_pxg_set_flag, 0},
    {ngx_string("all_cpus"), 0, ngx_http_pxg_set_flag, 0},
    {ngx_string("disabled"), NGX_HTTP_PXG_OVERRIDES | NGX_HTTP_PXG_ONLY, ngx_http_pxg_set_flag, 0},
};

enum {
  NGX_HTTP_PXG_N_LINES = sizeof(ngx_http_pxg_lines) / sizeof(ngx_http_pxg_lines[0]),
  NGX_HTTP_PXG_DISABLED = NGX_HTTP_PXG_N_LINES - 1
};

/* ---- One line ------------------------------------------------------------------------------------------------------ */

static ngx_uint_t ngx_http_pxg_fits(const ngx_http_pxg_line_t *line, const ngx_http_pxg_filter_t *f) {
  return f->parent ? (line->flags & NGX_HTTP_PXG_OVERRIDES) != 0 : !(line->flags & NGX_HTTP_PXG_ONLY);
}

static char *ngx_http_pxg_unknown(ngx_conf_t *cf, const ngx_http_pxg_filter_t *f) {
  ngx_str_t *v = cf->args->elts;
  u_char names[NGX_HTTP_PXG_LINES_TEXT], *last = names;
  ngx_uint_t i;

  for (i = 0; i < NGX_HTTP_PXG_N_LINES; i++)
    if (ngx_http_pxg_fits(&ngx_http_pxg_lines[i], f))
      last = ngx_slprintf(last, names + sizeof(names), "%s%V", last == names ? "" : ", ", &ngx_http_pxg_lines[i].name);
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "unknown directive \"%V\" in %s \"%V\", expected one of %*s", &v[0],
                     f->parent ? "proxy_golang_override" : "proxy_golang_filter", &f->name, (size_t)(last - names),
                     names);
  return NGX_CONF_ERROR;
}

static char *ngx_http_pxg_line(ngx_conf_t *cf, ngx_command_t *dummy, void *conf) {
  ngx_http_pxg_filter_t *f = conf;
  const ngx_http_pxg_line_t *line = NULL;
  ngx_str_t *v = cf->args->elts;
  ngx_uint_t i;

  for (i = 0; i < NGX_HTTP_PXG_N_LINES; i++)
    if (ngx_http_pxg_lines[i].name.len == v[0].len && ngx_strcmp(ngx_http_pxg_lines[i].name.data, v[0].data) == 0)
      line = &ngx_http_pxg_lines[i];
  if (line == NULL || !ngx_http_pxg_fits(line, f)) return ngx_http_pxg_unknown(cf, f);
  i = (ngx_uint_t)(line - ngx_http_pxg_lines);
  if (cf->args->nelts < 2 || (cf->args->nelts > 2 && !(line->flags & NGX_HTTP_PXG_LIST))) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" of \"%V\" has %ui values, expected %s", &v[0], &f->name,
                       cf->args->nelts - 1, line->flags & NGX_HTTP_PXG_LIST ? "at least one" : "one");
    return NGX_CONF_ERROR;
  }
  if (f->given & 1u << i) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" of \"%V\" is duplicate, expected one such line", &v[0], &f->name);
    return NGX_CONF_ERROR;
  }
  f->given |= 1u << i;
  return line->set(cf, line, f);
}

/* ---- Blocks -------------------------------------------------------------------------------------------------------- */

/* A preset default gives way to a limit, one that the block has does not. */
static ngx_int_t ngx_http_pxg_limit(ngx_conf_t *cf, const ngx_http_pxg_filter_t *f, const char *name, uint64_t *value,
                                    const char *limit_name, uint64_t limit) {
  ngx_uint_t i;

  if (*value <= limit) return NGX_OK;
  for (i = 0; i < NGX_HTTP_PXG_N_LINES; i++) {
    if (!(f->given & 1u << i) || ngx_strcmp(ngx_http_pxg_lines[i].name.data, name) != 0) continue;
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%s\" of \"%V\" is above its \"%s\", expected at most that: raise \"%s\", too",
                       name, &f->name, limit_name, limit_name);
    return NGX_ERROR;
  }
  *value = limit;
  return NGX_OK;
}

static char *ngx_http_pxg_block(ngx_conf_t *cf, ngx_http_pxg_filter_t *f) {
  ngx_conf_t save = *cf;
  char *rc;

  f->file = cf->conf_file->file.name, f->line = cf->conf_file->line;
  cf->handler = ngx_http_pxg_line;
  cf->handler_conf = (void *)f;
  rc = ngx_conf_parse(cf, NULL);
  *cf = save;
  if (rc != NGX_CONF_OK) return rc;
  if (ngx_http_pxg_limit(cf, f, "pend_default", &f->policy.pend_default_ns, "pend_limit", f->policy.pend_limit_ns) != NGX_OK ||
      ngx_http_pxg_limit(cf, f, "body_default", &f->policy.max_body_default, "max_body", f->policy.max_body_limit) != NGX_OK)
    return NGX_CONF_ERROR;
  return NGX_CONF_OK;
}

static ngx_uint_t ngx_http_pxg_name_fits(const ngx_str_t *name) {
  ngx_uint_t i;

  for (i = 0; i < name->len; i++) {
    u_char c = name->data[i], low = (u_char)(c | 0x20);
    if (!((low >= 'a' && low <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '/')) return 0;
  }
  return name->len > 0 && name->len <= NGX_HTTP_PXG_NAME_MAX && ngx_strcmp(name->data, "off") != 0;
}

static ngx_http_pxg_filter_t *ngx_http_pxg_new_block(ngx_conf_t *cf, ngx_array_t *to) {
  ngx_http_pxg_filter_t *f = ngx_pcalloc(cf->pool, sizeof(*f)), **slot = f ? ngx_array_push(to) : NULL;
  if (slot == NULL) return NULL;
  *slot = f;
  return f;
}

char *ngx_http_pxg_filter_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_main_conf_t *m = conf;
  ngx_str_t name = ((ngx_str_t *)cf->args->elts)[1];
  ngx_http_pxg_filter_t *f = ngx_http_pxg_find(&m->filters, &name);
  char *rc;

  if (!ngx_http_pxg_name_fits(&name))
    return ngx_http_pxg_expected(cf, "a name of 1 to 128 characters of a-z A-Z 0-9 _ - / that is not \"off\"");
  if (f) {
    ngx_conf_log_error(
        NGX_LOG_EMERG, cf, 0,
        "proxy_golang_filter \"%V\" is defined twice, expected one block for each NAME; the other one is "
        "at %V:%ui, seen",
        &name, &f->file, f->line);
    return NGX_CONF_ERROR;
  }
  f = ngx_http_pxg_new_block(cf, &m->filters);
  if (f == NULL) return NGX_CONF_ERROR;
  f->name = name;
  f->batch_end = f->warm_up = f->all_cpus = 1;
  pxg_policy_default(&f->policy);
  rc = ngx_http_pxg_block(cf, f);
  if (rc != NGX_CONF_OK) return rc;
  if (f->guest.len == 0) {
    ngx_conf_log_error(
        NGX_LOG_EMERG, cf, 0,
        "proxy_golang_filter \"%V\" has no \"guest\", expected a line \"guest PATH;\" with the path of a "
        "library in its block",
        &f->name);
    return NGX_CONF_ERROR;
  }
  if (f->filter.len == 0) f->filter = f->name;
  return NGX_CONF_OK;
}

char *ngx_http_pxg_override_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_http_pxg_loc_conf_t *l = conf;
  ngx_str_t name = ((ngx_str_t *)cf->args->elts)[1];
  ngx_http_pxg_filter_t *parent = ngx_http_pxg_find(&m->filters, &name), *f, **slot;
  char *rc;

  if (parent == NULL) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "unknown filter \"%V\" in \"proxy_golang_override\": define it before with "
                       "\"proxy_golang_filter %V { ... }\" in http",
                       &name, &name);
    return NGX_CONF_ERROR;
  }
  if (l->overrides == NULL) l->overrides = ngx_array_create(cf->pool, 2, sizeof(ngx_http_pxg_filter_t *));
  if (l->overrides == NULL) return NGX_CONF_ERROR;
  if (ngx_http_pxg_find(l->overrides, &name)) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "\"proxy_golang_override %V\" stands twice here, expected one block for each NAME and location",
                       &name);
    return NGX_CONF_ERROR;
  }
  f = ngx_http_pxg_new_block(cf, &m->overrides);
  slot = f ? ngx_array_push(l->overrides) : NULL;
  if (slot == NULL) return NGX_CONF_ERROR;
  *slot = f;
  *f = *parent;
  f->parent = parent;
  f->given = 0, f->used = 0;
  ngx_str_null(&f->bytes);
  rc = ngx_http_pxg_block(cf, f);
  if (rc != NGX_CONF_OK) return rc;
  f->plain = !f->disabled && (f->given & ~(1u << NGX_HTTP_PXG_DISABLED)) == 0;
  if (f->bytes.data == NULL) f->bytes = parent->bytes;
  return NGX_CONF_OK;
}
