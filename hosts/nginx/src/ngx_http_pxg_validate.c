/* SPDX-License-Identifier: Apache-2.0 */

/* Configurations are tried in a child of the process that reads nginx.conf (2.2), by `nginx -t`, at the start and at a
 * reload, before a worker sees them. */

#include "ngx_http_pxg.h"

#include <grp.h>
#include <pwd.h>
#include <sys/prctl.h>

void ngx_http_pxg_filter_spec(const ngx_http_pxg_filter_t *f, pxg_config_spec *spec) {
  ngx_memzero(spec, sizeof(*spec));
  spec->library = (char *)f->guest.data;
  spec->filter = (char *)f->filter.data;
  spec->instance = (char *)f->name.data;
  spec->bytes = f->bytes.data;
  spec->n_bytes = (uint32_t)f->bytes.len;
  ngx_http_pxg_grants(f, spec->features);
  spec->policy = f->policy;
}

/* ---- The child ----------------------------------------------------------------------------------------------------- */

typedef struct {
  ngx_core_conf_t *core;
  size_t zone_size;
} ngx_http_pxg_child_t;

/* Without the directive `user` nginx finds out later who its workers are. */
static bool ngx_http_pxg_user(const ngx_core_conf_t *ccf, uid_t *user, gid_t *group, const char **name) {
  struct passwd *pwd;
  struct group *grp;

  if (ccf->user != (ngx_uid_t)NGX_CONF_UNSET_UINT) {
    *user = ccf->user, *group = ccf->group, *name = ccf->username;
    return true;
  }
  *name = NGX_USER;
  pwd = getpwnam(NGX_USER);
  grp = getgrnam(NGX_GROUP);
  if (pwd == NULL || grp == NULL) return false;
  *user = pwd->pw_uid, *group = grp->gr_gid;
  return true;
}

/* A process without a master stays what it is. */
static bool ngx_http_pxg_changes_user(const ngx_core_conf_t *ccf) { return geteuid() == 0 && ccf->master; }

/* As a worker will: what its user may not open is to be found now. */
static bool ngx_http_pxg_become(void *data, pxg_error *why) {
  ngx_http_pxg_child_t *child = data;
  const char *name;
  void *memory = NULL;
  uid_t user;
  gid_t group;

  /* Guests that define metrics find what they will find in a worker. */
  if (child->zone_size && posix_memalign(&memory, 64, child->zone_size) == 0) ngx_memzero(memory, child->zone_size);
  if (ngx_http_pxg_start(ngx_cycle->log, PXG_LOG_OFF, memory ? pxg_zone_open(memory, child->zone_size) : NULL) !=
      NGX_OK)
    return pxg_fail(why, PXG_E_INTERNAL, "the host could not start");
  if (!ngx_http_pxg_changes_user(child->core)) return true;
  if (!ngx_http_pxg_user(child->core, &user, &group, &name) || setgid(group) == -1 || initgroups(name, group) == -1 ||
      setuid(user) == -1)
    return pxg_fail(why, PXG_E_INTERNAL, "cannot become the worker's user %s: %s", name, strerror(ngx_errno));
  /* As nginx does: without it a process that changed its user may not look at its own /proc. */
  (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
  return true;
}

/* ---- The caller ---------------------------------------------------------------------------------------------------- */

static ngx_http_pxg_filter_t *ngx_http_pxg_nth(ngx_http_pxg_main_conf_t *m, ngx_uint_t i) {
  return i < m->filters.nelts ? ((ngx_http_pxg_filter_t **)m->filters.elts)[i]
                              : ((ngx_http_pxg_filter_t **)m->overrides.elts)[i - m->filters.nelts];
}

static int ngx_http_pxg_index(const ngx_http_pxg_main_conf_t *m, const ngx_http_pxg_filter_t *f) {
  ngx_http_pxg_filter_t **all = m->filters.elts;
  ngx_uint_t i;

  for (i = 0; i < m->filters.nelts; i++)
    if (all[i] == f) return (int)i;
  return -1;
}

static void ngx_http_pxg_warn_unused(ngx_conf_t *cf, ngx_http_pxg_main_conf_t *m) {
  ngx_http_pxg_filter_t **f = m->overrides.elts;
  ngx_uint_t i;

  for (i = 0; i < m->overrides.nelts; i++)
    if (!f[i]->used)
      ngx_log_error(NGX_LOG_WARN, cf->log, 0,
                    "proxy_golang_override \"%V\" has no effect: no chain of its location has this filter, expected it "
                    "in \"proxy_golang\" there in %V:%ui",
                    &f[i]->name, &f[i]->file, f[i]->line);
}

ngx_int_t ngx_http_pxg_validate(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_http_pxg_child_t child = {(ngx_core_conf_t *)ngx_get_conf(cf->cycle->conf_ctx, ngx_core_module), m->zone_size};
  ngx_uint_t i, n = m->filters.nelts + m->overrides.nelts;
  ngx_http_pxg_filter_t *f, **of;
  pxg_config_spec *specs;
  pxg_validation v;
  pxg_error *why;
  const char *name;
  size_t which = 0;
  int *parents;
  uid_t user;
  gid_t group;

  if (n == 0) return NGX_OK;
  if (ngx_http_pxg_serves_alone()) {
    ngx_log_error(NGX_LOG_WARN, cf->log, 0,
                  "proxy_golang: no guest is loaded by a reload with \"master_process off\", after which nginx itself "
                  "does not serve on: restart nginx");
    return NGX_OK;
  }
  ngx_http_pxg_warn_unused(cf, m);
  specs = ngx_pcalloc(cf->temp_pool, n * sizeof(*specs));
  parents = ngx_pcalloc(cf->temp_pool, n * sizeof(*parents));
  of = ngx_pcalloc(cf->temp_pool, n * sizeof(*of));
  why = ngx_pcalloc(cf->temp_pool, sizeof(*why));
  if (specs == NULL || parents == NULL || of == NULL || why == NULL) return NGX_ERROR;
  ngx_memzero(&v, sizeof(v));
  for (i = 0; i < n; i++) {
    f = ngx_http_pxg_nth(m, i);
    if (!ngx_http_pxg_is_made(f)) continue;
    of[v.n] = f;
    parents[v.n] = f->parent ? ngx_http_pxg_index(m, f->parent) : -1;
    ngx_http_pxg_filter_spec(f, &specs[v.n]);
    specs[v.n++].validate_only = true;
  }
  v.specs = specs, v.parents = parents;
  v.become = ngx_http_pxg_become, v.data = &child;
  if (pxg_validate(&v, &which, why)) return NGX_OK;
  f = of[which < v.n ? which : 0];
  (void)ngx_http_pxg_user(child.core, &user, &group, &name);
  ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                "%s \"%V\" with guest \"%V\" is refused, tried as the worker's user %s: %s in %V:%ui",
                f->parent ? "proxy_golang_override" : "proxy_golang_filter", &f->name, &f->guest,
                ngx_http_pxg_changes_user(child.core) ? name : "of this process", why->text, &f->file, f->line);
  return NGX_ERROR;
}
