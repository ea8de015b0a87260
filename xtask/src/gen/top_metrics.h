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
