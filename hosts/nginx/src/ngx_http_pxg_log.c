/* SPDX-License-Identifier: Apache-2.0 */

/* Records of the engine and of guests in the error log: those of a stream in the log of its request, all others in the main
 * one. ngx_log_error cuts at 2048 bytes, less than a record may have (PXG-OBS-005), and nginx's logs belong to the thread of
 * the loop: SIGUSR1 closes their files there, and syslog keeps a state. So a line is put together here, and one of another
 * thread is written by the loop. */

#include "ngx_http_pxg.h"

#include <pthread.h>

typedef struct ngx_http_pxg_record_s ngx_http_pxg_record_t;
struct ngx_http_pxg_record_s {
  ngx_http_pxg_record_t *next;
  uint32_t level;
  size_t len;
  u_char text[];
};

static struct {
  pthread_mutex_t lock;
  pthread_t loop;
  void (*bell)(void *data); /* Null: nobody takes what is handed over. */
  void *data;
  ngx_http_pxg_record_t *first, **last;
} ngx_http_pxg_box = {.lock = PTHREAD_MUTEX_INITIALIZER, .last = &ngx_http_pxg_box.first};

/* ---- Writing ------------------------------------------------------------------------------------------------------- */

static const ngx_uint_t ngx_http_pxg_levels[] = {NGX_LOG_DEBUG, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN,
                                                 NGX_LOG_ERR};
static const char *const ngx_http_pxg_words[] = {"debug", "info", "notice", "warn", "error"};

uint32_t ngx_http_pxg_log_level(const ngx_log_t *log) {
  uint32_t level = PXG_LOG_TRACE;

  while (level < PXG_LOG_OFF && log->log_level < ngx_http_pxg_levels[level]) level++;
  return level;
}

static void ngx_http_pxg_write(ngx_log_t *log, ngx_uint_t level, u_char *line, size_t len) {
  for (; log && log->log_level >= level; log = log->next) {
    if (log->writer)
      log->writer(log, level, line, len);
    else if (ngx_time() != log->disk_full_time && ngx_write_fd(log->file->fd, line, len) == -1 &&
             ngx_errno == NGX_ENOSPC)
      log->disk_full_time = ngx_time();
  }
}

/* As ngx_log_error does: what the log's owner adds, a request's client and first line, comes last. */
void ngx_http_pxg_log_to(ngx_log_t *log, uint32_t level, const char *text, size_t len) {
  enum { BEFORE = 128, BEHIND = NGX_MAX_ERROR_STR };
  u_char small[2 * NGX_MAX_ERROR_STR + BEFORE], *line = small, *p;
  size_t room = BEFORE + len + BEHIND;

  if (log->log_level < ngx_http_pxg_levels[level]) return;
  if (room > sizeof(small)) line = ngx_alloc(room, ngx_cycle->log);
  if (line == NULL) line = small, room = sizeof(small), len = room - BEFORE - BEHIND;
  p = ngx_slprintf(line, line + BEFORE, "%V [%s] %P#" NGX_TID_T_FMT ": ", &ngx_cached_err_log_time,
                   ngx_http_pxg_words[level], ngx_log_pid, ngx_log_tid);
  if (log->connection) p = ngx_slprintf(p, line + BEFORE, "*%uA ", log->connection);
  p = ngx_slprintf(p, line + BEFORE, "proxy_golang: ");
  p = ngx_cpymem(p, text, len);
  if (log->handler && level != PXG_LOG_TRACE) p = log->handler(log, p, (size_t)(line + room - 1 - p));
  *p++ = '\n';
  ngx_http_pxg_write(log, ngx_http_pxg_levels[level], line, (size_t)(p - line));
  if (line != small) ngx_free(line);
}

/* [any-thread] */
void ngx_http_pxg_log(void *data, uint32_t level, const char *line, size_t len) {
  ngx_http_pxg_record_t *r = NULL;
  void (*bell)(void *) = NULL;

  if (level > PXG_LOG_ERROR) level = PXG_LOG_ERROR;
  pthread_mutex_lock(&ngx_http_pxg_box.lock);
  if (ngx_http_pxg_box.bell && !pthread_equal(ngx_http_pxg_box.loop, pthread_self())) r = malloc(sizeof(*r) + len);
  if (r) {
    r->next = NULL, r->level = level, r->len = len;
    ngx_memcpy(r->text, line, len);
    if (ngx_http_pxg_box.first == NULL) bell = ngx_http_pxg_box.bell;
    *ngx_http_pxg_box.last = r, ngx_http_pxg_box.last = &r->next;
  }
  pthread_mutex_unlock(&ngx_http_pxg_box.lock);
  if (r == NULL) ngx_http_pxg_log_to(ngx_cycle->log, level, line, len);
  if (bell) bell(ngx_http_pxg_box.data);
}

void ngx_http_pxg_log_take(void) {
  ngx_http_pxg_record_t *r, *next;

  pthread_mutex_lock(&ngx_http_pxg_box.lock);
  r = ngx_http_pxg_box.first;
  ngx_http_pxg_box.first = NULL, ngx_http_pxg_box.last = &ngx_http_pxg_box.first;
  pthread_mutex_unlock(&ngx_http_pxg_box.lock);
  for (; r; r = next) {
    next = r->next;
    ngx_http_pxg_log_to(ngx_cycle->log, r->level, (char *)r->text, r->len);
    free(r);
  }
}

void ngx_http_pxg_log_loop(void (*bell)(void *data), void *data) {
  pthread_mutex_lock(&ngx_http_pxg_box.lock);
  ngx_http_pxg_box.loop = pthread_self();
  ngx_http_pxg_box.data = data;
  ngx_http_pxg_box.bell = bell;
  pthread_mutex_unlock(&ngx_http_pxg_box.lock);
  if (bell == NULL) ngx_http_pxg_log_take();
}
