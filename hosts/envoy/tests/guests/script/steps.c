/* Running a script. */
#include <stdio.h>
#include <string.h>

#include "script.h"

_Thread_local result r;

static pxg_op *op(pxg_result *out, uint16_t kind) {
  pxg_op *o = &r.ops[out->n_ops < MAX_OPS ? out->n_ops : MAX_OPS - 1];
  memset(o, 0, sizeof *o);
  o->kind = kind;
  out->ops = r.ops;
  if (out->n_ops < MAX_OPS) out->n_ops++;
  return o;
}

/* Text with `$N` replaced by the event's attribute N. */
static pxg_str value_of(pxg_str s, const pxg_event *ev) {
  uint64_t i;
  if (ev == NULL || s.len < 2 || s.ptr[0] != '$') return s;
  if (!pxgg_number(pxgg_str(s.ptr + 1, s.len - 1), MAX_ATTRS, &i)) return s;
  pxg_str a = pxgg_attr(ev, i);
  if (pxgg_is_absent(a) || a.len > sizeof r.values - r.used) return PXGG_LIT("(absent)");
  memcpy(r.values + r.used, a.ptr, a.len);
  pxg_str copy = pxgg_str(r.values + r.used, a.len);
  r.used += a.len;
  return copy;
}

const step *run(const script *s, const step *at, uint32_t phase, uint32_t flags, uint32_t nth, uint64_t len,
                const pxg_event *ev, pxg_result *out) {
  out->action = PXG_ACT_CONTINUE;
  memset(&r.reply, 0, sizeof r.reply);
  r.used = 0;
  r.pieces = 0;
  for (; at < s->steps + s->n_steps; at++) {
    if (at->phase != phase) continue;
    if (at->nth == UINT32_MAX ? !(flags & PXG_EV_BODY_END) : at->nth != 0 && at->nth != nth) continue;
    pxg_str rest = at->text, word = pxgg_next_word(&rest), what = word;
    uint32_t target = PXG_TARGET_HEADERS;
    if (PXGG_EQ(word, "tset") || PXGG_EQ(word, "tadd") || PXGG_EQ(word, "tdelete")) {
      target = PXG_TARGET_TRAILERS;
      word = pxgg_str(word.ptr + 1, word.len - 1);
    }
    if (PXGG_EQ(word, "set") || PXGG_EQ(word, "add") || PXGG_EQ(word, "delete")) {
      pxg_op *o = op(out, PXGG_EQ(word, "set")   ? PXG_OP_HEADER_SET
                          : PXGG_EQ(word, "add") ? PXG_OP_HEADER_ADD
                                                 : PXG_OP_HEADER_DELETE);
      o->target = target;
      o->key = pxgg_next_word(&rest);
      if (!PXGG_EQ(word, "delete")) o->val = pxgg_borrowed(value_of(rest, ev));
    } else if (PXGG_EQ(what, "set_at") || PXGG_EQ(what, "delete_at")) {
      pxg_op *o = op(out, PXGG_EQ(what, "set_at") ? PXG_OP_SET_AT : PXG_OP_DELETE_AT);
      o->u0 = number(pxgg_next_word(&rest));
      if (PXGG_EQ(what, "set_at")) o->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "pass") || PXGG_EQ(what, "drop")) {
      pxg_op *o = op(out, PXGG_EQ(what, "pass") ? PXG_OP_PASS : PXG_OP_DROP);
      o->u0 = PXGG_EQ(rest, "all") ? len : number(rest);
    } else if (PXGG_EQ(what, "inject")) {
      op(out, PXG_OP_INJECT)->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "owned")) {
      pxg_op *o = op(out, PXG_OP_HEADER_SET);
      o->key = pxgg_next_word(&rest);
      o->val = owned(rest);
    } else if (PXGG_EQ(what, "owned_inject")) {
      op(out, PXG_OP_INJECT)->val = owned(rest);
    } else if (PXGG_EQ(what, "count")) {
      record_line("count", s, ",\"released\":%llu,\"given\":%llu,\"batches\":%llu",
                  (unsigned long long)owned_released(), (unsigned long long)owned_given(),
                  (unsigned long long)batches_ended());
    } else if (PXGG_EQ(what, "meta")) {
      pxg_op *o = op(out, PXG_OP_METADATA_SET);
      o->key = pxgg_next_word(&rest);
      o->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "metric")) {
      pxg_op *o = op(out, PXG_OP_METRIC);
      o->target = s->config->counter;
      o->u0 = number(rest);
    } else if (PXGG_EQ(what, "cluster") || PXGG_EQ(what, "recompute")) {
      pxg_op *o = op(out, PXG_OP_ROUTE);
      o->key = what;
      if (PXGG_EQ(what, "cluster")) o->val = pxgg_borrowed(rest);
    } else if (PXGG_EQ(what, "mode")) {
      uint32_t d = direction(pxgg_next_word(&rest));
      out->body_mode[d] = body_mode(rest);
    } else if (PXGG_EQ(what, "resizes")) {
      out->flags |= PXG_RES_RESIZES;
    } else if (PXGG_EQ(what, "more")) {
      if (flags & PXG_EV_BODY_END) continue;
      out->more_bytes = number(rest);
      out->action = PXG_ACT_MORE;
    } else if (PXGG_EQ(what, "rset") || PXGG_EQ(what, "rtrailer")) {
      int trailer = PXGG_EQ(what, "rtrailer");
      pxg_field *f = trailer ? &r.rtrailers[r.reply.n_trailers++] : &r.rfields[r.reply.n_fields++];
      f->name = pxgg_next_word(&rest);
      f->value = rest;
    } else if (PXGG_EQ(what, "grpc")) {
      r.reply.flags |= PXG_REPLY_GRPC;
      r.reply.grpc_status = (int32_t)number(rest);
    } else if (PXGG_EQ(what, "reply") || PXGG_EQ(what, "stream")) {
      r.reply.size = sizeof r.reply;
      r.reply.status = (uint32_t)number(pxgg_next_word(&rest));
      r.reply.fields = r.rfields;
      r.reply.trailers = r.rtrailers;
      r.reply.details = PXGG_LIT("script: a reply");
      if (PXGG_EQ(what, "reply") && rest.len) {
        r.rbody = pxgg_borrowed(rest);
        r.reply.body = &r.rbody;
        r.reply.n_body = 1;
      } else if (PXGG_EQ(what, "stream")) {
        r.reply.flags |= PXG_REPLY_OPEN;
        r.pieces = number(pxgg_next_word(&rest));
        r.piece_size = number(rest);
      }
      out->reply = &r.reply;
      out->action = PXG_ACT_REPLY;
    } else if (PXGG_EQ(what, "reset")) {
      out->action = PXG_ACT_RESET;
    } else if (PXGG_EQ(what, "error")) {
      out->error = rest;
      out->action = PXG_ACT_ERROR;
    } else if (PXGG_EQ(what, "unset")) {
      out->action = PXG_ACT_UNSET;
    } else if (PXGG_EQ(what, "garbage")) {
      garbage(op(out, PXG_OP_HEADER_SET), out, number(rest));
    } else if (PXGG_EQ(what, "exhaust")) {
      uint64_t got = 0;
      while (host->scratch_more(host->ctx, 4096) != NULL) got += 4096;
      int n = snprintf(r.values, sizeof r.values, "%llu", (unsigned long long)got);
      pxg_op *o = op(out, PXG_OP_HEADER_SET);
      o->key = PXGG_LIT("x-scratch");
      o->val = pxgg_borrowed(pxgg_str(r.values, (size_t)n));
    } else if (PXGG_EQ(what, "log")) {
      uint32_t level = (uint32_t)number(pxgg_next_word(&rest));
      pxgg_log(host, level, rest);
    } else if (PXGG_EQ(what, "block")) {
      sleep_ms((long)number(rest));
    } else if (PXGG_EQ(what, "wake")) {
      if (ev) record_status("wake", s, phase, host->wake(host->ctx, ev->stream, number(rest)));
    } else if (PXGG_EQ(what, "release")) {
      release_all(rest);
    } else if (PXGG_EQ(what, "pend")) {
      return at;
    } else {
      out->error = at->text;
      out->action = PXG_ACT_ERROR;
    }
  }
  return NULL;
}
