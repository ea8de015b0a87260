/* Builds its result from the bytes of the event's body. Whatever they are, pointers lead into memory that exists, so
 * that only the host's own checks are put to the test: `memory` of the guest, and the scratch that it was lent. */
#include "guest.h"

static uint8_t memory[8192] __attribute__((aligned(16)));
static pxg_op ops[64];
static pxg_reply reply;
static pxg_field fields[32];
static pxg_buf bodies[32];
static atomic_int_fast64_t handed;

static const uint8_t *at, *end;

static uint64_t byte(void) { return at < end ? *at++ : 0; }

static void give_back(uint64_t ctx) {
  free((void *)(uintptr_t)ctx);
  atomic_fetch_sub(&handed, 1);
}

static uint64_t number(void) {
  static const uint64_t some[] = {0, 1, 2, 3, 31, 32, 33, 64, 4095, 4096, 65536, UINT32_MAX, 1ull << 40, UINT64_MAX};
  return some[byte() % (sizeof some / sizeof *some)];
}

static uint32_t flags(void) {
  static const uint32_t some[] = {0, 0, 0, 0, 1, 2, 4, 8, 0x10, 0x40, 0x80000000};
  return some[byte() % (sizeof some / sizeof *some)];
}

/* The host cannot know how much there is behind a pointer of the guest's own; in scratch it must. */
static pxg_str text(const pxg_result *out) {
  static const uint32_t lengths[] = {0, 1, 3, 17, 200, 4096, 8192, 1u << 20};
  static const char *const names[] = {"x-a", "x-b", ":path", "content-length", "", "A", "recompute", "/p"};
  pxg_str s = {0, 0, flags()};
  switch (byte() % 6) {
  case 0:
  case 1: {
    const char *n = names[byte() % 8];
    s.ptr = (const uint8_t *)n, s.len = (uint32_t)strlen(n);
    break;
  }
  case 2: s.ptr = NULL, s.len = (uint32_t)(byte() % 3); break;
  case 3:
    s.len = lengths[byte() % 5];
    s.ptr = memory + byte() * 8;
    break;
  case 4:
    s.len = lengths[byte() % 8];
    s.ptr = out->scratch + byte() * 16;
    break;
  default: s.len = lengths[byte() % 8]; s.ptr = (const uint8_t *)out->scratch_ops + byte() * 8;
  }
  return s;
}

static pxg_buf buffer(const pxg_result *out) {
  pxg_buf b = {text(out), NULL, 0};
  b.bytes.flags &= ~(uint32_t)PXG_BUF_OWNED;
  switch (byte() % 6) {
  case 0: {
    uint32_t n = (uint32_t)(byte() % 40);
    uint8_t *p = malloc(n + 1);
    memset(p, 'o', n + 1);
    b.bytes = (pxg_str){p, n, PXG_BUF_OWNED};
    b.release = give_back, b.ctx = (uint64_t)(uintptr_t)p;
    atomic_fetch_add(&handed, 1);
    break;
  }
  case 1: b.bytes.flags |= PXG_BUF_OWNED; break; /* and no release: nothing passes */
  case 2:
    b.bytes.flags = PXG_BUF_STATIC;
    b.bytes.ptr = memory, b.bytes.len = (uint32_t)(byte() * 8);
    break;
  default: break;
  }
  return b;
}

static pxg_field field(const pxg_result *out) {
  pxg_field f;
  f.name = text(out);
  f.value = text(out);
  return f;
}

static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  uint64_t n_ops, i;
  (void)ctx;
  out->action = PXG_ACT_CONTINUE;
  if (ev->phase == PXG_PHASE_WAKE) {
    out->user = (uint64_t)handed;
    return;
  }
  at = ev->n_chunks ? ev->chunks[0].ptr : NULL;
  end = at ? at + ev->chunks[0].len : NULL;
  memset(memory, 'm', sizeof memory);
  memset(ops, 0, sizeof ops);
  /* What an earlier call left there has passed to the host already. */
  memset(out->scratch_ops, 0, out->scratch_ops_cap * sizeof *ops);
  memset(fields, 0, sizeof fields);
  memset(bodies, 0, sizeof bodies);
  out->action = (uint32_t)(byte() % 9);
  out->flags = flags() & 3;
  if (byte() % 16 == 1) out->size = (uint32_t)number();
  if (byte() % 16 == 1) out->reserved0 = 1;
  out->unsubscribe = byte() % 4 ? 0 : number();
  out->body_mode[0] = (uint32_t)(byte() % 7);
  out->body_mode[1] = (uint32_t)(byte() % 7);
  out->more_bytes = number();
  out->pend_ns = number();
  out->error = text(out);
  n_ops = byte() % 8;
  for (i = 0; i < n_ops; i++) {
    pxg_op *op = &ops[i];
    static const uint16_t kinds[] = {1, 2, 3, 4, 5, 8, 9, 10, 11, 16, 17, 18, 0, 99};
    op->kind = kinds[byte() % 14];
    op->flags = byte() % 8 ? 0 : (uint16_t)flags();
    op->target = (uint32_t)(byte() % 5);
    op->u0 = number();
    if (byte() % 4) op->key = text(out);
    if (byte() % 4) op->val = buffer(out);
  }
  out->ops = ops, out->n_ops = n_ops;
  switch (byte() % 10) {
  case 0: /* in scratch */
    if (n_ops <= out->scratch_ops_cap) memcpy(out->scratch_ops, ops, n_ops * sizeof *ops);
    out->ops = out->scratch_ops;
    break;
  case 1: /* more than are there: the counts are the host's to check, none of these is OWNED */
    if (handed == 0) out->n_ops = byte() % 65;
    break;
  case 2:
    if (handed == 0) out->n_ops = number() | 64, out->ops = out->scratch_ops;
    break;
  case 3:
    if (handed == 0) out->ops = (const pxg_op *)((const char *)ops + 4);
    break;
  case 4:
    if (handed == 0) out->ops = NULL;
    break;
  default: break;
  }
  if (byte() % 3 == 1) {
    memset(&reply, 0, sizeof reply);
    reply.size = byte() % 8 ? (uint32_t)sizeof reply : (uint32_t)(byte() * 4);
    if (reply.size > sizeof reply) reply.size = sizeof reply; /* nothing is behind it */
    reply.status = (uint32_t)(number() & 1023);
    reply.flags = flags();
    reply.grpc_status = (int32_t)byte();
    reply.n_fields = byte() % 5;
    reply.n_trailers = byte() % 5;
    for (i = 0; i < 16; i++) fields[i] = i < reply.n_fields || i < reply.n_trailers ? field(out) : fields[i];
    reply.fields = fields;
    reply.trailers = fields;
    /* A body that `size` cuts off does not pass to the host. */
    if (reply.size == sizeof reply) {
      reply.n_body = byte() % 4;
      for (i = 0; i < reply.n_body; i++) bodies[i] = buffer(out);
      reply.body = bodies;
    }
    reply.details = text(out);
    out->reply = &reply;
  }
}

GUEST(config_new, on_event)
