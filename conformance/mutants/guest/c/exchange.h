/* What each filter answers to the events of an exchange or a connection. */

static void release(uint64_t p) {
#if defined(M_release_blocks)
  struct timespec wait = {0, 400 * 1000 * 1000};
  nanosleep(&wait, NULL);
#elif defined(M_release_calls)
  if (hosts[0].host->get_ext)
    (void)hosts[0].host->get_ext(hosts[0].host->ctx, (const uint8_t *)PXG_METRICS_V1_ID, sizeof PXG_METRICS_V1_ID - 1);
#endif
  free((void *)(uintptr_t)p);
}

typedef struct call {
  host_state *h;
  const pxg_event *ev;
  pxg_result *out;
  pxg_op *ops;
  uint64_t n, cap;
} call;

/* The next operation; NULL once the room is used up. */
static pxg_op *op(call *c, uint16_t kind) {
  pxg_op *o;
  if (c->n == c->cap) return NULL;
  o = &c->ops[c->n++];
  memset(o, 0, sizeof *o);
  o->kind = kind;
  return o;
}

static void set(call *c, uint16_t kind, uint32_t target, pxg_str key, pxg_str val) {
  pxg_op *o = op(c, kind);
  if (!o) return;
  o->target = target;
  o->key = key;
  o->val.bytes = val;
}

static void done(call *c, uint32_t action) {
  c->out->ops = c->n ? c->ops : NULL;
  c->out->n_ops = c->n;
  c->out->action = action;
}

static const pxg_str *find(const pxg_event *ev, pxg_str name, uint64_t *index) {
  uint64_t i;
  for (i = 0; i < ev->n_fields; i++) {
    if (eq(ev->fields[i].name, name)) {
      if (index) *index = i;
      return &ev->fields[i].value;
    }
  }
  return NULL;
}

static void reply(call *c) {
  pxg_reply *r = (pxg_reply *)(void *)c->out->scratch;
  pxg_field *f = (pxg_field *)(void *)(r + 1);
  pxg_buf *b = (pxg_buf *)(void *)(f + 1);
  memset(r, 0, sizeof *r + sizeof *f + sizeof *b);
  r->size = sizeof *r;
  r->status = 403;
  f->name = LIT("content-type");
  f->value = LIT("text/plain");
  r->fields = f;
  r->n_fields = 1;
  b->bytes = LIT("no\n");
  b->bytes.flags = PXG_BUF_STATIC;
  r->body = b;
  r->n_body = 1;
  r->details = LIT("c-guest");
#if defined(M_reply_size_8)
  r->size = 8;
#elif defined(M_zeroed_reply)
  memset(r, 0, sizeof *r);
#elif defined(M_status_101)
  r->status = 101;
#elif defined(M_absent_with_length)
  r->details.flags = PXG_STR_ABSENT;
#endif
  c->out->reply = r;
#if defined(M_reply_without_reply)
  c->out->reply = NULL;
#endif
  c->n = 0;
  done(c, PXG_ACT_REPLY);
}

static uint8_t borrowed[8] = "steady";

#if defined(M_reuses_borrowed)
static void *overwrite(void *unused) {
  struct timespec wait = {0, 2 * 1000 * 1000};
  (void)unused;
  batch();
  nanosleep(&wait, NULL);
  borrowed[0] = 'S';
  return NULL;
}
#endif

static void request_headers(call *c) {
  const pxg_event *ev = c->ev;
  pxg_op *o;
  uint64_t i = 0;
  const pxg_str *agent = find(ev, LIT("user-agent"), &i);
#if defined(M_reuses_borrowed)
  borrowed[0] = 's';
#endif
  if (find(ev, LIT("x-many-7"), NULL)) {
    reply(c);
    return;
  }
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-guest"), str(borrowed, 6));
  set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT("x-empty-value"), str(NULL, 0));
  set(c, PXG_OP_HEADER_DELETE, PXG_TARGET_HEADERS, LIT("cookie"), str(NULL, 0));
  if (agent && (o = op(c, PXG_OP_SET_AT))) {
    o->u0 = i;
    o->val.bytes = LIT("changed");
  }
  if ((o = op(c, PXG_OP_HEADER_ADD))) {
    char *own = (char *)malloc(6);
    memcpy(own, "owned", 6);
    o->key = LIT("x-owned");
    o->val.bytes = str(own, 5);
    o->val.bytes.flags = PXG_BUF_OWNED;
    o->val.release = release;
    o->val.ctx = (uint64_t)(uintptr_t)own;
  }
  if ((o = op(c, PXG_OP_METADATA_SET))) {
    o->key = LIT("seen");
    o->val.bytes = LIT("yes");
  }
  if (c->h->metric && (o = op(c, PXG_OP_METRIC))) {
    o->target = c->h->metric;
    o->u0 = 1;
  }
  /* A copy of the path in scratch that was asked for. */
  {
    const pxg_str *path = find(ev, LIT(":path"), NULL);
    uint32_t n = path && path->len < 200 ? path->len : 0;
    uint32_t k;
    uint8_t *more = c->h->host->scratch_more(c->h->host->ctx, 6000);
#if defined(M_trusts_scratch_more)
    more[0] = 0;
#endif
    if (more && n) {
      memcpy(more, path->ptr, n);
      for (k = 0; k < n; k++) {
        if (more[k] <= 0x20 || more[k] >= 0x7f) more[k] = '?';
      }
      set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT("x-path"), str(more, n));
    }
  }
#if defined(M_zeroed_operation)
  op(c, 0);
#elif defined(M_absent_value)
  if ((o = op(c, PXG_OP_HEADER_SET))) o->key = LIT("x-gone"), o->val.bytes.flags = PXG_STR_ABSENT;
#elif defined(M_index_of_nothing)
  if ((o = op(c, PXG_OP_SET_AT))) o->u0 = ev->n_fields, o->val.bytes = LIT("x");
#elif defined(M_adds_pseudo_header)
  set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT(":path"), LIT("/second"));
#elif defined(M_sets_content_length)
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("content-length"), LIT("0"));
#elif defined(M_upper_case_name)
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("X-Upper"), LIT("1"));
#elif defined(M_unused_member)
  if ((o = op(c, PXG_OP_HEADER_DELETE))) o->key = LIT("x-none"), o->val.bytes = LIT("left");
#elif defined(M_pass_at_headers)
  if ((o = op(c, PXG_OP_PASS))) o->u0 = 1;
#elif defined(M_value_leaves_scratch)
  c->out->scratch[c->out->scratch_cap - 1] = 'v';
  set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-long"), str(c->out->scratch + c->out->scratch_cap - 1, 2));
#endif
  done(c, PXG_ACT_CONTINUE);
#if defined(M_forty_operations)
  for (i = c->n; i < 40; i++) c->ops[i] = c->ops[0];
  c->out->n_ops = 40;
#elif defined(M_null_operations)
  c->out->ops = NULL;
  c->out->n_ops = 1;
#elif defined(M_overruns_scratch)
  c->out->scratch[c->out->scratch_cap] = 0;
#endif
#if defined(M_reuses_borrowed)
  {
    pthread_t t;
    pthread_create(&t, NULL, overwrite, NULL);
    pthread_detach(t);
  }
#endif
}

static uint64_t view_len(const pxg_event *ev) {
  uint64_t i, n = 0;
  for (i = 0; i < ev->n_chunks; i++) n += ev->chunks[i].len;
  return n;
}

/* Puts the body between brackets: needs RESIZES, or WHOLE, to change the length. */
static void body(call *c, const config *conf) {
  const pxg_event *ev = c->ev;
  uint64_t n = view_len(ev);
  int free_length = conf->kind == WHOLE ? (ev->flags & PXG_EV_WHOLE_BODY) != 0 : 0;
  pxg_op *o;
#if defined(M_sixteen_chunks)
  if (ev->n_chunks > 16) {
    c->out->error = LIT("too many chunks");
    c->out->action = PXG_ACT_ERROR;
    return;
  }
#elif defined(M_passes_while_held)
  if (conf->kind == BODIES && conf->may_hold && ev->flags & PXG_EV_HEADERS_HELD && n &&
      !(ev->flags & (PXG_EV_BODY_END | PXG_EV_OVER_LIMIT))) {
    if ((o = op(c, PXG_OP_PASS))) o->u0 = 1;
    done(c, PXG_ACT_MORE);
    return;
  }
#elif defined(M_more_at_end)
  if (conf->kind == BODIES && ev->flags & PXG_EV_BODY_END && !(ev->flags & PXG_EV_OVER_LIMIT)) {
    done(c, PXG_ACT_MORE);
    return;
  }
#elif defined(M_passes_too_much)
  if ((o = op(c, PXG_OP_PASS))) o->u0 = n + 1;
  done(c, PXG_ACT_CONTINUE);
  return;
#endif
#if defined(M_one_length)
  if (conf->kind == BODIES) {
    config *own = (config *)(uintptr_t)conf;
    uint64_t passes = own->length ? own->length : n;
    own->length = ev->flags & PXG_EV_BODY_END ? 0 : n;
    if (passes && (o = op(c, PXG_OP_PASS))) o->u0 = passes;
    done(c, PXG_ACT_CONTINUE);
    return;
  }
#endif
  if (conf->kind == BODIES && n < 16 && !(ev->flags & (PXG_EV_BODY_END | PXG_EV_OVER_LIMIT))) {
    c->out->more_bytes = 8;
    done(c, PXG_ACT_MORE);
    return;
  }
  if (free_length) {
    if ((o = op(c, PXG_OP_INJECT))) o->val.bytes = LIT("[");
    if (n && (o = op(c, PXG_OP_PASS))) o->u0 = n;
    if ((o = op(c, PXG_OP_INJECT))) o->val.bytes = LIT("]");
  }
  done(c, PXG_ACT_CONTINUE);
}

/* A connection: the first byte of each event is dropped, the next event's first two are let through unseen. */
static void tunnel(call *c) {
  const pxg_event *ev = c->ev;
  uint64_t n = view_len(ev);
  pxg_op *o;
#if defined(M_l4_header)
  if (ev->phase == PXG_PHASE_L4_OPEN) set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-l4"), LIT("1"));
#elif defined(M_l4_replies)
  if (ev->phase == PXG_PHASE_L4_OPEN) {
    reply(c);
    return;
  }
#elif defined(M_l4_close_resets)
  if (ev->phase == PXG_PHASE_L4_CLOSE) {
    done(c, PXG_ACT_RESET);
    return;
  }
#endif
  if (n > 1 && !(ev->flags & PXG_EV_END_STREAM)) {
    if ((o = op(c, PXG_OP_DROP))) o->u0 = 1;
    if ((o = op(c, PXG_OP_PASS))) o->u0 = n + 1;
    if ((o = op(c, PXG_OP_INJECT))) {
      o->target = ev->phase == PXG_PHASE_L4_DOWNSTREAM ? PXG_TARGET_CLIENT : PXG_TARGET_UPSTREAM;
      o->val.bytes = LIT("+");
    }
  }
  done(c, PXG_ACT_CONTINUE);
}

static void event(call *c, const config *conf) {
  const pxg_event *ev = c->ev;
  if (conf->kind == TUNNEL) {
    tunnel(c);
    return;
  }
#if defined(M_waits_for_parked_peer)
  if (conf->kind == DUPLEX && ev->phase == PXG_PHASE_REQUEST_BODY) {
    ((config *)(uintptr_t)conf)->length = ev->token;
    done(c, PXG_ACT_PENDING);
    return;
  }
  if (conf->kind == DUPLEX && ev->phase == PXG_PHASE_RESPONSE_HEADERS && conf->length) {
    pxg_event request = *ev;
    request.token = conf->length;
    ((config *)(uintptr_t)conf)->length = 0;
    push(c->h, &request);
  }
#endif
  if (conf->kind == DUPLEX && (ev->phase == PXG_PHASE_REQUEST_BODY || ev->phase == PXG_PHASE_RESPONSE_HEADERS)) {
    push(c->h, ev);
    done(c, PXG_ACT_PENDING);
    return;
  }
  switch (ev->phase) {
  case PXG_PHASE_REQUEST_HEADERS:
    say(c->h, "request");
    if (conf->kind == ASYNC) {
      c->out->user = ev->stream;
#if defined(M_completes_and_continues)
      {
        pxg_result r;
        memset(&r, 0, sizeof r);
        r.size = sizeof r;
        r.action = PXG_ACT_CONTINUE;
        c->h->host->complete(c->h->host->ctx, ev->token, &r);
        done(c, PXG_ACT_CONTINUE);
      }
      return;
#elif !defined(M_forgets_token)
      push(c->h, ev);
#endif
#if defined(M_pending_with_operation)
      set(c, PXG_OP_HEADER_SET, PXG_TARGET_HEADERS, LIT("x-pending"), LIT("1"));
#endif
      done(c, PXG_ACT_PENDING);
      return;
    }
#if defined(M_holds_without_feature) || defined(M_passes_while_held)
#if defined(M_passes_while_held)
    if (conf->may_hold)
#endif
      if (conf->kind == BODIES && !(ev->flags & PXG_EV_END_STREAM)) {
        done(c, PXG_ACT_MORE);
        return;
      }
#endif
    request_headers(c);
    return;
  case PXG_PHASE_RESPONSE_HEADERS:
#if defined(M_pends_undeclared)
    c->out->action = PXG_ACT_PENDING;
    return;
#endif
    set(c, PXG_OP_HEADER_ADD, PXG_TARGET_HEADERS, LIT("x-response"), LIT("1"));
    done(c, PXG_ACT_CONTINUE);
    return;
  case PXG_PHASE_REQUEST_BODY:
  case PXG_PHASE_RESPONSE_BODY: body(c, conf); return;
  case PXG_PHASE_REQUEST_TRAILERS:
  case PXG_PHASE_RESPONSE_TRAILERS:
    set(c, PXG_OP_HEADER_ADD, PXG_TARGET_TRAILERS, LIT("x-trailer"), LIT("1"));
    done(c, PXG_ACT_CONTINUE);
    return;
  case PXG_PHASE_LOG:
#if defined(M_log_resets)
    done(c, PXG_ACT_RESET);
    return;
#endif
  default: done(c, PXG_ACT_CONTINUE);
  }
}
