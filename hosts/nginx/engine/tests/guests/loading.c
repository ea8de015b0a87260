/* SPDX-License-Identifier: Apache-2.0 */

/* A guest whose faults are chosen: in its table by the name of its file, in a configuration by the configuration's
 * bytes. Tests copy it under the names they need. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

#define S(text) \
  { (const uint8_t *)text, sizeof text - 1, 0 }

static const pxg_host *host;
static const pxg_metrics_v1 *metrics;
static char dropped[256]; /* The values of dropped configurations, in order; the host's log shows it. */
static uint64_t last;

/* Where the name says so: another file lies there by the time that the loader is done. */
__attribute__((constructor)) static void replace(void) {
  Dl_info me;
  if (!dladdr((void *)replace, &me) || !strstr(me.dli_fname, "replaces-itself")) return;
  FILE *other;
  if (remove(me.dli_fname) || !(other = fopen(me.dli_fname, "w"))) abort();
  fclose(other);
}

static int named(const char *part) {
  Dl_info me;
  return dladdr((void *)named, &me) && strstr(strrchr(me.dli_fname, '/'), part);
}

static void say(uint32_t level, const char *text) {
  if (host->log) host->log(host->ctx, level, (const uint8_t *)text, strlen(text));
}

static int is(const pxg_config_in *in, const char *text) {
  return in->bytes.len == strlen(text) && !memcmp(in->bytes.ptr, text, in->bytes.len);
}

static int32_t refuse(pxg_config_out *out, int32_t status, const char *text) {
  out->error = (pxg_str){(const uint8_t *)text, (uint32_t)strlen(text), 0};
  return status;
}

/* Metrics by `define`, told to the log as "status id". */
static void define(const pxg_config_in *in) {
  static const pxg_str hits = S("hits"), bad = S("1bad"), sizes = S("sizes"), level = S("level");
  static const pxg_field two[] = {{S("b"), S("2\"\n\xff")}, {S("a"), S("1")}},
                         swapped[] = {{S("a"), S("1")}, {S("b"), S("2\"\n\xff")}};
  static const pxg_field twice[] = {{S("a"), S("1")}, {S("a"), S("2")}}, other[] = {{S("c"), S("1")}};
  struct {
    uint32_t kind;
    const pxg_str *name;
    const pxg_field *labels;
    uint64_t n;
  } const all[] = {{PXG_METRIC_COUNTER, &hits, two, 2},
                   {PXG_METRIC_COUNTER, &hits, swapped, 2},
                   {PXG_METRIC_GAUGE, &hits, two, 2},
                   {PXG_METRIC_COUNTER, &hits, other, 1},
                   {PXG_METRIC_COUNTER, &level, twice, 2},
                   {PXG_METRIC_COUNTER, &bad, NULL, 0},
                   {9, &hits, NULL, 0},
                   {PXG_METRIC_HISTOGRAM, &sizes, NULL, 0},
                   {PXG_METRIC_GAUGE, &level, NULL, 0}};
  uint32_t ids[9] = {0};
  char line[128];
  int32_t status[9];
  for (int i = 0; i < 9; i++) {
    status[i] = metrics->define(host->ctx, all[i].kind, all[i].name, all[i].labels, all[i].n, &ids[i]);
    snprintf(line, sizeof line, "define %d: %d %s", i, status[i],
             ids[i] == ids[0] ? "same"
             : ids[i]         ? "other"
                              : "none");
    say(PXG_LOG_INFO, line);
  }
  snprintf(line, sizeof line, "record: %d %d %d %d %d %d", metrics->record(host->ctx, ids[0], 5),
           metrics->record(host->ctx, ids[0], -1), metrics->record(host->ctx, ids[7], 1000),
           metrics->record(host->ctx, ids[7], 1001), metrics->record(host->ctx, ids[8], -7),
           metrics->record(host->ctx, 1000000, 1));
  say(PXG_LOG_INFO, line);
  if (in->bytes.len > 7) {
    uint32_t id;
    int n = 0;
    for (char name[] = "x_00000"; n < 100000; n++) {
      snprintf(name, sizeof name, "x_%05d", n);
      pxg_str s = {(const uint8_t *)name, 7, 0};
      if (metrics->define(host->ctx, PXG_METRIC_COUNTER, &s, NULL, 0, &id) != PXG_OK) break;
    }
    say(PXG_LOG_INFO, n < 100000 ? "full" : "never full");
  }
}

static int32_t config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  static const pxg_attr_want unknown = {S("no.such"), PXG_PHASE_BIT(1), PXG_ATTR_REQUIRED, 0};
  static const pxg_attr_want bits = {S("request.id"), PXG_PHASE_BIT(1), 0x40, 0};
  static const pxg_projection capital = {S("Host"), PXG_PHASE_BIT(1)};
  (void)ctx;
  if (in->filter.len != 5 || memcmp(in->filter.ptr, "first", 5)) return PXG_E_NOTFOUND;
  out->config = ++last;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY);
  out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
  if (is(in, "refuse")) return refuse(out, PXG_E_ARG, "the key \x01 is missing");
  if (is(in, "refuse-by-log")) return say(PXG_LOG_ERROR, "said before"), PXG_E_INTERNAL;
  if (is(in, "unknown-status")) return -77;
  if (is(in, "zero")) out->config = 0;
  if (is(in, "taken")) out->config = 1;
  if (is(in, "size")) out->size = 8;
  if (is(in, "subscribe-bit")) out->subscribe |= 1ull << 40;
  if (is(in, "pend-bit")) out->pend_phases |= 1ull << 40;
  if (is(in, "flag-bit")) out->flags = 0x100;
  if (is(in, "flag-feature")) out->flags = PXG_CFG_SUBREQUESTS;
  if (is(in, "pend-outside")) out->pend_phases |= PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS);
  if (is(in, "pend-log"))
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_LOG), out->pend_phases |= PXG_PHASE_BIT(PXG_PHASE_LOG);
  if (is(in, "pend-feature")) out->subscribe |= 8, out->pend_phases |= 8;
  if (is(in, "l4")) out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_L4_OPEN);
  if (is(in, "mode")) out->body_mode[0] = 9;
  if (is(in, "mode-feature")) out->body_mode[0] = PXG_BODY_OBSERVE;
  if (is(in, "mode-phase")) out->body_mode[1] = PXG_BODY_STREAM;
  if (is(in, "attrs-null")) out->n_attrs = 3;
  if (is(in, "attrs-many")) out->n_attrs = 1u << 20, out->attrs = &bits;
  if (is(in, "attr-required")) out->n_attrs = 1, out->attrs = &unknown;
  if (is(in, "attr-bits")) out->n_attrs = 1, out->attrs = &bits;
  if (is(in, "projection")) out->n_projection = 1, out->projection = &capital;
  static const pxg_attr_want empty_name = {{(const uint8_t *)"", 0, 0}, PXG_PHASE_BIT(1), 0, 0};
  static const pxg_attr_want null_name = {{NULL, 5, 0}, PXG_PHASE_BIT(1), 0, 0};
  static const pxg_attr_want flagged = {{(const uint8_t *)"a", 1, 0x40}, PXG_PHASE_BIT(1), 0, 0};
  static const pxg_projection far = {S("host"), 1ull << 40};
  if (is(in, "attr-empty")) out->n_attrs = 1, out->attrs = &empty_name;
  if (is(in, "attr-null")) out->n_attrs = 1, out->attrs = &null_name;
  if (is(in, "attr-flags")) out->n_attrs = 1, out->attrs = &flagged;
  if (is(in, "projection-bits")) out->n_projection = 1, out->projection = &far;
  if (is(in, "attrs-leave"))
    out->n_attrs = 2, out->attrs = (pxg_attr_want *)(void *)(out->scratch + out->scratch_cap - sizeof *out->attrs);
  if (is(in, "leaves")) {
    pxg_attr_want *a = (pxg_attr_want *)(void *)out->scratch;
    memset(a, 0, sizeof *a);
    a->name = (pxg_str){out->scratch + out->scratch_cap - 4, 8, 0};
    out->attrs = a, out->n_attrs = 1;
  }
  if (is(in, "limits")) out->max_body[0] = 1ull << 40, out->pend_ns = 1ull << 60;
  if (is(in, "crash")) raise(SIGSEGV);
  if (is(in, "exit")) _exit(3);
  if (is(in, "hang"))
    for (;;) pause();
  if (is(in, "define") || is(in, "define-all")) define(in);
  if (is(in, "taken-over")) out->config = last = 1;
  if (in->bytes.len == 3 && !memcmp(in->bytes.ptr, "a\0b", 3)) out->max_body[0] = 3;
  if (is(in, "full")) { /* Everything a configuration may declare, in scratch. */
    uint8_t *more = host->scratch_more(host->ctx, 100000);
    int zeroed = more && !((uintptr_t)more % 16);
    for (int i = 0; zeroed && i < 100000; i++) zeroed = !more[i];
    if (!zeroed || host->scratch_more(host->ctx, 1ull << 40)) return refuse(out, PXG_E_INTERNAL, "scratch");
    pxg_attr_want *a = (pxg_attr_want *)(void *)out->scratch;
    memset(a, 0, 2 * sizeof *a);
    memcpy(more, "request.idmetadata.ns.key:pathx-y", 33);
    a[0].name = (pxg_str){more, 10, 0}, a[0].phases = 2, a[0].flags = PXG_ATTR_REQUIRED;
    a[1].name = (pxg_str){more + 10, 15, 0}, a[1].phases = 0x10;
    pxg_projection *p = (pxg_projection *)(void *)(out->scratch + 1024);
    p[0] = (pxg_projection){{more + 25, 5, 0}, 2};
    p[1] = (pxg_projection){{more + 30, 3, 0}, 4};
    out->attrs = a, out->n_attrs = 2, out->projection = p, out->n_projection = 2;
    out->body_mode[0] = PXG_BODY_STREAM, out->flags = PXG_CFG_DUPLEX, out->pend_ns = 7;
    return 5;
  }
  return PXG_OK;
}

static void config_drop(uint64_t ctx, uint64_t config) {
  (void)ctx;
  size_t n = strlen(dropped);
  snprintf(dropped + n, sizeof dropped - n, "%s%llu", n ? " " : "dropped ", (unsigned long long)config);
  say(PXG_LOG_INFO, dropped);
}

static void event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  (void)ctx, (void)ev;
  out->action = PXG_ACT_CONTINUE;
}

static void cancel(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)token, (void)worker;
}

static void end(uint64_t ctx, uint64_t config, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)config, (void)user, (void)stream, (void)worker;
}

int32_t pxg_guest_init_v1(const pxg_host *h, pxg_guest *out) {
  static const pxg_str filters[] = {S("first"), S("second")}, twice[] = {S("first"), S("first")}, empty[] = {S("")};
  sigset_t mask;
  host = h;
  if (named("crash-in-init")) raise(SIGSEGV);
  if (named("refuses")) return say(PXG_LOG_ERROR, "no \x02 license"), PXG_E_INTERNAL;
  if (named("other-major")) return PXG_E_VERSION;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  say(PXG_LOG_INFO, sigismember(&mask, SIGTERM) && sigismember(&mask, SIGCHLD) && !sigismember(&mask, SIGSEGV) &&
                            !sigismember(&mask, SIGURG) && !sigismember(&mask, SIGRTMAX)
                        ? "init: signals are blocked"
                        : "init: signals are open");
  out->major = named("wrong-major") ? 2 : PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->flags = named("guest-flag") ? 0x80 : PXG_GUEST_ABORTS;
  if (named("small-table")) out->size = 16;
  if (named("requires")) out->required[0] = 1ull << PXG_F_L4, out->required[3] = 1ull << 63;
  if (named("needs-metadata")) out->required[0] = 1ull << PXG_F_METADATA;
  if (!named("nameless")) out->name = (pxg_str)S("test guest");
  out->filters = named("duplicate") ? twice : named("empty-name") ? empty : filters;
  out->n_filters = named("empty-name") ? 1 : named("no-filter") ? 0 : 2;
  out->on_config_new = config_new;
  out->on_config_drop = config_drop;
  out->on_event = event;
  out->on_cancel = named("no-hook") ? NULL : cancel;
  out->on_stream_end = end;
  if (h->get_ext) metrics = h->get_ext(h->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1);
  return PXG_OK;
}
