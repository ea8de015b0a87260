/* Results that no guest may return. */
#include "script.h"

void garbage(pxg_op *o, pxg_result *out, uint64_t which) {
  static const pxg_field nothing = {{NULL, 7, 0}, {NULL, 7, 0}};
  o->key = PXGG_LIT("x-garbage");
  o->val = pxgg_borrowed(PXGG_LIT("1"));
  switch (which) {
  case 0: o->kind = 99, o->flags = PXG_OPF_MUST; break;
  case 1: o->key = pxgg_str(NULL, 0), o->key.len = 12; break;
  case 2: out->n_ops = UINT64_MAX; break;
  case 3: o->key = PXGG_LIT("bad name\r\n"); break;
  case 4: o->val = pxgg_borrowed(PXGG_LIT("a\r\nx-smuggled: 1")); break;
  case 5: o->kind = PXG_OP_PASS, o->u0 = UINT64_MAX, o->key = pxgg_str(NULL, 0), o->val = pxgg_borrowed(o->key); break;
  case 6: o->kind = PXG_OP_SET_AT, o->u0 = 4096, o->key = pxgg_str(NULL, 0); break;
  case 7: out->action = PXG_ACT_REPLY; break; /* and no reply */
  case 8:
    r.reply.size = sizeof r.reply, r.reply.status = 99999, out->reply = &r.reply, out->action = PXG_ACT_REPLY;
    break;
  case 9: out->action = 4711; break;
  case 10:
    r.reply.size = sizeof r.reply, r.reply.status = 200, r.reply.fields = &nothing, r.reply.n_fields = 1;
    out->reply = &r.reply, out->action = PXG_ACT_REPLY;
    break;
  case 11: out->size = 8; break;
  default: out->reserved0 = 1; break;
  }
}
