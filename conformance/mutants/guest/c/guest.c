/* The C guest of the self-test: it does a little of everything that version 1.0 has, by the book. Compiled as it is it
 * must be found clean; compiled with -DM_name it has one defect, which the rule beside it must find.
 *
 * clean c-guest: every phase, body mode STREAM with RESIZES, WHOLE, OWNED buffers, metrics, async completion, DUPLEX, L4
 *
 * mutant reply-size-8 PXG-ABI-002: a reply whose size is below that of version 1.0
 * mutant result-size-0 PXG-ABI-002 also PXG-ASY-001: hands complete a result without its size
 * mutant reads-past-event PXG-ABI-003: reads a member behind the event's size
 * mutant writes-past-result PXG-ABI-004: clears more than the result's size
 * mutant undefined-result-flag PXG-ABI-005: sets a bit of result.flags that does not exist
 * mutant reserved-member PXG-ABI-005: leaves something in reserved0
 * mutant refuses-longer-event PXG-ABI-005: answers ERROR to an event that is longer than it knows
 * mutant refuses-undefined-flags PXG-ABI-005: answers ERROR to an event flag that it does not know
 * mutant strlen-of-value PXG-ABI-008: takes a header's value for a C string
 * mutant follows-empty-string PXG-ABI-008: reads the first byte of an empty string
 * mutant reads-before-value PXG-ABI-008: looks at the byte before a value
 * mutant handle-is-pointer PXG-ABI-009: follows the stream's handle as if it were a pointer
 * mutant zeroed-operation PXG-ABI-011: counts one operation more than it filled
 * mutant zeroed-reply PXG-ABI-011: replies with a struct that it never filled
 * mutant null-operations PXG-ABI-012 also PXG-CFG-005: one operation at NULL
 * mutant absent-with-length PXG-ABI-012: an ABSENT string with a pointer and a length
 * mutant retries-unknown-status PXG-ABI-013: calls complete until it answers 0
 * mutant unset-action PXG-ACT-001: returns without an action
 * mutant unknown-action PXG-ACT-001: answers with the action 9
 * mutant more-at-end PXG-ACT-003: wants more of a body that has ended
 * mutant pends-undeclared PXG-ACT-006: answers PENDING in a phase that it did not declare
 * mutant pending-with-operation PXG-ACT-008: sends an operation with PENDING
 * mutant log-resets PXG-ACT-009: answers LOG with RESET
 * mutant l4-close-resets PXG-ACT-009: answers L4_CLOSE with RESET
 * mutant forgets-token PXG-ASY-001: never completes
 * mutant one-token-per-stream PXG-ASY-001: with both directions PENDING it remembers the later token only
 * mutant waits-for-parked-peer PXG-ASY-001: completes the request when the response comes, without DUPLEX
 * mutant reload-forgets PXG-ASY-001: a new configuration throws away what waits under the old one
 * mutant completes-and-continues PXG-ASY-005: completes its token and returns CONTINUE
 * mutant completes-with-pending PXG-ASY-010: completes with the action PENDING first
 * mutant cancel-waits PXG-ASY-014: on_cancel waits for its worker
 * mutant passes-too-much PXG-BODY-006: passes a byte more than the view has
 * mutant one-length PXG-BODY-006 also PXG-HDR-007: keeps one length for both directions
 * mutant sixteen-chunks PXG-BODY-008: has room for 16 chunks
 * mutant passes-while-held PXG-BODY-013: passes bytes while it holds the headers
 * mutant any-filter PXG-CFG-001: makes a configuration of a filter that it does not have
 * mutant validates-with-thread PXG-CFG-004: starts a thread under VALIDATE_ONLY
 * mutant validates-with-socket PXG-CFG-004: opens a socket under VALIDATE_ONLY
 * mutant leaks-configuration PXG-CFG-005: frees nothing in on_config_drop
 * mutant leaks-requests PXG-CFG-005: each request leaves a block behind
 * mutant one-configuration PXG-CFG-008: answers the same value for every configuration
 * mutant zero-configuration PXG-CFG-008: answers 0 for a configuration
 * mutant pends-in-log PXG-CFG-009: declares that LOG may pend
 * mutant undefined-config-flag PXG-CFG-009: sets a flag of config_out that does not exist
 * mutant extension-without-revision PXG-EXT-001: asks for an extension by its bare name
 * mutant extension-without-size PXG-EXT-002: offers a table that does not begin with its size
 * mutant extension-changes PXG-NEG-007: get_ext answers another table each time
 * mutant absent-value PXG-HDR-002: sets a field to ABSENT to say empty
 * mutant index-of-nothing PXG-HDR-004: replaces the field behind the last one
 * mutant adds-pseudo-header PXG-HDR-006: appends a second :path
 * mutant sets-content-length PXG-HDR-008: sets a field that the host owns
 * mutant upper-case-name PXG-HDR-010: sets X-Upper
 * mutant odd-entry-symbol PXG-LOAD-001: exports pxg_guest_init_v1_debug
 * mutant needs-the-host PXG-LOAD-002: calls a function of the host's executable
 * mutant new-table-each-time PXG-LOAD-006: init answers another ctx to the same host
 * mutant one-ctx-for-all PXG-LOAD-006: init answers the same ctx to two hosts
 * mutant completes-at-first-host PXG-LOAD-006 also PXG-ASY-001: completes all tokens at the host that came first
 * mutant no-cancel PXG-LOAD-010: has no on_cancel
 * mutant same-name-twice PXG-LOAD-010: two filters of one name
 * mutant renames-filter PXG-LOAD-012: changes a filter's name after init
 * mutant keeps-table PXG-LOAD-012: reads the host's copy of its table later
 * mutant exports-helper PXG-LOAD-013: exports a helper
 * mutant late-read PXG-MEM-002: a thread reads a header after the return
 * mutant late-system-call PXG-MEM-002 needs mem/late-system-call: a thread has write(2) read a header after the return
 * mutant late-write PXG-MEM-002 also PXG-MEM-009: a thread writes to a header after the return
 * mutant reads-after-pending PXG-MEM-002: its worker reads the event's headers while it is PENDING
 * mutant reuses-borrowed PXG-MEM-004: a thread writes to borrowed memory after the return
 * mutant release-blocks PXG-MEM-007: release sleeps
 * mutant release-calls PXG-MEM-007: release calls the host
 * mutant frees-view PXG-MEM-008: frees the array of fields
 * mutant resizes-scratch PXG-MEM-008: reallocates the scratch that it was lent
 * mutant writes-view PXG-MEM-009: makes a header's value lower case in place
 * mutant overruns-scratch PXG-MEM-010: writes one byte behind scratch
 * mutant forty-operations PXG-MEM-010 also PXG-MEM-012: writes 40 operations into room for 32
 * mutant trusts-scratch-more PXG-MEM-010: uses what scratch_more answered without a look
 * mutant value-leaves-scratch PXG-MEM-012: a value begins in scratch and ends behind it
 * mutant late-scratch PXG-MEM-013: a thread writes to scratch after the return
 * mutant unused-member PXG-MUT-006: leaves a value in HEADER_DELETE
 * mutant l4-header PXG-MUT-006: changes a header of a connection
 * mutant pass-at-headers PXG-MUT-006: PASS where there is no view
 * mutant any-major PXG-NEG-002: initialises with a host of any major
 * mutant holds-without-feature PXG-NEG-003: answers MORE at headers without looking for HOLD
 * mutant calls-null-log PXG-NEG-004: calls log without looking
 * mutant calls-null-get-ext PXG-NEG-004: calls get_ext without looking
 * mutant reads-null-page PXG-NEG-004: reads the page without looking
 * mutant logs-at-off PXG-OBS-002: logs each request whatever the level is
 * mutant status-101 PXG-RPL-001: replies 101
 * mutant reply-without-reply PXG-RPL-001: REPLY, and no reply
 * mutant l4-replies PXG-RPL-001: replies to a connection
 * mutant preempting-thread PXG-RT-004: starts its worker with the host's policy
 * mutant blocks-signal PXG-RT-006: blocks SIGUSR1 in the loop thread
 * mutant loads-with-batch PXG-RT-006: leaves SCHED_BATCH on the thread that loaded it
 * mutant ends-the-process PXG-RT-007: calls exit in an event
 * mutant closes-output PXG-RT-007: closes its standard output at load
 * mutant redirects-output PXG-RT-007: puts a file of its own at the host's standard error
 * mutant forks PXG-RT-008: starts a process in on_config_new
 * mutant forks-and-waits PXG-RT-008: runs a command at load and waits for it
 * mutant daemon PXG-RT-008: starts a process that leaves its group and its parent
 * mutant scratch-on-worker PXG-THR-001: its worker asks for scratch
 * mutant scratch-in-cancel PXG-THR-001: asks for scratch in on_cancel
 * mutant sleeps PXG-THR-002: sleeps 5 ms in on_event
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "proxy_golang.h"
#include "proxy_golang/ext/metrics.h"

/* In this order: each part uses those before it. */
#include "host.h"
#include "config.h"
#include "late.h"
#include "worker.h"
#include "exchange.h"

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  call c = {state_of(ctx), ev, out, out->scratch_ops, 0, out->scratch_ops_cap};
  const pxg_str *agent = find(ev, LIT("user-agent"), NULL);
  (void)agent;
#if defined(M_leaks_requests)
  if (ev->phase == PXG_PHASE_REQUEST_HEADERS) {
    static void *volatile lost;
    lost = malloc(40);
  }
#elif defined(M_reads_past_event)
  {
    static volatile uint8_t sink;
    sink = ((const volatile uint8_t *)ev)[ev->size];
  }
#elif defined(M_refuses_longer_event)
  if (ev->size != sizeof *ev) {
    out->error = LIT("the event has another size");
    out->action = PXG_ACT_ERROR;
    return;
  }
#elif defined(M_refuses_undefined_flags)
  if (ev->flags & ~0x1fffu) {
    out->error = LIT("unknown flags");
    out->action = PXG_ACT_ERROR;
    return;
  }
#elif defined(M_strlen_of_value)
  if (agent) {
    static volatile size_t sink;
    volatile const uint8_t *p = agent->ptr;
    while (*p) p++;
    sink = (size_t)(p - agent->ptr);
  }
#elif defined(M_follows_empty_string)
  {
    static volatile uint8_t sink;
    uint64_t i;
    for (i = 0; i < ev->n_fields; i++)
      if (ev->fields[i].value.len == 0 && ev->fields[i].value.ptr) sink = *ev->fields[i].value.ptr;
  }
#elif defined(M_reads_before_value)
  if (agent) {
    static volatile uint8_t sink;
    sink = agent->ptr[-1];
  }
#elif defined(M_handle_is_pointer)
  if (ev->stream < 0x10000) {
    static volatile uint8_t sink;
    sink = *(const volatile uint8_t *)(uintptr_t)ev->stream;
  }
#elif defined(M_late_read)
  if (agent) use_late(agent->ptr, LATE_READ);
#elif defined(M_late_write)
  if (agent) use_late(agent->ptr, LATE_WRITE);
#elif defined(M_late_system_call)
  if (agent) use_late(agent->ptr, LATE_SYSTEM_CALL);
#elif defined(M_late_scratch)
  use_late(out->scratch + 100, LATE_WRITE);
#elif defined(M_frees_view)
  if (agent) free((void *)(uintptr_t)ev->fields);
#elif defined(M_resizes_scratch)
  if (agent && realloc(out->scratch, 8192) == NULL) return;
#elif defined(M_writes_view)
  if (agent) {
    volatile uint8_t *p = (volatile uint8_t *)(uintptr_t)agent->ptr;
    p[0] = (uint8_t)tolower(p[0]);
  }
#elif defined(M_blocks_signal)
  {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &s, NULL);
  }
#elif defined(M_sleeps)
  {
    struct timespec wait = {0, 5 * 1000 * 1000};
    nanosleep(&wait, NULL);
  }
#elif defined(M_ends_the_process)
  exit(0);
#elif defined(M_redirects_output)
  {
    int file = open("/dev/null", O_WRONLY);
    dup2(file, 2);
    close(file);
  }
#elif defined(M_renames_filter)
  names[0][0] = 'H';
#elif defined(M_needs_the_host)
  extern void a_function_of_the_hosts_executable(void);
  a_function_of_the_hosts_executable();
#endif
#if defined(M_unset_action)
  return;
#endif
  event(&c, (const config *)(uintptr_t)ev->config);
#if defined(M_unknown_action)
  out->action = 9;
#elif defined(M_undefined_result_flag)
  if (out->action != PXG_ACT_PENDING) out->flags |= 0x10;
#elif defined(M_reserved_member)
  out->reserved0 = 7;
#elif defined(M_writes_past_result)
  memset((uint8_t *)out + out->size, 0, 8);
#endif
}

static void on_stream_end(uint64_t ctx, uint64_t conf, uint64_t user, uint64_t stream, uint32_t worker) {
  (void)ctx, (void)conf, (void)user, (void)stream, (void)worker;
}

static const void *get_ext(uint64_t ctx, const uint8_t *id, uint64_t len) {
  static const struct {
    uint32_t size, zero;
  } table = {
#if defined(M_extension_without_size)
    0,
#else
    8,
#endif
    0
  };
  (void)ctx;
#if defined(M_extension_changes)
  {
    static uint64_t many[64];
    static unsigned next;
    uint64_t *t = &many[__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % 64];
    *t = 8;
    if (len == 11 && !memcmp(id, "pxg.admin/1", 11)) return t;
  }
#endif
  return len == 11 && !memcmp(id, "pxg.admin/1", 11) ? &table : NULL;
}

#if defined(M_closes_output)
__attribute__((constructor)) static void at_load(void) { close(1); }
#elif defined(M_forks_and_waits)
__attribute__((constructor)) static void at_load(void) { (void)!system(":"); }
#elif defined(M_daemon)
__attribute__((constructor)) static void at_load(void) {
  if (fork() == 0) {
    setsid();
    if (fork() == 0) pause();
    _exit(0);
  }
}
#endif

#if defined(M_loads_with_batch)
__attribute__((constructor)) static void at_load(void) { batch(); }
#endif

#if defined(M_exports_helper)
__attribute__((visibility("default"))) int guest_helper(void) { return 1; }
#endif

#if defined(M_odd_entry_symbol)
__attribute__((visibility("default"))) int pxg_guest_init_v1_debug(void) { return 1; }
#endif

int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  host_state *h = NULL;
  size_t i;
#if !defined(M_any_major)
  if (host->major != PXG_VERSION_MAJOR) return PXG_E_VERSION;
#endif
  if (host->size < sizeof *host || out->size < sizeof *out) return PXG_E_ARG;
  pthread_mutex_lock(&hosts_lock);
  for (i = 0; i < sizeof hosts / sizeof *hosts; i++) {
#if defined(M_one_ctx_for_all)
    if (i == 0 && hosts[i].host) hosts[i].host = host;
#endif
#if !defined(M_new_table_each_time)
    if (hosts[i].host == host) h = &hosts[i];
#endif
    if (!h && !hosts[i].host) h = &hosts[i];
    if (h) break;
  }
  if (h) {
    static const pxg_str metric = {(const uint8_t *)"requests", 8, 0};
    h->host = host;
#if defined(M_extension_without_revision)
    if (host->get_ext) (void)host->get_ext(host->ctx, (const uint8_t *)"metrics", 7);
#endif
#if defined(M_calls_null_get_ext)
    h->metrics = (const pxg_metrics_v1 *)host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID,
                                                       sizeof PXG_METRICS_V1_ID - 1);
#else
    if (host->get_ext)
      h->metrics = (const pxg_metrics_v1 *)host->get_ext(host->ctx, (const uint8_t *)PXG_METRICS_V1_ID,
                                                         sizeof PXG_METRICS_V1_ID - 1);
#endif
    if (h->metrics && h->metrics->define(host->ctx, PXG_METRIC_COUNTER, &metric, NULL, 0, &h->metric) < 0)
      h->metric = 0;
#if defined(M_reads_null_page)
    if (host->page->log_level == PXG_LOG_TRACE) h->host = host;
#endif
  }
  pthread_mutex_unlock(&hosts_lock);
  if (!h) return PXG_E_STATE;
  for (i = 0; i < KINDS; i++) filters[i] = str(names[i], strlen(names[i]));
#if defined(M_same_name_twice)
  filters[3] = filters[2];
#endif
  out->size = sizeof *out;
  out->major = PXG_VERSION_MAJOR;
  out->minor = PXG_VERSION_MINOR;
  out->flags = PXG_GUEST_ABORTS;
  out->name = LIT("c-guest");
  out->version = LIT("1");
  out->ctx = (uint64_t)(uintptr_t)h;
  out->filters = filters;
  out->n_filters = KINDS;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
#if !defined(M_no_cancel)
  out->on_cancel = on_cancel;
#endif
  out->on_stream_end = on_stream_end;
  out->get_ext = get_ext;
#if defined(M_keeps_table)
  kept_table = out;
#endif
  return PXG_OK;
}
