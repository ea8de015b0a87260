/* SPDX-License-Identifier: Apache-2.0 */

/* What this host can do (spec/03-negotiation.md, 3.2), in general and for one configuration. */

#include "ngx_http_pxg.h"

#define NGX_HTTP_PXG_BIT(f) (1ull << ((f) % 64))

#define NGX_HTTP_PXG_TRAILERS (NGX_HTTP_PXG_BIT(PXG_F_TRAILERS_OUT_RESPONSE) | NGX_HTTP_PXG_TRAILERS_IN)
/* Before 1.27.2 the proxy module drops an upstream's trailers. */
#if (nginx_version >= 1027002)
#define NGX_HTTP_PXG_TRAILERS_IN \
  (NGX_HTTP_PXG_BIT(PXG_F_TRAILERS_IN_RESPONSE) | NGX_HTTP_PXG_BIT(PXG_F_PEND_RESPONSE_TRAILERS))
#else
#define NGX_HTTP_PXG_TRAILERS_IN 0
#endif

/* Cleared, because nginx has no way to it:
 *   PEND_REQUEST_TRAILERS, TRAILERS_IN_REQUEST, TRAILERS_OUT_REQUEST   it drops trailers of requests
 *   BODY_INJECT     a response that it passes on is moved by its upstream's events only
 *   WIRE_ORDER      it joins cookies of HTTP/2, and keeps some fields outside its lists
 *   SUBREQUESTS     the access phase, where a chain starts, does not run for them
 *   UPGRADE_BODY    an upgraded connection passes no filter
 *   CONFIG_THREAD   a worker has one thread
 *   L4, PEND_L4_*   the module is one of http */
const uint64_t ngx_http_pxg_features[4] = {
    NGX_HTTP_PXG_BIT(PXG_F_PEND_REQUEST_HEADERS) | NGX_HTTP_PXG_BIT(PXG_F_PEND_REQUEST_BODY) |
        NGX_HTTP_PXG_BIT(PXG_F_PEND_RESPONSE_HEADERS) | NGX_HTTP_PXG_BIT(PXG_F_PEND_RESPONSE_BODY) |
        NGX_HTTP_PXG_BIT(PXG_F_BODY_STREAM_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_BODY_STREAM_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_BODY_WHOLE_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_BODY_WHOLE_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_BODY_OBSERVE_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_BODY_OBSERVE_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_HOLD_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_HOLD_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_RESIZE_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_RESIZE_RESPONSE) |
        NGX_HTTP_PXG_BIT(PXG_F_EXACT_EOS_REQUEST) | NGX_HTTP_PXG_BIT(PXG_F_EXACT_EOS_RESPONSE) | NGX_HTTP_PXG_TRAILERS |
        NGX_HTTP_PXG_BIT(PXG_F_PARTIAL_RELEASE) | NGX_HTTP_PXG_BIT(PXG_F_CONTINUE_GATE) |
        NGX_HTTP_PXG_BIT(PXG_F_STREAM_REPLY) | NGX_HTTP_PXG_BIT(PXG_F_FLUSH) | NGX_HTTP_PXG_BIT(PXG_F_REPLY_REFILTER) |
        NGX_HTTP_PXG_BIT(PXG_F_ROUTE) | NGX_HTTP_PXG_BIT(PXG_F_METADATA) | NGX_HTTP_PXG_BIT(PXG_F_OWNED_BUF) |
        NGX_HTTP_PXG_BIT(PXG_F_ORPHAN) | NGX_HTTP_PXG_BIT(PXG_F_THREAD_AFFINE) | NGX_HTTP_PXG_BIT(PXG_F_BATCH_END) |
        NGX_HTTP_PXG_BIT(PXG_F_CONFIG_REJECT) | NGX_HTTP_PXG_BIT(PXG_F_APPLY),
};

/* Granted, because it depends on what locations do with it:
 *   ROUTE           `clusters` names one at least: the location's proxy_pass has $proxy_golang_cluster
 *   REPLY_REFILTER  `reply_refilter on`
 *   FLUSH           `flush on`: the location does not buffer requests, which would reach no transport before their end
 *   trailers        `response_trailers on`: each response that could get some is sent in chunks */
void ngx_http_pxg_grants(const ngx_http_pxg_filter_t *f, uint64_t features[4]) {
  ngx_memcpy(features, ngx_http_pxg_features, sizeof(ngx_http_pxg_features));
  if (f->policy.n_clusters == 0) features[0] &= ~NGX_HTTP_PXG_BIT(PXG_F_ROUTE);
  if (!f->reply_refilter) features[0] &= ~NGX_HTTP_PXG_BIT(PXG_F_REPLY_REFILTER);
  if (!f->flush) features[0] &= ~NGX_HTTP_PXG_BIT(PXG_F_FLUSH);
  if (!f->response_trailers) features[0] &= ~NGX_HTTP_PXG_TRAILERS;
  if (!f->batch_end) features[0] &= ~NGX_HTTP_PXG_BIT(PXG_F_BATCH_END);
}
