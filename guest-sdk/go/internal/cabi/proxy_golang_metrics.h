/* SPDX-License-Identifier: Apache-2.0
 * Generated from proxy-golang-abi by `cargo xtask gen`: do not edit. */

/* proxy_golang: the extension pxg.metrics/1 of hosts.
 *
 * A guest asks for it once, in pxg_guest_init_v1 or later, on any thread:
 *
 *   const pxg_metrics_v1 *metrics =
 *       host->get_ext ? host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1) : 0;
 *
 * Null: the host has no metrics. The first argument of its functions is host->ctx. Inside a stream's event the
 * operation PXG_OP_METRIC records without a call; record is for everything else.
 */

#ifndef PROXY_GOLANG_EXT_METRICS_H
#define PROXY_GOLANG_EXT_METRICS_H

#include "proxy_golang.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PXG_METRICS_V1_ID "pxg.metrics/1" /* The id of pxg_metrics_v1. */

/* Kinds of metrics. */
#define PXG_METRIC_COUNTER 1   /* Only grows; a record adds to it. */
#define PXG_METRIC_GAUGE 2     /* A record sets it. */
#define PXG_METRIC_HISTOGRAM 3 /* A record is an observation; the host chooses the buckets. */

/* Host extension `pxg.metrics/1`: metrics that a guest defines and updates. The ids that `define` answers also
 * serve the METRIC operation. */
typedef struct pxg_metrics_v1 {
  uint32_t size;      /* Size of the struct as the host knows it, in bytes. */
  uint32_t reserved0; /* Zero. */

  /* [any-thread] Defines a metric, or answers the id of the one with this name, kind and labels. Copies its
   * arguments. ARG: not a metric or label name (`[a-zA-Z_][a-zA-Z0-9_]*`), or defined with another kind. LIMIT:
   * too many. */
  int32_t (*define)(
      uint64_t ctx, uint32_t kind, const pxg_str *name, const pxg_field *labels, uint64_t n_labels, uint32_t *id);

  /* [any-thread] Records a value outside a stream. NOTFOUND for an unknown or foreign id. */
  int32_t (*record)(uint64_t ctx, uint32_t id, int64_t value);
} pxg_metrics_v1;

#ifdef __cplusplus
}
#endif

#endif /* PROXY_GOLANG_EXT_METRICS_H */
