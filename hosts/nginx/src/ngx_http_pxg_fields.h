/* SPDX-License-Identifier: Apache-2.0 */

/* The fields of a message in nginx as the ABI sees them (spec/06-headers.md), and edits of them.
 *
 * nginx keeps some fields outside its lists, and keeps pointers into the lists. A view brings them together, edits mark
 * and append, and ngx_http_pxg_fields_commit settles what nginx derives from them. Between the two no pointer of an
 * earlier view becomes invalid, so a whole batch of operations can be applied to one view. */

#ifndef NGX_HTTP_PXG_FIELDS_H
#define NGX_HTTP_PXG_FIELDS_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "proxy_golang.h"

typedef enum {
  NGX_HTTP_PXG_IN_LIST, /* An element of the list of headers. */
  NGX_HTTP_PXG_PSEUDO,
  NGX_HTTP_PXG_CONTENT_TYPE, /* headers_out.content_type, with its charset. */
  NGX_HTTP_PXG_CONTENT_LENGTH,
  NGX_HTTP_PXG_LAST_MODIFIED
} ngx_http_pxg_home_e;

/* Where the field at one index of a view lives. */
typedef struct {
  ngx_http_pxg_home_e home;
  ngx_table_elt_t *elt; /* Of IN_LIST. */
} ngx_http_pxg_slot_t;

typedef struct {
  ngx_http_request_t *request;
  ngx_uint_t direction;  /* PXG_DIR_*. */
  unsigned trailers : 1; /* Those of the response. */
  pxg_field *fields;
  ngx_http_pxg_slot_t *slots; /* As many as `fields`. */
  size_t n, cap;
  unsigned edited : 1;  /* Since the last commit, */
  unsigned removed : 1; /* elements among it, */
  unsigned derived : 1; /* or fields of which nginx keeps more than an element. */
} ngx_http_pxg_fields_t;

/* Before the first guest: one authority, and a path in the normal form of RFC 3986 (SEC-007), for what follows and for
 * $request_uri. What is in normal form stays as it came, byte for byte. */
ngx_int_t ngx_http_pxg_fields_normalize(ngx_http_request_t *r);

/* Whether the client takes trailers: with HTTP/1.1 it has to say so. */
ngx_uint_t ngx_http_pxg_receives_trailers(ngx_http_request_t *r);

/* Fills the view anew, of `f->trailers` where that is set; memory comes from the request's pool and is used again by the next call. NGX_ERROR: no memory. */
ngx_int_t ngx_http_pxg_fields_view(ngx_http_pxg_fields_t *f, ngx_http_request_t *r, ngx_uint_t direction);

/* What the view of a request would show, into `to`, without what edits by index need. NGX_DECLINED: more than `room`, or
 * no memory. */
ngx_int_t ngx_http_pxg_request_fields(ngx_http_request_t *r, pxg_field *to, size_t room, size_t *n);

/* What ngx_http_pxg_fields_set, _add, _delete and _commit do, for edits by name of a request that are no pseudo-headers. */
ngx_int_t ngx_http_pxg_request_edits(ngx_http_request_t *r, const pxg_op *edits, size_t n);

/* Edits. The caller has checked the grammar and that the name is not one that the host owns. Name and value are copied.
 * NGX_DECLINED: nginx cannot represent the value of a pseudo-header; at an index: the field has been removed already. */
ngx_int_t ngx_http_pxg_fields_set(ngx_http_pxg_fields_t *f, const pxg_str *name, const pxg_str *value);
ngx_int_t ngx_http_pxg_fields_add(ngx_http_pxg_fields_t *f, const pxg_str *name, const pxg_str *value);
ngx_int_t ngx_http_pxg_fields_delete(ngx_http_pxg_fields_t *f, const pxg_str *name);
ngx_int_t ngx_http_pxg_fields_set_at(ngx_http_pxg_fields_t *f, size_t index, const pxg_str *value);
ngx_int_t ngx_http_pxg_fields_delete_at(ngx_http_pxg_fields_t *f, size_t index);

/* After a batch: removed fields leave the lists, and nginx's pointers into them are found again. Views made before are
 * invalid from here on. */
ngx_int_t ngx_http_pxg_fields_commit(ngx_http_pxg_fields_t *f);

/* The host computed another length of the body (7.6): -1 drops content-length; a request's body is read by it all the
 * same. */
ngx_int_t ngx_http_pxg_fields_length(ngx_http_request_t *r, ngx_uint_t direction, off_t length);

/* ---- Between the files of fields ----------------------------------------------------------------------------------- */

ngx_int_t ngx_http_pxg_same(const ngx_str_t *a, const char *text); /* Without case. */
u_char *ngx_http_pxg_copy(ngx_pool_t *pool, const ngx_str_t *s);   /* With a NUL: nginx reads some values up to one. */
ngx_int_t ngx_http_pxg_gone(ngx_uint_t direction, const ngx_table_elt_t *e);
ngx_table_elt_t *ngx_http_pxg_next(ngx_list_t *list, ngx_list_part_t **part,
                                   ngx_uint_t *i); /* Start with *part NULL. */
ngx_int_t ngx_http_pxg_push(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value,
                            ngx_http_pxg_home_e home, ngx_table_elt_t *elt);
ngx_int_t ngx_http_pxg_push_text(ngx_http_pxg_fields_t *f, const char *name, const ngx_str_t *value,
                                 ngx_http_pxg_home_e home);
ngx_int_t ngx_http_pxg_push_list(ngx_http_pxg_fields_t *f);
void ngx_http_pxg_remove_name(ngx_http_pxg_fields_t *f, const ngx_str_t *name);

/* ngx_http_pxg_fields_request.c */
ngx_int_t ngx_http_pxg_request_view(ngx_http_pxg_fields_t *f);
ngx_int_t ngx_http_pxg_request_pseudo(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value);
ngx_uint_t ngx_http_pxg_request_derives(ngx_http_request_t *r,
                                        const ngx_str_t *name); /* Whether nginx knows the field. */
ngx_int_t ngx_http_pxg_request_commit(ngx_http_pxg_fields_t *f);
ngx_int_t ngx_http_pxg_request_length(ngx_http_request_t *r, off_t length);

/* ngx_http_pxg_fields_response.c */
ngx_int_t ngx_http_pxg_response_view(ngx_http_pxg_fields_t *f);
ngx_int_t ngx_http_pxg_response_pseudo(ngx_http_pxg_fields_t *f, const ngx_str_t *name, const ngx_str_t *value);
ngx_uint_t ngx_http_pxg_response_derives(const ngx_str_t *name);
ngx_int_t ngx_http_pxg_response_commit(ngx_http_request_t *r);
void ngx_http_pxg_response_length(ngx_http_request_t *r, off_t length);
ngx_int_t ngx_http_pxg_set_content_type(ngx_http_request_t *r, const ngx_str_t *v);

#endif
