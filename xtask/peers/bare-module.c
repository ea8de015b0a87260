/* SPDX-License-Identifier: Apache-2.0 */

/* The least that a dynamic module of Envoy's can do to look at all fields of a request and set one: no ABI, no engine, no
 * guest. What it costs is Envoy's own price for a module, and so the floor of what a host of guests can reach.
 * Declared by hand, as in hosts/envoy/src/sys/abi.rs. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct bytes {
  const char *ptr;
  size_t len;
} bytes;

typedef struct header {
  bytes name, value;
} header;

enum { REQUEST_HEADERS = 0, CONTINUE = 0, MOST = 256 };

extern size_t envoy_dynamic_module_callback_http_get_headers_size(void *filter, int of);
extern bool envoy_dynamic_module_callback_http_get_headers(void *filter, int of, header *out);
extern bool envoy_dynamic_module_callback_http_set_header(void *filter, int of, bytes name, bytes value);

#define HOOK(type, name, ...) __attribute__((visibility("default"))) type envoy_dynamic_module_on_##name(__VA_ARGS__)

HOOK(const char *, program_init, void) { return "v0.2.0"; }
HOOK(const void *, http_filter_config_new, void *config, bytes name, bytes text) {
  (void)config, (void)name, (void)text;
  return "config";
}
HOOK(const void *, http_filter_new, const void *config, void *filter) {
  (void)filter;
  return config;
}

HOOK(int, http_filter_request_headers, void *filter, const void *module, bool end) {
  static const char name[] = "x-bench", value[] = "0123456789abcdef";
  header all[MOST];
  volatile size_t seen = 0;
  (void)module, (void)end;
  size_t n = envoy_dynamic_module_callback_http_get_headers_size(filter, REQUEST_HEADERS);
  if (n <= MOST && envoy_dynamic_module_callback_http_get_headers(filter, REQUEST_HEADERS, all))
    for (size_t i = 0; i < n; i++) seen += all[i].name.len + all[i].value.len;
  envoy_dynamic_module_callback_http_set_header(filter, REQUEST_HEADERS, (bytes){name, sizeof name - 1},
                                                (bytes){value, sizeof value - 1});
  return CONTINUE;
}

/* Envoy refuses a module that lacks one of these. */
#define PASSES(name)                                                          \
  HOOK(int, http_filter_##name, void *filter, const void *module, bool end) { \
    return (void)filter, (void)module, (void)end, CONTINUE;                   \
  }
PASSES(request_body)
PASSES(request_trailers)
PASSES(response_headers)
PASSES(response_body)
PASSES(response_trailers)
#define NOTHING(name) \
  HOOK(void, http_filter_##name, void) {}
NOTHING(config_destroy)
NOTHING(stream_complete)
NOTHING(destroy)
NOTHING(scheduled)
NOTHING(http_callout_done)
NOTHING(http_stream_headers)
NOTHING(http_stream_data)
NOTHING(http_stream_trailers)
NOTHING(http_stream_complete)
NOTHING(http_stream_reset)
NOTHING(downstream_above_write_buffer_high_watermark)
NOTHING(downstream_below_write_buffer_low_watermark)
