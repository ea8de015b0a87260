/* proxy_golang: the C ABI between a proxy (the host) and a native library with filters (the guest), version 1.
 *
 * A guest exports one function, pxg_guest_init_v1. The two sides exchange tables of functions, and then the host
 * calls on_event once per phase of a stream: everything the guest may read comes in with the call, everything it
 * wants comes back in the result, as data. The normative text is in spec/; PXG-MEM-002 and the like are ids of its
 * rules.
 *
 * Life of a guest
 *
 *   pxg_guest_init_v1 -> on_config_new -> on_worker(up)
 *       -> on_event ... [PENDING -> complete | on_cancel] ... -> on_event(LOG) -> on_stream_end
 *       -> on_config_drop -> on_worker(down)
 *
 * Tags: on which thread a function is called
 *
 *   [config-thread]  one call at a time, and never on a loop thread where the host has CONFIG_THREAD
 *   [loop-thread]    the worker thread of the stream; never two calls at once for one stream; must not block
 *   [any-thread]     every thread at every time, also before on_event has returned
 *   [in-call]        memory: only inside the call that lent it, on that call's thread
 *
 * Words: who owns memory
 *
 *   view      the host's memory, read-only; it dies when the call that brought it returns
 *   borrowed  the guest's memory; it stays valid until the next call into the same guest on the same thread
 *   owned     a buffer that changes hands; the host calls its release exactly once, on any thread
 *   lent      the host's scratch memory, writable inside the call
 *
 *   Nothing else is freed or kept across the boundary. What outlives a call is never a pointer: config, user, stream
 *   and token are 64-bit values, and a late use of a stream or token is answered with PXG_E_STALE, for ever.
 *
 * Structs that begin with `size` grow at their end in later minor versions. Read only what is below the size you were
 * given, write only what is below it, and set all that is reserved to zero (PXG-ABI-003, -004, -005). Strings are
 * pointer and length, never NUL-terminated. Flags, actions and kinds that a guest does not list in `known` never
 * reach it. Unset (0) is never an action: a result that a guest forgets to fill is an error of that guest.
 *
 * A guest: it adds a field to every response. Build it with: cc -std=c99 -shared -fPIC -I include guest.c -o guest.so
 *
 *   #include "proxy_golang.h"
 *   #define S(text) { (const uint8_t *)text, sizeof text - 1, 0 }
 *   static const pxg_str filters[] = { S("hello") };
 *   static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
 *     static uint64_t last;
 *     return out->config = ++last, out->subscribe = PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS), PXG_OK;
 *   }
 *   static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
 *     out->scratch_ops[0] = (pxg_op){ PXG_OP_HEADER_ADD, 0, PXG_TARGET_HEADERS, 0, S("x-hello"), { S("world"), 0, 0 } };
 *     out->ops = out->scratch_ops, out->n_ops = 1, out->action = PXG_ACT_CONTINUE;
 *   }
 *   static void drop(uint64_t ctx, uint64_t config) {}
 *   static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {}
 *   static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {}
 *   int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
 *     if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
 *     if (out->size > sizeof *out) out->size = sizeof *out;
 *     out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
 *     out->filters = filters, out->n_filters = 1, out->on_config_new = config_new, out->on_config_drop = drop;
 *     out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
 *     return PXG_OK;
 *   }
 */
