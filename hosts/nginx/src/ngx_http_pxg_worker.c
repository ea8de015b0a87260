/* SPDX-License-Identifier: Apache-2.0 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "ngx_http_pxg_lua.h"

#include <sched.h>
#include <sys/eventfd.h>

static pxg_worker *ngx_http_pxg_the_worker;
static ngx_uint_t ngx_http_pxg_drains;
static ngx_http_pxg_main_conf_t *ngx_http_pxg_served; /* Whose configurations were made here. */
static ngx_connection_t *ngx_http_pxg_bell;
static ngx_event_t ngx_http_pxg_batch_event;

uint64_t ngx_http_pxg_now(void) {
  struct timespec ts;
  (void)clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void ngx_http_pxg_drain(void) {
  if (ngx_http_pxg_drains) return;
  ngx_http_pxg_drains = 1;
  pxg_page_draining(true);
}

pxg_worker *ngx_http_pxg_worker(void) {
  ngx_time_t *tp = ngx_timeofday();
  uint64_t now;

  if (ngx_http_pxg_the_worker) {
    if (ngx_exiting || ngx_terminate) ngx_http_pxg_drain();
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

static void ngx_http_pxg_deliver(pxg_worker *w) {
  pxg_stream *s;

  if (w) ngx_http_pxg_glance_mail(w);
  while (w && (s = pxg_worker_next(w)) != NULL) {
    (void)ngx_atomic_fetch_add(&ngx_http_pxg_totals->mails, 1);
    if (!ngx_http_pxg_lua_resume(s)) ngx_http_pxg_resume(pxg_stream_data(s));
  }
}

static void ngx_http_pxg_mail(ngx_event_t *ev) {
  ngx_connection_t *c = ev->data;
  uint64_t n;

  /* A graceful shutdown closes what is idle, and this connection says that it is: nginx has no other word for modules. */
  if (c->close) {
    c->close = 0;
    ngx_http_pxg_drain();
    return;
  }
  /* Where events are edges each ring is one, also of a counter that nobody has read. */
  if (!(ngx_event_flags & NGX_USE_CLEAR_EVENT))
    while (read(c->fd, &n, sizeof(n)) == -1 && ngx_errno == NGX_EINTR) { /* void */
    }
  if (ngx_handle_read_event(ev, 0) != NGX_OK)
    ngx_log_error(NGX_LOG_ALERT, ev->log, 0, "proxy_golang: the wake-up event of this worker was lost");

  ngx_http_pxg_log_take();
  (void)ngx_atomic_fetch_add(&ngx_http_pxg_totals->wakes, 1);
  ngx_http_pxg_deliver(ngx_http_pxg_worker());
  ngx_http_pxg_batch();
}

/* The last thing before nginx waits for events. What guests' threads have decided until now needs no wake-up. */
static void ngx_http_pxg_batch_handler(ngx_event_t *ev) {
  pxg_worker *w = ngx_http_pxg_worker();
  if (w == NULL) return;
  if (pxg_worker_batch_due(w)) {
    (void)ngx_atomic_fetch_add(&ngx_http_pxg_totals->batch_ends, 1);
    pxg_worker_batch_end(w);
  }
  pxg_worker_awake(w, false);
  ngx_http_pxg_deliver(ngx_http_pxg_worker());
  ngx_http_pxg_batch();
}

void ngx_http_pxg_batch(void) {
  if (pxg_configs_to_drop()) (void)pxg_configs_drop();
  if (ngx_http_pxg_the_worker == NULL || !pxg_worker_batch_due(ngx_http_pxg_the_worker)) return;
  if (ngx_http_pxg_batch_event.posted) return;
  ngx_post_event(&ngx_http_pxg_batch_event, &ngx_posted_events);
  pxg_worker_awake(ngx_http_pxg_the_worker, true);
}

ngx_int_t ngx_http_pxg_start(ngx_log_t *log, uint32_t log_level, pxg_zone *zone) {
  static ngx_uint_t started;
  pxg_driver d;
  pxg_error why;

  if (started) return NGX_OK;
  ngx_memzero(&d, sizeof(d));
  d.name = "nginx";
  d.version = NGINX_VERSION;
  d.n_workers = 1; /* Of this process. */
  d.zone = zone;
  ngx_memcpy(d.features, ngx_http_pxg_features, sizeof(d.features));
  d.log_level = ngx_min(ngx_http_pxg_log_level(log), log_level);
  d.clock = ngx_http_pxg_now;
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

/* ---- Loading ------------------------------------------------------------------------------------------------------- */

/* A runtime takes the processors that its first thread may use for all that it will ever have: a guest is loaded with
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

static void ngx_http_pxg_make(ngx_http_pxg_filter_t *f) {
  pxg_config_spec spec;
  pxg_error why;

  ngx_http_pxg_filter_spec(f, &spec);
  if (f->parent) {
    spec.parent = f->parent->config;
    if (spec.parent == NULL) return; /* Said of the parent. */
  }
  f->config = f->all_cpus ? ngx_http_pxg_config_new(&spec, &why) : pxg_config_new(&spec, &why);
  if (f->config) return;
  (void)ngx_atomic_fetch_add(&ngx_http_pxg_totals->refusals, 1);
  ngx_log_error(NGX_LOG_CRIT, ngx_cycle->log, 0, "%s \"%V\" in %V:%ui is refused by this worker, its requests fail: %s",
                f->parent ? "proxy_golang_override" : "proxy_golang_filter", &f->name, &f->file, f->line, why.text);
}

/* The references of a cycle, given up with it. */
static void ngx_http_pxg_forget(void *data) {
  ngx_http_pxg_main_conf_t *m = data;
  ngx_array_t *lists[2] = {&m->overrides, &m->filters};
  ngx_http_pxg_filter_t **f;
  ngx_uint_t i, k;

  for (k = 0; k < 2; k++) {
    f = lists[k]->elts;
    for (i = 0; i < lists[k]->nelts; i++) {
      if (f[i]->config) pxg_config_unref(f[i]->config);
      f[i]->config = NULL;
    }
  }
  if (pxg_configs_to_drop()) (void)pxg_configs_drop();
}

/* Makes all configurations of a cycle in the process that will use them. */
static ngx_int_t ngx_http_pxg_load(ngx_cycle_t *cycle, ngx_http_pxg_main_conf_t *m) {
  ngx_array_t *lists[2] = {&m->filters, &m->overrides};
  ngx_pool_cleanup_t *cln = ngx_pool_cleanup_add(cycle->pool, 0);
  ngx_http_pxg_filter_t **f;
  ngx_uint_t i, k, n = 0;
  pxg_worker *w;

  if (cln == NULL) return NGX_ERROR;
  cln->handler = ngx_http_pxg_forget;
  cln->data = m;
  ngx_http_pxg_served = m;
  for (k = 0; k < 2; k++) {
    f = lists[k]->elts;
    for (i = 0; i < lists[k]->nelts; i++) {
      if (!ngx_http_pxg_is_made(f[i])) continue;
      ngx_http_pxg_make(f[i]);
      if (f[i]->config) n++;
    }
  }
  w = ngx_http_pxg_worker();
  f = m->filters.elts;
  for (i = 0; w && i < m->filters.nelts; i++)
    if (f[i]->warm_up && f[i]->config) pxg_worker_warm_up(w, f[i]->config->lib);
  ngx_log_error(NGX_LOG_NOTICE, cycle->log, 0, "proxy_golang: worker ready, %ui filters", n);
  return NGX_OK;
}

/* ---- The process --------------------------------------------------------------------------------------------------- */

static ngx_int_t ngx_http_pxg_open_bell(ngx_cycle_t *cycle) {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  ngx_connection_t *c;

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
  c->idle = 1;
  ngx_http_pxg_bell = c;
  ngx_http_pxg_log_loop(ngx_http_pxg_ring, (void *)(intptr_t)fd);
  return NGX_OK;
}

static ngx_http_pxg_main_conf_t *ngx_http_pxg_main_conf(ngx_cycle_t *cycle) {
  if (cycle->conf_ctx[ngx_http_module.index] == NULL) return NULL;
  return ngx_http_cycle_get_module_main_conf(cycle, ngx_http_proxy_golang_module);
}

/* nginx reaps every child of a process at SIGCHLD, also in workers, which have none of its own: one that a guest started
 * and waits for would be lost (PXG-RT-002). Another module's handler stays. */
static void ngx_http_pxg_leave_children(void) {
  struct sigaction chld, hup, preset;

  if (sigaction(SIGCHLD, NULL, &chld) == -1 || sigaction(SIGHUP, NULL, &hup) == -1) return;
  if (chld.sa_sigaction != hup.sa_sigaction) return;
  ngx_memzero(&preset, sizeof(preset));
  preset.sa_handler = SIG_DFL;
  (void)sigemptyset(&preset.sa_mask);
  (void)sigaction(SIGCHLD, &preset, NULL);
}

ngx_int_t ngx_http_pxg_worker_start(ngx_cycle_t *cycle) {
  ngx_http_pxg_main_conf_t *m = ngx_http_pxg_main_conf(cycle);

  if (m == NULL || ngx_http_pxg_start(cycle->log, m->log_level, ngx_http_pxg_zone(m)) != NGX_OK) return NGX_ERROR;
  if (ngx_http_pxg_the_worker) return NGX_OK;
  ngx_http_pxg_pin();
  ngx_http_pxg_leave_children();
  ngx_http_pxg_use_zone(m);
  (void)ngx_atomic_fetch_add(&ngx_http_pxg_totals->workers, 1);
  if (ngx_http_pxg_bell == NULL && ngx_http_pxg_open_bell(cycle) != NGX_OK) return NGX_ERROR;
  ngx_http_pxg_batch_event.handler = ngx_http_pxg_batch_handler;
  ngx_http_pxg_batch_event.log = cycle->log;
  ngx_http_pxg_the_worker = pxg_worker_new(0, ngx_http_pxg_ring, (void *)(intptr_t)ngx_http_pxg_bell->fd);
  return ngx_http_pxg_the_worker ? NGX_OK : NGX_ERROR;
}

static ngx_int_t ngx_http_pxg_serve(ngx_cycle_t *cycle) {
  ngx_http_pxg_main_conf_t *m = ngx_http_pxg_main_conf(cycle);

  if (m == NULL || m->filters.nelts == 0) return NGX_OK;
  ngx_http_pxg_response_gate();
  return ngx_http_pxg_worker_start(cycle) == NGX_OK ? ngx_http_pxg_load(cycle, m) : NGX_ERROR;
}

ngx_uint_t ngx_http_pxg_serves_alone(void) {
  return ngx_http_pxg_the_worker != NULL && ngx_process == NGX_PROCESS_SINGLE;
}

ngx_int_t ngx_http_pxg_init_process(ngx_cycle_t *cycle) {
  /* Cache manager and loader come here, too. */
  if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE) return NGX_OK;
  return ngx_http_pxg_serve(cycle);
}

/* The order of 12.8: streams, configurations, the worker. */
void ngx_http_pxg_exit_process(ngx_cycle_t *cycle) {
  if (ngx_http_pxg_the_worker == NULL) return;
  ngx_http_pxg_drain();
  ngx_http_pxg_end_all();
  ngx_http_pxg_lua_exit();
  if (ngx_http_pxg_served) ngx_http_pxg_forget(ngx_http_pxg_served);
  (void)pxg_configs_drop();
  pxg_worker_free(ngx_http_pxg_the_worker);
  ngx_http_pxg_the_worker = NULL;
  ngx_http_pxg_log_loop(NULL, NULL);
  /* The descriptor stays open: threads of guests may still ring. Only nginx forgets its connection, so that it does not
   * take it for one that was left. */
  (void)ngx_del_event(ngx_http_pxg_bell->read, NGX_READ_EVENT, 0);
  ngx_http_pxg_bell->fd = (ngx_socket_t)-1;
  ngx_free_connection(ngx_http_pxg_bell);
  ngx_http_pxg_bell = NULL;
}
