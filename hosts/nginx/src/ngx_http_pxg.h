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

/* A buffer of this module on its way to nginx's next filter. */
typedef struct ngx_http_pxg_piece_s ngx_http_pxg_piece_t;

struct ngx_http_pxg_piece_s {
  ngx_buf_t buf;
  ngx_chain_t link;
  ngx_http_pxg_piece_t *next;
  ngx_buf_t *lender; /* The buffer of nginx that ends with this piece. */
  pxg_slice slice;   /* The engine's block, given back when the buffer is consumed. */
};

/* A deadline, among those of the worker. */
typedef struct {
  ngx_queue_t queue;
  uint64_t at;    /* Monotonic, in nanoseconds; 0: none. */
  ngx_uint_t *of; /* The kind of a context or glance, and so that. */
} ngx_http_pxg_due_t;

/* The body of one direction. */
typedef struct {
  ngx_chain_t *in;                        /* Lent by nginx and not given to the engine yet. */
  ngx_http_pxg_piece_t *out, *last_out;   /* Let go by the engine and not handed on yet. */
  ngx_http_pxg_piece_t *busy, *last_busy; /* Handed on and not consumed yet. */
  ngx_http_pxg_piece_t *free;
  size_t owned; /* Bytes of blocks in `out` and `busy`. */
  off_t passed; /* Bytes that left the engine, or went past it. */
  unsigned flush : 1;
} ngx_http_pxg_flow_t;

/* What nginx keeps of this module for a request begins with which of the two it is. */
enum { NGX_HTTP_PXG_CTX = 1, NGX_HTTP_PXG_GLANCE };

typedef struct {
  ngx_uint_t kind; /* NGX_HTTP_PXG_CTX */
  ngx_http_request_t *request;
  pxg_stream *stream;
  ngx_pool_cleanup_t *cleanup;
  ngx_queue_t queue;                         /* Of the worker: all that have a stream. */
  ngx_http_pxg_fields_t fields[2], trailers; /* `trailers`: of the response. */
  ngx_http_pxg_due_t due;
  ngx_event_t after; /* See ngx_http_pxg_after. */
  ngx_http_pxg_flow_t flow[2];
  ngx_chain_t *gate; /* The response's body, stopped before the first filter while its head is held. */
  ngx_output_chain_ctx_t reader;

  off_t body_bytes[2]; /* Of the request as it came, of the response as it left; for attributes. */
  ngx_str_t raw_path;  /* As it came. */
  uint64_t started_ns; /* The request's start, monotonic. */

  /* Handlers of nginx that are replaced while a guest withholds. */
  ngx_http_event_handler_pt read_handler, write_handler;
  ngx_http_client_body_handler_pt body_handler;
  ngx_send_pt send;
  ngx_int_t refused; /* The status that nginx's filters have in the place of a head that was held. */
  ngx_uint_t method; /* The client's, whose answer it is: a guest may have made another one of it. */

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
  unsigned end_at_head : 1;
  unsigned header_only : 1; /* r->header_only was set ahead of its time. */
  unsigned upgraded : 1;
  unsigned aside : 1;    /* Nothing of the response is the engine's business any more. */
  unsigned local : 1;    /* The response is a guest's reply, */
  unsigned open : 1;     /* a streamed one, */
  unsigned answered : 1; /* and in nginx's hands: what else comes as a response is dropped. */
  unsigned abandon : 1;  /* The upstream's exchange is of no use any more. */
  unsigned cut : 1;      /* The upstream's response ends short. */
  unsigned buffered : 1; /* NGX_HTTP_PXG_BUFFERED is set. */
  unsigned handing : 1;  /* The next filter of bodies is being called. */
  unsigned resized : 1;  /* A guest changes the length of the request's body: all of it is read before it is sent on. */
  unsigned may_trail : 1; /* A guest may add trailers to the response. */
  unsigned rerouted : 1;  /* The location was chosen again for a guest. */
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

/* What values of attributes are made from. */
typedef struct {
  ngx_http_request_t *request;
  pxg_stream *stream;
  const off_t *body_bytes; /* Two: of the request as it came, of the response as it left. */
  ngx_str_t raw_path;
  uint64_t started_ns;
  const char *origin; /* response.code_details of a response that is no guest's; null: not known. */
} ngx_http_pxg_subject_t;

bool ngx_http_pxg_show_attribute(const ngx_http_pxg_subject_t *s, int32_t id, uint32_t phase, pxg_str *value);
/* Where nginx has the response from that it makes or forwards. */
const char *ngx_http_pxg_origin(ngx_http_request_t *r);
uint64_t ngx_http_pxg_started(ngx_http_request_t *r); /* Its start, monotonic. */
/* ngx_http_pxg_routing.c */
ngx_int_t ngx_http_pxg_routing_variables(ngx_conf_t *cf); /* In preconfiguration. */
bool ngx_http_pxg_op_cluster(void *data, const uint8_t *name, size_t len);
/* Once the request's head has left the engine. NGX_DONE: its location was chosen again, the phases have run. */
ngx_int_t ngx_http_pxg_reroute(ngx_http_pxg_ctx_t *ctx);
/* Tells the log where a request did not go to the cluster that a guest chose. */
void ngx_http_pxg_check_route(ngx_http_pxg_ctx_t *ctx);
void ngx_http_pxg_count_body(ngx_http_pxg_ctx_t *ctx, int direction, const ngx_chain_t *in);

/* A context or glance of a main request, also after nginx wiped r->ctx at an internal redirect. */
void *ngx_http_pxg_search(ngx_http_request_t *r);
static inline void *ngx_http_pxg_any(ngx_http_request_t *r) {
  void *found = ngx_http_get_module_ctx(r, ngx_http_proxy_golang_module);
  if (found && r == r->main) return found;
  if (!(r->internal || r->filter_finalize || r->error_page || r->uri_changes != NGX_HTTP_MAX_URI_CHANGES + 1) ||
      r != r->main)
    return NULL;
  return ngx_http_pxg_search(r);
}
static inline ngx_http_pxg_ctx_t *ngx_http_pxg_ctx(ngx_http_request_t *r) {
  ngx_uint_t *kind = ngx_http_pxg_any(r);
  return kind && *kind == NGX_HTTP_PXG_CTX ? (ngx_http_pxg_ctx_t *)(void *)kind : NULL;
}
/* A new one, which is ready once it has its stream. Null: no memory. */
ngx_http_pxg_ctx_t *ngx_http_pxg_ctx_new(ngx_http_request_t *r);
void ngx_http_pxg_ctx_ready(ngx_http_pxg_ctx_t *ctx);
uint32_t ngx_http_pxg_stream_flags(ngx_http_request_t *r); /* Of pxg_stream_open. */
/* A new stream for the chain of the request's location. NGX_DECLINED: no chain. */
ngx_int_t ngx_http_pxg_open(ngx_http_request_t *r, ngx_http_pxg_ctx_t **ctx);
/* Takes what may leave into the context, keeps what stays, sets the timer. To be called after each feed. NGX_ERROR: no
 * memory, the request cannot go on. */
ngx_int_t ngx_http_pxg_pump(ngx_http_pxg_ctx_t *ctx);
void ngx_http_pxg_set_due(ngx_http_pxg_due_t *due, uint64_t at); /* 0: none any more. */
/* [exit] Ends all streams of this process, for one that ends in spite of them. */
void ngx_http_pxg_end_all(void);
/* Nobody may finalize the request any more, nor call its handlers: all is over but for frames of HTTP/2 that wait in their
 * connection, or nginx has it among its posted requests to be terminated. */
static inline ngx_uint_t ngx_http_pxg_is_closed(ngx_http_request_t *r) {
  ngx_http_ephemeral_t *e = ngx_http_ephemeral(r->main);
  ngx_http_posted_request_t *pr;

  for (pr = r->main->posted_requests; pr; pr = pr->next)
    if (pr == &e->terminal_posted_request) return 1;
  return r->main->count == 0;
}
/* Something may have changed outside the request's own events. */
void ngx_http_pxg_resume(ngx_http_pxg_ctx_t *ctx);
void ngx_http_pxg_finish(ngx_http_pxg_ctx_t *ctx, uint32_t why);

/* ---- Requests without a stream: ngx_http_pxg_glance.c -------------------------------------------------------------- */

typedef struct {
  ngx_uint_t kind; /* NGX_HTTP_PXG_GLANCE */
  ngx_http_request_t *request;
  ngx_queue_t queue; /* Of the worker: all that live. */
  ngx_http_pxg_due_t due;
  pxg_glance engine;
  off_t passed; /* Bytes of the request's body. */
  unsigned bodiless : 1;
  unsigned request_ended : 1;
  unsigned response_fed : 1; /* Its head has passed. */
  unsigned reset : 1;
} ngx_http_pxg_glance_t;

/* Null: the request has none, or its stream. */
ngx_http_pxg_glance_t *ngx_http_pxg_glance(ngx_http_request_t *r);
ngx_http_pxg_glance_t *ngx_http_pxg_glance_of(ngx_pool_cleanup_t *cln);
/* The request's head. NGX_DECLINED: it needs a stream; NGX_AGAIN: it waits; NGX_OK: it has had its event, and in `ctx`
 * what took over, if anything did. */
ngx_int_t ngx_http_pxg_glance_start(ngx_http_request_t *r, ngx_http_pxg_ctx_t **ctx);
/* The stream that takes over. Null: no memory, and the glance is over. */
ngx_http_pxg_ctx_t *ngx_http_pxg_glance_stream(ngx_http_pxg_glance_t *g);
void ngx_http_pxg_glance_mail(pxg_worker *w); /* Before pxg_worker_next. */
/* ngx_http_pxg_glance_stream outside of the request's own events. Null: the request was reset, or answered. */
ngx_http_pxg_ctx_t *ngx_http_pxg_glance_stream_or_reset(ngx_http_pxg_glance_t *g);
void ngx_http_pxg_glance_request_body(ngx_http_pxg_glance_t *g, const ngx_chain_t *in);
void ngx_http_pxg_glance_finish(ngx_http_pxg_glance_t *g);
void ngx_http_pxg_glance_end_all(void); /* [exit] */

/* ---- Bytes: ngx_http_pxg_bytes.c ----------------------------------------------------------------------------------- */

/* One thing that pxg_take answered goes to the context. */
ngx_int_t ngx_http_pxg_take_one(ngx_http_pxg_ctx_t *ctx, pxg_out *out);
/* Keeps the links of a chain, whose buffers stay as they are until the engine has had them. */
ngx_int_t ngx_http_pxg_lend(ngx_http_pxg_ctx_t *ctx, int d, ngx_chain_t *in);
/* Gives some of it to the engine and takes what may leave. NGX_DECLINED: there was nothing, or no more is wanted now. */
ngx_int_t ngx_http_pxg_feed(ngx_http_pxg_ctx_t *ctx, int d);
/* Whether it would give some. */
ngx_uint_t ngx_http_pxg_can_feed(ngx_http_pxg_ctx_t *ctx, int d);
/* Whether no guest looks at the body, now and from here on: it may go past the engine. */
ngx_uint_t ngx_http_pxg_unseen(ngx_http_pxg_ctx_t *ctx, int d);
/* Such a body. NGX_DECLINED: `in` is to be handed on as it is; NGX_OK: what may leave is in the context. */
ngx_int_t ngx_http_pxg_pass_by(ngx_http_pxg_ctx_t *ctx, int d, ngx_chain_t *in);
/* What may leave, as a chain for the next filter; and, after that filter, what has been consumed of it. */
void ngx_http_pxg_hand_on(ngx_http_pxg_ctx_t *ctx, int d, ngx_chain_t **chain);
void ngx_http_pxg_reap(ngx_http_pxg_ctx_t *ctx, int d);
/* Consumes what was lent, unseen, and, with `out`, what was let go. */
void ngx_http_pxg_drop(ngx_http_pxg_ctx_t *ctx, int d, ngx_uint_t out);
/* At the end of the request: blocks that nginx still had. */
void ngx_http_pxg_give_back(ngx_http_pxg_ctx_t *ctx);
/* Bytes of the response that the client has not taken. */
uint64_t ngx_http_pxg_waiting(const ngx_http_pxg_ctx_t *ctx);

/* ---- Afterwards: ngx_http_pxg_after.c ------------------------------------------------------------------------------ */

/* Has what is due looked at once nginx's functions, which may be on the stack now, have returned: a reply, a reset, an
 * upstream that ended short, and limits of nginx that would run against a guest. */
void ngx_http_pxg_after(ngx_http_pxg_ctx_t *ctx);
void ngx_http_pxg_after_handler(ngx_event_t *ev);
/* Puts back what was replaced while a guest withheld the request's body, and reads on. */
void ngx_http_pxg_read_on(ngx_http_pxg_ctx_t *ctx);
/* Outside nginx's functions: a guest's reply takes the place of what nginx does for the request. */
void ngx_http_pxg_answer(ngx_http_pxg_ctx_t *ctx);

/* ---- Places in nginx ----------------------------------------------------------------------------------------------- */

/* ngx_http_pxg_request.c */
ngx_int_t ngx_http_pxg_access_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_pxg_log_handler(ngx_http_request_t *r);
/* ngx_http_pxg_request_body.c */
void ngx_http_pxg_request_body_init(void);
/* ngx_http_pxg_response.c */
void ngx_http_pxg_response_init(void);
uint32_t ngx_http_pxg_response_flags(ngx_http_request_t *r); /* PXG_HEAD_* of the response's head. */
/* In a worker, when all modules have put up their filters: that of bodies comes before the first of them. */
void ngx_http_pxg_response_gate(void);
/* Moves what there is of the response: what nginx lent to the engine, what left that to the next filters. */
ngx_int_t ngx_http_pxg_move_response(ngx_http_pxg_ctx_t *ctx);
void ngx_http_pxg_response_resume(ngx_http_pxg_ctx_t *ctx);
/* A reply made before anything was asked of the content: sends it and ends the request. */
void ngx_http_pxg_send_reply(ngx_http_pxg_ctx_t *ctx);

#endif
