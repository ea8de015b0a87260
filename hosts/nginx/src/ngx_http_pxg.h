/* SPDX-License-Identifier: Apache-2.0 */

/* What the parts of the module share. Each part is told at its declarations. */

#ifndef NGX_HTTP_PXG_H
#define NGX_HTTP_PXG_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_pxg_conf.h"
#include "ngx_http_pxg_fields.h"

extern ngx_module_t ngx_http_proxy_golang_module;

/* The bit of r->buffered while something of a response is withheld. nginx has four; the image filter uses this one, too,
 * and the two do not meet on one response that a guest holds. */
#define NGX_HTTP_PXG_BUFFERED 0x08

/* ---- Streams: ngx_http_pxg_stream.c -------------------------------------------------------------------------------- */

typedef struct {
  ngx_http_request_t *request;
  pxg_stream *stream;
  ngx_queue_t queue; /* Of the worker: all that have a stream. */
  ngx_http_pxg_fields_t fields[2], trailers; /* `trailers`: of the response. */
  ngx_event_t timer;

  /* What the engine let go and nginx has not taken yet, and buffers to use again; by direction. */
  ngx_chain_t *out[2], *free[2], *busy[2];
  off_t passed[2];     /* Bytes that left the engine. */
  off_t body_bytes[2]; /* Of the request as it came, of the response as it left; for attributes. */
  ngx_str_t raw_path;  /* As it came. */
  uint64_t started_ns; /* The request's start, monotonic. */

  unsigned in_access : 1;     /* The ACCESS handler answered NGX_AGAIN. */
  unsigned reading : 1;       /* It reads the body while headers are held. */
  unsigned request_fed : 1;   /* The end of the request is known to the engine. */
  unsigned request_head : 1;  /* The request's head has left the engine. */
  unsigned request_ended : 1; /* Its end, too. */
  unsigned response_fed : 1;
  unsigned response_end_fed : 1;
  unsigned response_head : 1; /* The response's head has left the engine. */
  unsigned head_sent : 1;     /* It was handed to the next filter. */
  unsigned response_ended : 1;
  unsigned local : 1;   /* The response is a guest's reply. */
  unsigned swallow : 1; /* What still comes as a response is dropped. */
  unsigned flush : 1;
  unsigned resized : 1;  /* A guest changes the length of the request's body: all of it is read before it is sent on. */
  unsigned rerouted : 1; /* The location was chosen again for a guest. */
  unsigned reset : 1;
  unsigned finished : 1;
} ngx_http_pxg_ctx_t;

/* What the engine asks of a stream; its data is the context. ngx_http_pxg_ops.c */
extern const pxg_stream_ops ngx_http_pxg_ops;

/* ngx_http_pxg_attributes.c */
ngx_int_t ngx_http_pxg_attributes_init(ngx_conf_t *cf);                   /* In preconfiguration. */
int32_t ngx_http_pxg_attribute(void *data, const char *name, size_t len); /* pxg_driver.attribute */
bool ngx_http_pxg_op_attribute(void *data, int32_t id, uint32_t phase, pxg_str *value);
void ngx_http_pxg_attributes_open(ngx_http_pxg_ctx_t *ctx); /* Before a guest or an edit. */
/* ngx_http_pxg_routing.c */
ngx_int_t ngx_http_pxg_routing_variables(ngx_conf_t *cf); /* In preconfiguration. */
bool ngx_http_pxg_op_cluster(void *data, const uint8_t *name, size_t len);
/* Once the request's head has left the engine. NGX_DONE: its location was chosen again, the phases have run. */
ngx_int_t ngx_http_pxg_reroute(ngx_http_pxg_ctx_t *ctx);
/* Tells the log where a request did not go to the cluster that a guest chose. */
void ngx_http_pxg_check_route(ngx_http_pxg_ctx_t *ctx);
void ngx_http_pxg_count_body(ngx_http_pxg_ctx_t *ctx, int direction, const ngx_chain_t *in);

/* The context of a main request, also after nginx wiped r->ctx at an internal redirect. */
ngx_http_pxg_ctx_t *ngx_http_pxg_ctx(ngx_http_request_t *r);
/* A new stream for the chain of the request's location. NGX_DECLINED: no chain. */
ngx_int_t ngx_http_pxg_open(ngx_http_request_t *r, ngx_http_pxg_ctx_t **ctx);
/* Takes what may leave into the context, keeps what stays, sets the timer. To be called after each feed. NGX_ERROR: no
 * memory, the request cannot go on. */
ngx_int_t ngx_http_pxg_pump(ngx_http_pxg_ctx_t *ctx);
/* [exit] Ends all streams of this process, for one that ends in spite of them. */
void ngx_http_pxg_end_all(void);
/* Something may have changed outside the request's own events. */
void ngx_http_pxg_resume(ngx_http_pxg_ctx_t *ctx);
/* One thing that pxg_take answered goes to the context: ngx_http_pxg_bytes.c. */
ngx_int_t ngx_http_pxg_take_one(ngx_http_pxg_ctx_t *ctx, pxg_out *out);
/* Feeds buffers in memory and marks them consumed once the engine has what stays. */
ngx_int_t ngx_http_pxg_feed(ngx_http_pxg_ctx_t *ctx, int direction, ngx_chain_t *in, ngx_uint_t *ended);
void ngx_http_pxg_finish(ngx_http_pxg_ctx_t *ctx, uint32_t why);

/* ---- Places in nginx ----------------------------------------------------------------------------------------------- */

/* ngx_http_pxg_request.c */
ngx_int_t ngx_http_pxg_access_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_pxg_log_handler(ngx_http_request_t *r);
/* ngx_http_pxg_request_body.c */
void ngx_http_pxg_request_body_init(void);
/* ngx_http_pxg_response.c */
void ngx_http_pxg_response_init(void);
void ngx_http_pxg_response_resume(ngx_http_pxg_ctx_t *ctx);
/* A reply made before anything was asked of the content: sends it and ends the request. */
ngx_int_t ngx_http_pxg_send_reply(ngx_http_pxg_ctx_t *ctx);

#endif
