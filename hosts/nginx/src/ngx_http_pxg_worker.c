/* SPDX-License-Identifier: Apache-2.0 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "ngx_http_pxg.h"
#include "ngx_http_pxg_lua.h"

#include <sched.h>
#include <sys/eventfd.h>

#define NGX_HTTP_PXG_BIT(f) (1ull << ((f) % 64))

/* Cleared, because nginx has no way to it:
 *   PEND_REQUEST_TRAILERS, TRAILERS_IN_REQUEST, TRAILERS_OUT_REQUEST   nginx drops trailers of requests
 *   PEND_RESPONSE_TRAILERS, TRAILERS_IN_RESPONSE   most of its modules drop an upstream's trailers
 *   BODY_INJECT     a response that nginx passes on is moved by its upstream's events only
 *   FLUSH           a request under proxy_request_buffering reaches no transport before its end
 *   OWNED_BUF       bytes of a guest are copied once
 *   WIRE_ORDER      nginx joins cookies of HTTP/2, and keeps some fields outside its list
 *   SUBREQUESTS     the access phase, where a chain starts, does not run for them
 *   UPGRADE_BODY    an upgraded connection passes no filter
 *   CONFIG_THREAD   a worker has one thread
 *   L4              the module is one of http
 * Per configuration: ngx_http_pxg_grants. */
const uint64_t ngx_http_pxg_features[4] = {
    NGX_HTTP_PXG_BIT(PXG_F_PEND_REQUEST_HEADERS) | NGX_HTTP_PXG_BIT(PXG_F_PEND_REQUEST_BODY) |
        NGX_HTTP_PXG_BIT(PXG_F_PEND_RESPONSE_HEADERS) | NGX_HTTP_PXG_BIT(PXG_F_PEND_RESPONSE_BODY) |
        NGX_HTTP_PXG_BIT(PXG_F_BODY_STREAM_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_BODY_STREAM_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_BODY_WHOLE_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_BODY_WHOLE_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_BODY_OBSERVE_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_BODY_OBSERVE_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_HOLD_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_HOLD_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_EXACT_EOS_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_PARTIAL_RELEASE) |
        NGX_HTTP_PXG_BIT(PXG_F_CONTINUE_GATE) | NGX_HTTP_PXG_BIT(PXG_F_REPLY_REFILTER) |
        NGX_HTTP_PXG_BIT(PXG_F_ROUTE) | NGX_HTTP_PXG_BIT(PXG_F_METADATA) | NGX_HTTP_PXG_BIT(PXG_F_ORPHAN) |
        NGX_HTTP_PXG_BIT(PXG_F_THREAD_AFFINE) | NGX_HTTP_PXG_BIT(PXG_F_BATCH_END) |
        NGX_HTTP_PXG_BIT(PXG_F_CONFIG_REJECT) | NGX_HTTP_PXG_BIT(PXG_F_APPLY),
};

void ngx_http_pxg_grants(const pxg_policy *policy, ngx_uint_t reply_refilter, uint64_t features[4]) {
  ngx_memcpy(features, ngx_http_pxg_features, sizeof(ngx_http_pxg_features));
  if (policy->n_clusters == 0) features[0] &= ~NGX_HTTP_PXG_BIT(PXG_F_ROUTE);
  if (!reply_refilter) features[0] &= ~NGX_HTTP_PXG_BIT(PXG_F_REPLY_REFILTER);
}

static pxg_worker *ngx_http_pxg_the_worker;
static ngx_connection_t *ngx_http_pxg_bell;
static ngx_event_t ngx_http_pxg_batch_event;

uint64_t ngx_http_pxg_now(void) {
  struct timespec ts;
  (void)clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

pxg_worker *ngx_http_pxg_worker(void) {
  ngx_time_t *tp = ngx_timeofday();
  uint64_t now;

  if (ngx_http_pxg_the_worker) {
    now = ngx_http_pxg_now();
    pxg_worker_clock(ngx_http_pxg_the_worker, now);
    pxg_page_clock(now, (uint64_t)tp->sec * 1000000000 + (uint64_t)tp->msec * 1000000);
  }
  return ngx_http_pxg_the_worker;
}

/* [any-thread] A full counter of an eventfd is as good as one more. */
static void ngx_http_pxg_ring(void *data) {
  uint64_t one = 1;
  ssize_t n;
  do n = write((int)(intptr_t)data, &one, sizeof(one));
  while (n == -1 && errno == EINTR);
}

static void ngx_http_pxg_mail(ngx_event_t *ev) {
  ngx_connection_t *c = ev->data;
  pxg_worker *w;
  pxg_stream *s;
  uint64_t n;

  while (read(c->fd, &n, sizeof(n)) == -1 && ngx_errno == NGX_EINTR) { /* void */
  }
  if (ngx_handle_read_event(ev, 0) != NGX_OK)
    ngx_log_error(NGX_LOG_ALERT, ev->log, 0, "proxy_golang: the wake-up event of this worker was lost");

  w = ngx_http_pxg_worker();
  while (w && (s = pxg_worker_next(w)) != NULL)
    if (!ngx_http_pxg_lua_resume(s)) ngx_http_pxg_resume(pxg_stream_data(s));
  ngx_http_pxg_batch();
}

static void ngx_http_pxg_batch_handler(ngx_event_t *ev) {
  pxg_worker *w = ngx_http_pxg_worker();
  if (w && pxg_worker_batch_due(w)) pxg_worker_batch_end(w);
}

void ngx_http_pxg_batch(void) {
  if (ngx_http_pxg_the_worker == NULL || !pxg_worker_batch_due(ngx_http_pxg_the_worker)) return;
  if (!ngx_http_pxg_batch_event.posted) { ngx_post_event(&ngx_http_pxg_batch_event, &ngx_posted_events); }
}

/* [any-thread] ngx_log_error formats on the stack and writes with one call. */
static void ngx_http_pxg_log(void *data, uint32_t level, const char *line, size_t len) {
  static const ngx_uint_t levels[] = {NGX_LOG_DEBUG, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, NGX_LOG_ERR};
  ngx_log_t log = *ngx_cycle->log;
  ngx_str_t s = {len, (u_char *)(uintptr_t)line};

  log.handler = NULL, log.action = NULL;
  ngx_log_error(levels[level < 5 ? level : 4], &log, 0, "proxy_golang: %V", &s);
}

ngx_int_t ngx_http_pxg_start(ngx_log_t *log) {
  static ngx_uint_t started;
  pxg_driver d;
  pxg_error why;

  if (started) return NGX_OK;
  ngx_memzero(&d, sizeof(d));
  d.name = "nginx";
  d.version = NGINX_VERSION;
  d.n_workers = 1; /* Of this process. */
  ngx_memcpy(d.features, ngx_http_pxg_features, sizeof(d.features));
  d.log_level = PXG_LOG_INFO;
  d.log = ngx_http_pxg_log;
  d.attribute = ngx_http_pxg_attribute;
  d.complete = pxg_complete;
  d.apply = pxg_apply;
  d.wake = pxg_wake;
  if (!pxg_host_start(&d, &why)) {
    ngx_log_error(NGX_LOG_EMERG, log, 0, "proxy_golang: %s", why.text);
    return NGX_ERROR;
  }
  started = 1;
  return NGX_OK;
}

/* A runtime takes the processors that its first thread may use for all that it will ever have, so guests are loaded with
 * those of the machine, although nginx has pinned this thread before. */
pxg_config *ngx_http_pxg_config_new(const pxg_config_spec *spec, pxg_error *why) {
  cpu_set_t mine, all;
  pxg_config *c;
  int pinned, i;

  CPU_ZERO(&all);
  for (i = 0; i < CPU_SETSIZE; i++) CPU_SET(i, &all);
  pinned = sched_getaffinity(0, sizeof(mine), &mine) == 0 && sched_setaffinity(0, sizeof(all), &all) == 0;
  c = pxg_config_new(spec, why);
  if (pinned) (void)sched_setaffinity(0, sizeof(mine), &mine);
  return c;
}

static void ngx_http_pxg_load(ngx_http_pxg_main_conf_t *m) {
  ngx_http_pxg_filter_t **f = m->filters.elts;
  pxg_config_spec spec;
  pxg_error why;
  ngx_uint_t i;

  for (i = 0; i < m->filters.nelts; i++) {
    ngx_http_pxg_filter_spec(f[i], &spec);
    f[i]->config = ngx_http_pxg_config_new(&spec, &why);
    if (f[i]->config == NULL)
      ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0, "proxy_golang_filter \"%V\" is refused, its requests fail: %s",
                    &f[i]->name, why.text);
  }
}

ngx_int_t ngx_http_pxg_worker_start(ngx_cycle_t *cycle) {
  ngx_connection_t *c;
  int fd;

  if (ngx_http_pxg_the_worker) return NGX_OK;
  if (ngx_http_pxg_start(cycle->log) != NGX_OK) return NGX_ERROR;
  fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd == -1) {
    ngx_log_error(NGX_LOG_EMERG, cycle->log, ngx_errno, "eventfd() failed");
    return NGX_ERROR;
  }
  c = ngx_get_connection(fd, cycle->log);
  if (c == NULL) {
    (void)close(fd);
    return NGX_ERROR;
  }
  c->read->handler = ngx_http_pxg_mail;
  c->read->log = cycle->log;
  c->pool = NULL;
  if (ngx_add_event(c->read, NGX_READ_EVENT, NGX_CLEAR_EVENT) != NGX_OK) {
    ngx_free_connection(c);
    (void)close(fd);
    return NGX_ERROR;
  }
  ngx_http_pxg_bell = c;
  ngx_http_pxg_batch_event.handler = ngx_http_pxg_batch_handler;
  ngx_http_pxg_batch_event.log = cycle->log;
  ngx_http_pxg_the_worker = pxg_worker_new(0, ngx_http_pxg_ring, (void *)(intptr_t)fd);
  return ngx_http_pxg_the_worker ? NGX_OK : NGX_ERROR;
}

ngx_int_t ngx_http_pxg_init_process(ngx_cycle_t *cycle) {
  ngx_http_pxg_main_conf_t *m;

  /* Cache manager and loader come here, too. */
  if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE) return NGX_OK;
  if (cycle->conf_ctx[ngx_http_module.index] == NULL) return NGX_OK;
  m = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_proxy_golang_module);
  if (m == NULL || m->filters.nelts == 0) return NGX_OK;

  if (ngx_http_pxg_start(cycle->log) != NGX_OK) return NGX_ERROR;
  ngx_http_pxg_load(m);
  return ngx_http_pxg_worker_start(cycle);
}

/* The descriptor stays open: threads of guests may still ring. Only nginx forgets its connection, so that it does not
 * take it for one that was left. */
void ngx_http_pxg_exit_process(ngx_cycle_t *cycle) {
  ngx_http_pxg_lua_exit();
  if (ngx_http_pxg_bell == NULL) return;
  (void)ngx_del_event(ngx_http_pxg_bell->read, NGX_READ_EVENT, 0);
  ngx_http_pxg_bell->fd = (ngx_socket_t)-1;
  ngx_free_connection(ngx_http_pxg_bell);
  ngx_http_pxg_bell = NULL;
}
