/* Loads the guest of the header's top comment and takes it through one event. Prints what the event's result says. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "proxy_golang.h"

int main(int argc, char **argv) {
  void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  pxg_guest_init_v1_fn init;
  void *symbol = library ? dlsym(library, PXG_GUEST_INIT_SYMBOL) : NULL;
  if (!symbol) return puts(dlerror()), 1;
  memcpy(&init, &symbol, sizeof init);

  pxg_host host = {.size = sizeof host, .major = PXG_VERSION_MAJOR + 1};
  pxg_guest guest = {.size = sizeof guest + 8};
  if (init(&host, &guest) != PXG_E_VERSION) return puts("took another major version"), 1;
  host.major = PXG_VERSION_MAJOR;
  if (init(&host, &guest) != PXG_OK || guest.size != sizeof guest) return puts("init"), 1;

  pxg_config_in in = {.size = sizeof in, .filter = guest.filters[0]};
  pxg_config_out first = {.size = sizeof first}, second = first;
  if (guest.on_config_new(guest.ctx, &in, &first) || guest.on_config_new(guest.ctx, &in, &second))
    return puts("config_new"), 1;
  if (!first.config || first.config == second.config) return puts("configurations share a value"), 1;
  if (first.subscribe != PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS)) return puts("subscribe"), 1;

  pxg_op ops[32] = {0};
  pxg_event event = {.size = sizeof event, .phase = PXG_PHASE_RESPONSE_HEADERS, .config = first.config};
  pxg_result out = {.size = sizeof out, .scratch_ops = ops, .scratch_ops_cap = 32};
  guest.on_event(guest.ctx, &event, &out);
  if (out.n_ops != 1) return puts("operations"), 1;
  const pxg_op *op = out.ops;
  printf("%.*s: action %u, kind %u, %.*s = %.*s\n", (int)guest.filters[0].len, (const char *)guest.filters[0].ptr,
         out.action, op->kind, (int)op->key.len, (const char *)op->key.ptr, (int)op->val.bytes.len,
         (const char *)op->val.bytes.ptr);

  guest.on_cancel(guest.ctx, first.config, 0, 0, 0, 0);
  guest.on_stream_end(guest.ctx, first.config, 0, 0, 0);
  guest.on_config_drop(guest.ctx, first.config);
  return 0;
}
