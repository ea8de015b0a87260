/* SPDX-License-Identifier: Apache-2.0 */

/* What the operator configures, and what the processes make of it. */

#ifndef NGX_HTTP_PXG_CONF_H
#define NGX_HTTP_PXG_CONF_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "pxg_engine.h"

#define NGX_HTTP_PXG_VERSION "0.1.0"

/* ---- Directives: ngx_http_pxg_directives.c, ngx_http_pxg_filter.c -------------------------------------------------- */

/* One proxy_golang_filter or proxy_golang_override block. */
typedef struct ngx_http_pxg_filter_s ngx_http_pxg_filter_t;
struct ngx_http_pxg_filter_s {
  ngx_str_t name;
  ngx_str_t guest; /* Absolute path, NUL-terminated. */
  ngx_str_t filter;
  ngx_str_t bytes;
  ngx_str_t file; /* Where the block is, for messages. */
  ngx_uint_t line;
  pxg_policy policy;
  ngx_http_pxg_filter_t *parent; /* Of an override: the filter's own block. */
  uint32_t given;                /* Which lines the block has; by their numbers. */
  u_char reply_refilter, flush, response_trailers, batch_end, warm_up, all_cpus; /* on: 1. */
  u_char disabled;    /* Of an override: the place is not there. */
  unsigned plain : 1; /* Of an override: the filter as it is, whatever outer blocks say. */
  unsigned used : 1;  /* A location's chain has it. */
  pxg_config *config; /* In workers; null: refused there, its streams fail closed (2.4). */
};

typedef struct {
  ngx_array_t filters;   /* ngx_http_pxg_filter_t *, in the order of the file. */
  ngx_array_t overrides; /* The same; of all servers and locations. */
  uint32_t log_level;    /* PXG_LOG_*: the lowest that a location's error_log takes. */
  size_t zone_size;      /* NGX_CONF_UNSET_SIZE: preset. */
  ngx_shm_zone_t *zone;  /* Null: there is no filter. */
  ngx_int_t request_id;  /* The index of $request_id. */
  unsigned strips : 1;   /* A location has proxy_golang_strip_request_fields. */
} ngx_http_pxg_main_conf_t;

typedef struct {
  ngx_array_t *declared;  /* ngx_http_pxg_filter_t *: the operands of proxy_golang; null: off. */
  ngx_array_t *overrides; /* ngx_http_pxg_filter_t *: those that count here, one for each NAME. */
  ngx_array_t *chain;     /* `declared` with the overrides in it, or null: what streams are opened with. */
  ngx_array_t *strip;     /* ngx_str_t, lower case: fields that clients may not send. */
  ngx_uint_t status;      /* NGX_HTTP_PXG_STATUS_*. */
} ngx_http_pxg_loc_conf_t;

extern ngx_command_t ngx_http_pxg_commands[];
void *ngx_http_pxg_create_main_conf(ngx_conf_t *cf);
char *ngx_http_pxg_init_main_conf(ngx_conf_t *cf, void *conf);
void *ngx_http_pxg_create_loc_conf(ngx_conf_t *cf);
char *ngx_http_pxg_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child);
ngx_http_pxg_filter_t *ngx_http_pxg_find(const ngx_array_t *filters, const ngx_str_t *name);

/* Whether it is a configuration of its own, to be made in workers. */
static inline ngx_uint_t ngx_http_pxg_is_made(const ngx_http_pxg_filter_t *f) { return !f->disabled && !f->plain; }

/* Refuses a list with "off" in it. */
char *ngx_http_pxg_off_alone(ngx_conf_t *cf);
char *ngx_http_pxg_filter_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_pxg_override_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* ---- ngx_http_pxg_strip.c ------------------------------------------------------------------------------------------ */

char *ngx_http_pxg_strip_fields(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
/* PREACCESS: removes what clients may not send, before a guest sees it. */
ngx_int_t ngx_http_pxg_strip_handler(ngx_http_request_t *r);

/* ---- Validation: ngx_http_pxg_validate.c --------------------------------------------------------------------------- */

/* Loads and tries all filters in a child of this process, so that a bad one is refused before a worker sees it. */
ngx_int_t ngx_http_pxg_validate(ngx_conf_t *cf);
/* All but the parent and `validate_only`. */
void ngx_http_pxg_filter_spec(const ngx_http_pxg_filter_t *f, pxg_config_spec *spec);

/* ---- Counters: ngx_http_pxg_metrics.c ------------------------------------------------------------------------------ */

/* What all workers add to, beside the engine's zone. */
typedef struct {
  ngx_atomic_t wakes;      /* Wake-ups by the eventfd. */
  ngx_atomic_t mails;      /* Streams that had mail then. */
  ngx_atomic_t batch_ends; /* on_batch_end for all libraries of a worker. */
  ngx_atomic_t workers;    /* Started so far. */
  ngx_atomic_t refusals;   /* Filters that a worker could not load. */
} ngx_http_pxg_totals_t;

extern ngx_http_pxg_totals_t *ngx_http_pxg_totals; /* Never null; without a zone, of this process. */

char *ngx_http_pxg_metrics_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
ngx_int_t ngx_http_pxg_add_zone(ngx_conf_t *cf, ngx_http_pxg_main_conf_t *m);
pxg_zone *ngx_http_pxg_zone(ngx_http_pxg_main_conf_t *m); /* Null: none. */
/* Of a process that serves: where it counts from now on. */
void ngx_http_pxg_use_zone(ngx_http_pxg_main_conf_t *m);

/* ---- Status: ngx_http_pxg_status.c --------------------------------------------------------------------------------- */

enum {
  NGX_HTTP_PXG_STATUS_NONE,
  NGX_HTTP_PXG_STATUS_ASKED, /* By `format` or Accept. */
  NGX_HTTP_PXG_STATUS_TEXT,
  NGX_HTTP_PXG_STATUS_JSON,
  NGX_HTTP_PXG_STATUS_PROMETHEUS
};

char *ngx_http_pxg_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

/* ---- Variables: ngx_http_pxg_variables.c --------------------------------------------------------------------------- */

ngx_int_t ngx_http_pxg_add_variables(ngx_conf_t *cf);

/* ---- Log: ngx_http_pxg_log.c --------------------------------------------------------------------------------------- */

/* pxg_driver.log: the main error_log. */
void ngx_http_pxg_log(void *data, uint32_t level, const char *line, size_t len);
/* On the loop's thread: the log of a request, and with it the error_log of its location. */
void ngx_http_pxg_log_to(ngx_log_t *log, uint32_t level, const char *line, size_t len);
/* The engine's level for one of nginx's. */
uint32_t ngx_http_pxg_log_level(const ngx_log_t *log);
/* The calling thread is the loop from now on: others ring `bell` when there is something for ngx_http_pxg_log_take. A
 * null `bell` ends that. */
void ngx_http_pxg_log_loop(void (*bell)(void *data), void *data);
void ngx_http_pxg_log_take(void);

/* ---- The module's file: ngx_http_pxg_file.c ------------------------------------------------------------------------ */

/* In a worker: the module stays until the process ends. */
void ngx_http_pxg_pin(void);
/* When a configuration was read: warns of a file that has been replaced since nginx loaded it. */
void ngx_http_pxg_note_file(ngx_conf_t *cf);

/* ---- Worker: ngx_http_pxg_worker.c --------------------------------------------------------------------------------- */

/* What this host can do at all (3.2), and what a configuration gets of it: ngx_http_pxg_features.c. */
extern const uint64_t ngx_http_pxg_features[4];
void ngx_http_pxg_grants(const ngx_http_pxg_filter_t *f, uint64_t features[4]);

/* Tells the engine about this host, once per process: a worker, or the child that validates. Guests format nothing that
 * neither `log` nor `log_level` takes. */
ngx_int_t ngx_http_pxg_start(ngx_log_t *log, uint32_t log_level, pxg_zone *zone);
/* Whether this is the one process of `master_process off`. After a reload there nginx accepts no connection any more,
 * module or not, so no guest is loaded for one. */
ngx_uint_t ngx_http_pxg_serves_alone(void);
ngx_int_t ngx_http_pxg_init_process(ngx_cycle_t *cycle);
void ngx_http_pxg_exit_process(ngx_cycle_t *cycle);
/* The worker's engine, its clock brought up to date; null in processes that serve no requests. */
pxg_worker *ngx_http_pxg_worker(void);
uint64_t ngx_http_pxg_now(void);
/* The worker's engine and its wake-up, if they are not there yet. */
ngx_int_t ngx_http_pxg_worker_start(ngx_cycle_t *cycle);
/* pxg_config_new with all processors of the machine. */
pxg_config *ngx_http_pxg_config_new(const pxg_config_spec *spec, pxg_error *why);
/* After a call into the engine: sees to on_batch_end at the end of this turn of the loop. */
void ngx_http_pxg_batch(void);

#endif
