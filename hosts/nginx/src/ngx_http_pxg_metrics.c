/* SPDX-License-Identifier: Apache-2.0 */

/* The zone in which all workers add up (15.4). nginx keeps shared memory of one name and size over a reload, so counters
 * go on; another size begins anew. */

#include "ngx_http_pxg.h"

enum { NGX_HTTP_PXG_ZONE_PRESET = 1 << 20, NGX_HTTP_PXG_ZONE_LEAST = 64 << 10 };

static ngx_str_t ngx_http_pxg_zone_name = ngx_string("proxy_golang");
static ngx_http_pxg_totals_t ngx_http_pxg_own_totals;
/* Of the process that serves without a master: it cannot leave the memory that it counts in. */
static size_t ngx_http_pxg_size_in_use;

ngx_http_pxg_totals_t *ngx_http_pxg_totals = &ngx_http_pxg_own_totals;

typedef struct {
  ngx_http_pxg_totals_t totals;
  pxg_zone *zone;
} ngx_http_pxg_shared_t;

char *ngx_http_pxg_metrics_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf) {
  ngx_http_pxg_main_conf_t *m = conf;
  ngx_str_t *v = cf->args->elts;
  ssize_t size = ngx_parse_size(&v[1]);

  if (m->zone_size != NGX_CONF_UNSET_SIZE) return "is duplicate";
  if (size < NGX_HTTP_PXG_ZONE_LEAST) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid value \"%V\" in \"%V\" directive, expected a size of at least 64k, for example 1m",
                       &v[1], &v[0]);
    return NGX_CONF_ERROR;
  }
  m->zone_size = (size_t)size;
  return NGX_CONF_OK;
}

static ngx_int_t ngx_http_pxg_zone_init(ngx_shm_zone_t *shm, void *old) {
  ngx_slab_pool_t *pool = (ngx_slab_pool_t *)shm->shm.addr;
  ngx_http_pxg_shared_t *shared;
  size_t room;
  void *memory;

  if (old) {
    shm->data = old;
    return NGX_OK;
  }
  if (shm->shm.exists) {
    shm->data = pool->data;
    return NGX_OK;
  }
  shared = ngx_slab_calloc(pool, sizeof(*shared));
  room = pool->pfree * ngx_pagesize;
  memory = shared ? ngx_slab_alloc(pool, room) : NULL;
  if (memory == NULL) {
    ngx_log_error(NGX_LOG_EMERG, shm->shm.log, 0, "proxy_golang_metrics_zone of %uz bytes has no room, expected more",
                  shm->shm.size);
    return NGX_ERROR;
  }
  ngx_memzero(memory, room);
  shared->zone = pxg_zone_open(memory, room);
  if (shared->zone == NULL) {
    ngx_log_error(NGX_LOG_EMERG, shm->shm.log, 0,
                  "proxy_golang_metrics_zone of %uz bytes has no room for a filter, expected more", shm->shm.size);
    return NGX_ERROR;
  }
  pool->data = shared;
  shm->data = shared;
  return NGX_OK;
}

ngx_int_t ngx_http_pxg_add_zone(ngx_conf_t *cf, ngx_http_pxg_main_conf_t *m) {
  size_t size = m->zone_size == NGX_CONF_UNSET_SIZE ? (size_t)NGX_HTTP_PXG_ZONE_PRESET : m->zone_size;

  if (ngx_http_pxg_size_in_use) {
    if (m->zone_size != NGX_CONF_UNSET_SIZE && size != ngx_http_pxg_size_in_use)
      ngx_conf_log_error(
          NGX_LOG_WARN, cf, 0,
          "proxy_golang_metrics_zone stays at %uz bytes: with \"master_process off\" another size needs a "
          "restart",
          ngx_http_pxg_size_in_use);
    size = ngx_http_pxg_size_in_use;
  } else if (m->filters.nelts == 0 && m->zone_size == NGX_CONF_UNSET_SIZE) {
    return NGX_OK;
  }
  m->zone_size = size;
  m->zone = ngx_shared_memory_add(cf, &ngx_http_pxg_zone_name, size, &ngx_http_proxy_golang_module);
  if (m->zone == NULL) return NGX_ERROR;
  m->zone->init = ngx_http_pxg_zone_init;
  return NGX_OK;
}

pxg_zone *ngx_http_pxg_zone(ngx_http_pxg_main_conf_t *m) {
  ngx_http_pxg_shared_t *shared = m->zone ? m->zone->data : NULL;
  return shared ? shared->zone : NULL;
}

void ngx_http_pxg_use_zone(ngx_http_pxg_main_conf_t *m) {
  ngx_http_pxg_shared_t *shared = m->zone ? m->zone->data : NULL;

  if (shared == NULL) return;
  pxg_zone_attach(shared->zone);
  ngx_http_pxg_totals = &shared->totals;
  if (ngx_process == NGX_PROCESS_SINGLE) ngx_http_pxg_size_in_use = m->zone_size;
}
