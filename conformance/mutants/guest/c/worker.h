/* The worker of `async` and `duplex`: what is PENDING, its completion, and its cancel. */

typedef struct job {
  struct job *next;
  host_state *host;
  uint64_t token, stream;
  const pxg_event *event; /* only for those that are wrong */
  const uint8_t *value;
} job;

static job *jobs;
static pthread_mutex_t jobs_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t jobs_come = PTHREAD_COND_INITIALIZER;

static void forget_jobs(void) {
  pthread_mutex_lock(&jobs_lock);
  jobs = NULL;
  pthread_mutex_unlock(&jobs_lock);
}

static void finish(job *j) {
  pxg_result r;
  pxg_op op;
  int32_t status;
#if defined(M_completes_at_first_host)
  j->host = &hosts[0];
#endif
  memset(&r, 0, sizeof r);
  memset(&op, 0, sizeof op);
  op.kind = PXG_OP_HEADER_SET;
  op.key = LIT("x-async");
  op.val.bytes = LIT("1");
  r.size = sizeof r;
  r.action = PXG_ACT_CONTINUE;
  r.ops = &op;
  r.n_ops = 1;
#if defined(M_result_size_0)
  r.size = 0;
#elif defined(M_completes_with_pending)
  r.action = PXG_ACT_PENDING;
  j->host->host->complete(j->host->host->ctx, j->token, &r);
  r.action = PXG_ACT_CONTINUE;
#elif defined(M_scratch_on_worker)
  j->host->host->scratch_more(j->host->host->ctx, 64);
#elif defined(M_reads_after_pending)
  {
    static volatile uint8_t sink;
    struct timespec wait = {0, 3 * 1000 * 1000};
    nanosleep(&wait, NULL);
    if (j->value) sink = *j->value;
  }
#endif
#if defined(M_retries_unknown_status)
  {
    int tries = 0;
    do status = j->host->host->complete(j->host->host->ctx, j->token, &r);
    while (status != PXG_OK && status != PXG_E_STALE && ++tries < 1000);
    if (status == PXG_E_STALE && tries) status = PXG_OK;
  }
#else
  status = j->host->host->complete(j->host->host->ctx, j->token, &r);
  if (status < 0 && status != PXG_E_STALE) {
    /* The host could not take it: an error ends the stream. Once. */
    r.action = PXG_ACT_ERROR;
    r.ops = NULL;
    r.n_ops = 0;
    r.error = LIT("the host did not take the completion");
    j->host->host->complete(j->host->host->ctx, j->token, &r);
  }
#endif
}

static void *work(void *unused) {
  (void)unused;
#if !defined(M_preempting_thread)
  batch();
#endif
  for (;;) {
    job *j;
    pthread_mutex_lock(&jobs_lock);
    while (!jobs) pthread_cond_wait(&jobs_come, &jobs_lock);
    j = jobs;
    jobs = j->next;
#if defined(M_cancel_waits)
    finish(j);
    pthread_mutex_unlock(&jobs_lock);
#else
    pthread_mutex_unlock(&jobs_lock);
    finish(j);
#endif
    free(j);
  }
  return NULL;
}

static void start_worker(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  static pthread_t t;
  struct starter {
    int unused;
  };
  static int started;
  (void)once;
  pthread_mutex_lock(&hosts_lock);
  if (!started) {
    started = 1;
    pthread_create(&t, NULL, work, NULL);
  }
  pthread_mutex_unlock(&hosts_lock);
}

static void push(host_state *h, const pxg_event *ev) {
  job *j = (job *)calloc(1, sizeof *j), **end;
  j->host = h;
  j->token = ev->token;
  j->stream = ev->stream;
  j->event = ev;
  j->value = ev->n_fields ? ev->fields[ev->n_fields - 1].value.ptr : NULL;
  pthread_mutex_lock(&jobs_lock);
  for (end = &jobs; *end; end = &(*end)->next) {
#if defined(M_one_token_per_stream)
    if ((*end)->stream == j->stream) {
      (*end)->token = j->token;
      pthread_mutex_unlock(&jobs_lock);
      free(j);
      return;
    }
#endif
  }
  *end = j;
  pthread_cond_signal(&jobs_come);
  pthread_mutex_unlock(&jobs_lock);
}

static void on_cancel(uint64_t ctx, uint64_t conf, uint64_t user, uint64_t stream, uint64_t token, uint32_t worker) {
  job **at, *found = NULL;
  (void)conf, (void)user, (void)stream, (void)worker, (void)ctx;
#if defined(M_scratch_in_cancel)
  state_of(ctx)->host->scratch_more(state_of(ctx)->host->ctx, 64);
#endif
  pthread_mutex_lock(&jobs_lock);
  for (at = &jobs; *at; at = &(*at)->next) {
    if ((*at)->token == token) {
      found = *at;
      *at = found->next;
      break;
    }
  }
  pthread_mutex_unlock(&jobs_lock);
  free(found);
}
