/* SPDX-License-Identifier: Apache-2.0 */

/* What a guest can do to bodies, one word of the configuration each; both directions, mode STREAM if nothing is said:
 *
 *   pass      nothing
 *   twice     injects a copy of each piece behind it; announces that it resizes
 *   once      unsubscribes from the bodies at the first piece
 *   look      the same in mode OBSERVE
 *   add       injects "x" at the first piece and lets the rest pass unseen, in mode STREAM
 *   hold      PENDING at each piece, completed by a thread after 1.5 s
 *   head      PENDING at the response's head, completed after 1.5 s
 *   whole     mode WHOLE, nothing
 *   deny      mode WHOLE, replies 403 to the request's body
 *   cut       mode STREAM with the head held, replies 403 at the response's first piece */

#define _GNU_SOURCE
#include "proxy_golang.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define S(text) \
  { (const uint8_t *)(text), sizeof(text) - 1, 0 }
#define BIT PXG_PHASE_BIT
#define BODIES (BIT(PXG_PHASE_REQUEST_BODY) | BIT(PXG_PHASE_RESPONSE_BODY))

enum { PASS = 1, TWICE, ONCE, LOOK, ADD, HOLD, HEAD, WHOLE, DENY, CUT };
static const char *const words[] = {"", "pass", "twice", "once", "look", "add", "hold", "head", "whole", "deny", "cut"};
static const pxg_str filters[] = {S("bodies")};
static const pxg_host *host;

static void *complete(void *data) {
  pxg_result r = {.size = sizeof r, .action = PXG_ACT_CONTINUE};
  usleep(1500000); /* Longer than nginx's own limits of 1 s, which must not end what a guest holds. */
  host->complete(host->ctx, (uint64_t)(uintptr_t)data, &r);
  return NULL;
}

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  (void)ctx;
  for (size_t i = 1; i < sizeof words / sizeof words[0]; i++)
    if (in->bytes.len == strlen(words[i]) && memcmp(in->bytes.ptr, words[i], in->bytes.len) == 0) out->config = i;
  if (out->config == 0) {
    out->error = (pxg_str)S("no word of this guest");
    return PXG_E_ARG;
  }
  out->subscribe = out->config == HEAD ? BIT(PXG_PHASE_RESPONSE_HEADERS) : BODIES;
  if (out->config == DENY) out->subscribe = BIT(PXG_PHASE_REQUEST_BODY);
  if (out->config == CUT) out->subscribe = BIT(PXG_PHASE_RESPONSE_BODY) | BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (out->config == HOLD || out->config == HEAD) out->pend_phases = out->subscribe;
  for (int d = 0; d < 2; d++)
    if (out->subscribe & BIT(d ? PXG_PHASE_RESPONSE_BODY : PXG_PHASE_REQUEST_BODY))
      out->body_mode[d] = out->config == WHOLE || out->config == DENY ? PXG_BODY_WHOLE
                          : out->config == LOOK                       ? PXG_BODY_OBSERVE
                                                                      : PXG_BODY_STREAM;
  if (out->config == TWICE) out->flags = PXG_CFG_RESIZES_REQUEST | PXG_CFG_RESIZES_RESPONSE;
  return PXG_OK;
}

static void release(uint64_t ctx) { free((void *)(uintptr_t)ctx); }

static void twice(const pxg_event *ev, pxg_result *out) {
  uint64_t n = 0, at = 0;
  uint8_t *p;
  for (uint64_t i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  if (n == 0 || (p = malloc(n)) == NULL) return;
  for (uint64_t i = 0; i < ev->n_chunks; at += ev->chunks[i++].len)
    memcpy(p + at, ev->chunks[i].ptr, ev->chunks[i].len);
  out->scratch_ops[0] = (pxg_op){.kind = PXG_OP_PASS, .u0 = n};
  out->scratch_ops[1] =
      (pxg_op){.kind = PXG_OP_INJECT, .val = {{p, (uint32_t)n, PXG_BUF_OWNED}, release, (uint64_t)(uintptr_t)p}};
  out->ops = out->scratch_ops, out->n_ops = 2;
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  static const pxg_buf body[] = {{{(const uint8_t *)"denied\n", 7, PXG_BUF_STATIC}, 0, 0}};
  static pxg_reply reply = {.size = sizeof reply, .status = 403, .body = body, .n_body = 1};
  pthread_t t;

  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  switch (ev->config) {
  case TWICE: twice(ev, out); break;
  case ONCE:
  case LOOK: out->unsubscribe = BODIES; break;
  case ADD:
    out->unsubscribe = BODIES;
    out->scratch_ops[0] = (pxg_op){.kind = PXG_OP_INJECT, .val = {S("x"), 0, 0}};
    out->ops = out->scratch_ops, out->n_ops = 1;
    break;
  case HOLD:
  case HEAD:
    if (pthread_create(&t, NULL, complete, (void *)(uintptr_t)ev->token) != 0) abort();
    pthread_detach(t);
    out->action = PXG_ACT_PENDING;
    break;
  case CUT:
    if (ev->phase == PXG_PHASE_RESPONSE_HEADERS) {
      out->action = ev->flags & PXG_EV_END_STREAM ? PXG_ACT_CONTINUE : PXG_ACT_MORE;
      break;
    } /* fall through */
  case DENY:
    out->action = PXG_ACT_REPLY;
    out->reply = &reply;
    break;
  default: break;
  }
}

static void drop(uint64_t ctx, uint64_t config) { (void)ctx, (void)config; }
static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t w) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)w;
}
static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}

__attribute__((visibility("default"))) int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  if (h->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
  host = h;
  if (out->size > sizeof *out) out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR, out->minor = PXG_VERSION_MINOR, out->flags = PXG_GUEST_ABORTS;
  out->known[0] = ~0ull >> (64 - (PXG_F_APPLY + 1));
  out->name = (pxg_str)S("bodies-test");
  out->filters = filters, out->n_filters = 1;
  out->on_config_new = config_new, out->on_config_drop = drop;
  out->on_event = event, out->on_cancel = cancel, out->on_stream_end = end;
  return PXG_OK;
}
