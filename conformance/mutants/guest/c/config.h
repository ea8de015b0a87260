/* Configurations. */

enum kind { HEADERS, BODIES, WHOLE, ASYNC, DUPLEX, TUNNEL, KINDS };

typedef struct config {
  enum kind kind;
  int may_hold;
  uint64_t length; /* only for those that are wrong */
  uint32_t len;
  uint8_t text[];
} config;

static pxg_str filters[KINDS];
static char names[KINDS][8] = {"headers", "bodies", "whole", "async", "duplex", "tunnel"};

static void start_worker(void);
static void forget_jobs(void) __attribute__((unused));

static void *idle(void *unused) {
  (void)unused;
  pause();
  return NULL;
}

#if defined(M_keeps_table)
static pxg_guest *kept_table;
#endif

static int has(const uint64_t *features, unsigned n) { return features[n / 64] >> (n % 64) & 1; }

static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  int kind;
  config *c;
  (void)ctx;
  for (kind = 0; kind < KINDS; kind++) {
    if (eq(in->filter, filters[kind])) break;
  }
#if defined(M_any_filter)
  if (kind == KINDS) kind = 0;
#endif
  if (kind == KINDS) {
    out->error = LIT("no such filter");
    return PXG_E_NOTFOUND;
  }
#if defined(M_keeps_table)
  if (kept_table->major != PXG_VERSION_MAJOR) out->flags = 0;
#endif
  /* Without what a filter needs it refuses, and says so. */
  if ((kind == BODIES &&
       !(has(in->features, PXG_F_BODY_STREAM_REQUEST) && has(in->features, PXG_F_BODY_STREAM_RESPONSE))) ||
      (kind == WHOLE &&
       !(has(in->features, PXG_F_BODY_WHOLE_REQUEST) && has(in->features, PXG_F_BODY_WHOLE_RESPONSE))) ||
      (kind == ASYNC && !has(in->features, PXG_F_PEND_REQUEST_HEADERS)) ||
      (kind == DUPLEX &&
       !(has(in->features, PXG_F_PEND_REQUEST_BODY) && has(in->features, PXG_F_PEND_RESPONSE_HEADERS) &&
         has(in->features, PXG_F_BODY_STREAM_REQUEST))) ||
      (kind == TUNNEL && !has(in->features, PXG_F_L4))) {
    out->error = LIT("the host lacks a feature that this filter needs");
    return PXG_E_UNSUPPORTED;
  }
  if (in->flags & PXG_CFG_IN_VALIDATE_ONLY) {
#if defined(M_validates_with_thread)
    pthread_t t;
    pthread_create(&t, NULL, idle, NULL);
#elif defined(M_validates_with_socket)
    (void)socket(AF_INET, SOCK_STREAM, 0);
#endif
  } else if (kind == ASYNC || kind == DUPLEX) {
    start_worker();
#if defined(M_reload_forgets)
    forget_jobs();
#endif
  }
#if defined(M_forks)
  if (fork() == 0) {
    pause();
    _exit(0);
  }
#endif
  c = (config *)calloc(1, sizeof *c + in->bytes.len);
  if (!c) return PXG_E_INTERNAL;
  c->kind = (enum kind)kind;
  c->may_hold = has(in->features, PXG_F_HOLD_REQUEST) && has(in->features, PXG_F_PARTIAL_RELEASE);
  c->len = in->bytes.len;
  if (in->bytes.len) memcpy(c->text, in->bytes.ptr, in->bytes.len);
  out->config = (uint64_t)(uintptr_t)c;
  out->subscribe = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS) |
                   PXG_PHASE_BIT(PXG_PHASE_REQUEST_TRAILERS) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_TRAILERS) |
                   PXG_PHASE_BIT(PXG_PHASE_LOG);
  if (kind == BODIES || kind == WHOLE) {
    uint32_t mode = kind == WHOLE ? PXG_BODY_WHOLE : PXG_BODY_STREAM;
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_BODY);
    out->body_mode[0] = out->body_mode[1] = mode;
    if (has(in->features, PXG_F_RESIZE_REQUEST)) out->flags |= PXG_CFG_RESIZES_REQUEST;
    if (has(in->features, PXG_F_RESIZE_RESPONSE)) out->flags |= PXG_CFG_RESIZES_RESPONSE;
  }
  if (kind == DUPLEX) {
#if !defined(M_waits_for_parked_peer)
    out->flags |= PXG_CFG_DUPLEX;
#endif
    out->subscribe |= PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY);
    out->body_mode[0] = PXG_BODY_STREAM;
    out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS);
  }
  if (kind == TUNNEL) {
    out->subscribe = PXG_PHASE_BIT(PXG_PHASE_L4_OPEN) | PXG_PHASE_BIT(PXG_PHASE_L4_DOWNSTREAM) |
                     PXG_PHASE_BIT(PXG_PHASE_L4_UPSTREAM) | PXG_PHASE_BIT(PXG_PHASE_L4_CLOSE);
  }
  if (kind == ASYNC) {
    out->pend_phases = PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS);
#if defined(M_pends_in_log)
    out->pend_phases |= PXG_PHASE_BIT(PXG_PHASE_LOG);
#endif
  }
#if defined(M_undefined_config_flag)
  out->flags |= 0x1000;
#elif defined(M_one_configuration)
  {
    static config *one[KINDS];
    if (one[kind])
      free(c);
    else
      one[kind] = c;
    out->config = (uint64_t)(uintptr_t)one[kind];
  }
#elif defined(M_zero_configuration)
  free(c);
  out->config = 0;
#endif
  return PXG_OK;
}

static void on_config_drop(uint64_t ctx, uint64_t value) {
  (void)ctx;
#if !defined(M_leaks_configuration) && !defined(M_one_configuration)
  free((void *)(uintptr_t)value);
#else
  (void)value;
#endif
}
