/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

#include <grp.h>

static char *ngx_http_pxg_filter_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_pxg_use(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

ngx_command_t ngx_http_pxg_commands[] = {

    {ngx_string("proxy_golang_filter"), NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE1, ngx_http_pxg_filter_block,
     NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL},

    {ngx_string("proxy_golang"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_1MORE,
     ngx_http_pxg_use, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},

    ngx_null_command};

void *ngx_http_pxg_create_main_conf(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_pcalloc(cf->pool, sizeof(*m));
  if (m == NULL || ngx_array_init(&m->filters, cf->pool, 4, sizeof(ngx_http_pxg_filter_t *)) != NGX_OK) return NULL;
  return m;
}

void *ngx_http_pxg_create_loc_conf(ngx_conf_t *cf) {
  ngx_http_pxg_loc_conf_t *l = ngx_pcalloc(cf->pool, sizeof(*l));
  if (l) l->chain = NGX_CONF_UNSET_PTR;
  return l;
}

char *ngx_http_pxg_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child) {
  ngx_http_pxg_loc_conf_t *prev = parent, *conf = child;
  ngx_conf_merge_ptr_value(conf->chain, prev->chain, NULL);
  return NGX_CONF_OK;
}

static ngx_http_pxg_filter_t *ngx_http_pxg_find(ngx_http_pxg_main_conf_t *m, const ngx_str_t *name) {
  ngx_http_pxg_filter_t **f = m->filters.elts;
  ngx_uint_t i;
  for (i = 0; i < m->filters.nelts; i++)
    if (f[i]->name.len == name->len && ngx_memcmp(f[i]->name.data, name->data, name->len) == 0) return f[i];
  return NULL;
}

/* ---- proxy_golang_filter NAME { ... } ------------------------------------------------------------------------------ */

static char *ngx_http_pxg_bad(ngx_conf_t *cf, const char *expected) {
  ngx_str_t *v = cf->args->elts;
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid value \"%V\" in \"%V\" directive, expected %s", &v[1], &v[0],
                     expected);
  return NGX_CONF_ERROR;
}

static char *ngx_http_pxg_time(ngx_conf_t *cf, uint64_t *ns) {
  ngx_str_t *v = cf->args->elts;
  ngx_int_t ms = ngx_parse_time(&v[1], 0);
  if (ms == NGX_ERROR || ms == 0) return ngx_http_pxg_bad(cf, "a time above 0, for example 500ms or 30s");
  *ns = (uint64_t)ms * 1000000;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_size(ngx_conf_t *cf, uint64_t *size) {
  ngx_str_t *v = cf->args->elts;
  off_t n = ngx_parse_offset(&v[1]);
  if (n == NGX_ERROR || n == 0) return ngx_http_pxg_bad(cf, "a size above 0, for example 64k or 1m");
  *size = (uint64_t)n;
  return NGX_CONF_OK;
}

static char *ngx_http_pxg_config_file(ngx_conf_t *cf, ngx_str_t *bytes) {
  ngx_str_t *v = cf->args->elts, path = v[1];
  ngx_file_t file;
  ngx_file_info_t fi;
  ssize_t n;
  char *rc = NGX_CONF_ERROR;

  if (ngx_conf_full_name(cf->cycle, &path, 1) != NGX_OK) return NGX_CONF_ERROR;
  ngx_memzero(&file, sizeof(file));
  file.name = path, file.log = cf->log;
  file.fd = ngx_open_file(path.data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);
  if (file.fd == NGX_INVALID_FILE) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno, ngx_open_file_n " \"%V\" failed", &path);
    return NGX_CONF_ERROR;
  }
  if (ngx_fd_info(file.fd, &fi) == NGX_FILE_ERROR) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno, ngx_fd_info_n " \"%V\" failed", &path);
  } else {
    bytes->len = (size_t)ngx_file_size(&fi);
    bytes->data = ngx_pnalloc(cf->pool, bytes->len + 1);
    n = bytes->data ? ngx_read_file(&file, bytes->data, bytes->len, 0) : NGX_ERROR;
    if (n == (ssize_t)bytes->len)
      rc = NGX_CONF_OK;
    else
      ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" could not be read whole: %z of %uz bytes", &path, n, bytes->len);
  }
  (void)ngx_close_file(file.fd);
  return rc;
}

static char *ngx_http_pxg_filter_line(ngx_conf_t *cf, ngx_command_t *dummy, void *conf) {
  ngx_http_pxg_filter_t *f = conf;
  ngx_str_t *v = cf->args->elts;
  ngx_int_t n;

  if (cf->args->nelts != 2) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" in proxy_golang_filter \"%V\" takes one value, found %ui", &v[0],
                       &f->name, cf->args->nelts - 1);
    return NGX_CONF_ERROR;
  }

#define NGX_HTTP_PXG_IS(text) (v[0].len == sizeof(text) - 1 && ngx_strncmp(v[0].data, text, sizeof(text) - 1) == 0)

  if (NGX_HTTP_PXG_IS("guest")) {
    f->guest = v[1];
    return ngx_conf_full_name(cf->cycle, &f->guest, 0) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
  }
  if (NGX_HTTP_PXG_IS("filter")) return f->filter = v[1], NGX_CONF_OK;
  if (NGX_HTTP_PXG_IS("config") || NGX_HTTP_PXG_IS("config_file")) {
    if (f->bytes.data) {
      ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "the configuration of proxy_golang_filter \"%V\" is given twice",
                         &f->name);
      return NGX_CONF_ERROR;
    }
    if (v[0].len == sizeof("config") - 1) return f->bytes = v[1], NGX_CONF_OK;
    return ngx_http_pxg_config_file(cf, &f->bytes);
  }
  if (NGX_HTTP_PXG_IS("failure_mode")) {
    if (ngx_strcmp(v[1].data, "open") == 0)
      f->policy.fail_open = true;
    else if (ngx_strcmp(v[1].data, "closed") == 0)
      f->policy.fail_open = false;
    else
      return ngx_http_pxg_bad(cf, "open or closed");
    return NGX_CONF_OK;
  }
  if (NGX_HTTP_PXG_IS("failure_status")) {
    n = ngx_atoi(v[1].data, v[1].len);
    if (n < 500 || n > 599) return ngx_http_pxg_bad(cf, "a status from 500 to 599");
    f->policy.fail_status = (uint32_t)n;
    return NGX_CONF_OK;
  }
  if (NGX_HTTP_PXG_IS("pend_limit")) {
    char *rc = ngx_http_pxg_time(cf, &f->policy.pend_limit_ns);
    if (f->policy.pend_default_ns > f->policy.pend_limit_ns) f->policy.pend_default_ns = f->policy.pend_limit_ns;
    return rc;
  }
  if (NGX_HTTP_PXG_IS("hold_limit")) return ngx_http_pxg_time(cf, &f->policy.hold_limit_ns);
  if (NGX_HTTP_PXG_IS("max_pending")) {
    n = ngx_atoi(v[1].data, v[1].len);
    if (n < 1 || n > NGX_MAX_INT32_VALUE) return ngx_http_pxg_bad(cf, "a number above 0");
    f->policy.max_pending = (uint32_t)n;
    return NGX_CONF_OK;
  }
  if (NGX_HTTP_PXG_IS("max_body")) {
    char *rc = ngx_http_pxg_size(cf, &f->policy.max_body_limit);
    if (f->policy.max_body_default > f->policy.max_body_limit) f->policy.max_body_default = f->policy.max_body_limit;
    return rc;
  }

#undef NGX_HTTP_PXG_IS

  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                     "unknown directive \"%V\" in proxy_golang_filter \"%V\", expected guest, filter, config, "
                     "config_file, failure_mode, failure_status, pend_limit, hold_limit, max_pending or max_body",
                     &v[0], &f->name);
  return NGX_CONF_ERROR;
}

static char *ngx_http_pxg_filter_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_main_conf_t *m = conf;
  ngx_http_pxg_filter_t *f, **slot;
  ngx_str_t *v = cf->args->elts;
  ngx_conf_t save;
  char *rc;

  f = ngx_pcalloc(cf->pool, sizeof(*f));
  if (f == NULL) return NGX_CONF_ERROR;
  f->name = v[1];
  f->file = cf->conf_file->file.name, f->line = cf->conf_file->line;
  if (ngx_http_pxg_find(m, &f->name)) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "proxy_golang_filter \"%V\" is defined twice", &f->name);
    return NGX_CONF_ERROR;
  }
  pxg_policy_default(&f->policy);

  save = *cf;
  cf->handler = ngx_http_pxg_filter_line;
  cf->handler_conf = (void *)f;
  rc = ngx_conf_parse(cf, NULL);
  *cf = save;
  if (rc != NGX_CONF_OK) return rc;

  if (f->guest.len == 0) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "proxy_golang_filter \"%V\" has no \"guest\": the path of a library",
                       &f->name);
    return NGX_CONF_ERROR;
  }
  if (f->filter.len == 0) f->filter = f->name;
  slot = ngx_array_push(&m->filters);
  if (slot == NULL) return NGX_CONF_ERROR;
  *slot = f;
  return NGX_CONF_OK;
}

/* ---- proxy_golang NAME... | off ------------------------------------------------------------------------------------ */

static char *ngx_http_pxg_use(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_http_pxg_loc_conf_t *l = conf;
  ngx_http_pxg_filter_t *f, **slot;
  ngx_str_t *v = cf->args->elts;
  ngx_uint_t i;

  if (l->chain != NGX_CONF_UNSET_PTR) return "is duplicate";
  if (cf->args->nelts == 2 && ngx_strcmp(v[1].data, "off") == 0) {
    l->chain = NULL;
    return NGX_CONF_OK;
  }
  if (cf->args->nelts - 1 > PXG_MAX_PLACES) return "has more than 32 filters";
  l->chain = ngx_array_create(cf->pool, cf->args->nelts - 1, sizeof(ngx_http_pxg_filter_t *));
  if (l->chain == NULL) return NGX_CONF_ERROR;
  for (i = 1; i < cf->args->nelts; i++) {
    f = ngx_http_pxg_find(m, &v[i]);
    if (f == NULL) {
      ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                         "unknown filter \"%V\" in \"proxy_golang\": define it before with proxy_golang_filter", &v[i]);
      return NGX_CONF_ERROR;
    }
    slot = ngx_array_push(l->chain);
    *slot = f;
  }
  return NGX_CONF_OK;
}

/* ---- Validation ---------------------------------------------------------------------------------------------------- */

void ngx_http_pxg_filter_spec(const ngx_http_pxg_filter_t *f, pxg_config_spec *spec) {
  ngx_memzero(spec, sizeof(*spec));
  spec->library = (char *)f->guest.data;
  spec->filter = (char *)f->filter.data;
  spec->instance = (char *)f->name.data;
  spec->bytes = f->bytes.data;
  spec->n_bytes = (uint32_t)f->bytes.len;
  ngx_http_pxg_grants(&f->policy, 0, spec->features);
  spec->policy = f->policy;
}

/* As a worker will: what its user may not open is to be found now. */
static bool ngx_http_pxg_become(void *data, pxg_error *why) {
  ngx_core_conf_t *ccf = data;

  if (ngx_http_pxg_start(ngx_cycle->log) != NGX_OK) return pxg_fail(why, PXG_E_INTERNAL, "the host could not start");
  if (geteuid() != 0 || ccf->user == (ngx_uid_t)NGX_CONF_UNSET_UINT) return true;
  if (setgid(ccf->group) == -1 || initgroups(ccf->username, ccf->group) == -1 || setuid(ccf->user) == -1)
    return pxg_fail(why, PXG_E_INTERNAL, "cannot become the worker's user %s: %s", ccf->username, strerror(ngx_errno));
  return true;
}

ngx_int_t ngx_http_pxg_validate(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_http_pxg_filter_t **f = m->filters.elts;
  pxg_config_spec *specs;
  pxg_validation v;
  pxg_error *why;
  ngx_uint_t i;
  size_t which = 0;

  if (m->filters.nelts == 0) return NGX_OK;
  specs = ngx_pcalloc(cf->temp_pool, m->filters.nelts * sizeof(*specs));
  why = ngx_pcalloc(cf->temp_pool, sizeof(*why));
  if (specs == NULL || why == NULL) return NGX_ERROR;
  for (i = 0; i < m->filters.nelts; i++) {
    ngx_http_pxg_filter_spec(f[i], &specs[i]);
    specs[i].validate_only = true;
  }
  ngx_memzero(&v, sizeof(v));
  v.specs = specs, v.n = m->filters.nelts;
  v.become = ngx_http_pxg_become, v.data = ngx_get_conf(cf->cycle->conf_ctx, ngx_core_module);
  if (pxg_validate(&v, &which, why)) return NGX_OK;
  if (which >= m->filters.nelts) which = 0;
  ngx_log_error(NGX_LOG_EMERG, cf->log, 0, "proxy_golang_filter \"%V\" with guest \"%V\": %s in %V:%ui",
                &f[which]->name, &f[which]->guest, why->text, &f[which]->file, f[which]->line);
  return NGX_ERROR;
}
