/* SPDX-License-Identifier: Apache-2.0 */

/* What a configuration declares in pxg_config_out: judged (4.1) and copied (PXG-CFG-002). */

#include <stdlib.h>
#include <string.h>

#include "pxg_loading.h"

#define ELEMENTS_MAX 1024 /* Of `attrs` and of `projection`. */
#define METADATA "metadata."

#define CFG_FLAGS                                                                                                    \
  (PXG_CFG_DUPLEX | PXG_CFG_RESIZES_REQUEST | PXG_CFG_RESIZES_RESPONSE | PXG_CFG_WANT_PEER_FIELDS | PXG_CFG_ORPHAN | \
   PXG_CFG_SUBREQUESTS | PXG_CFG_UPGRADE_BODY)

typedef unsigned long long ull;

/* ---- Arrays that can be read ------------------------------------------------------------------------------------- */

static bool array_ok(const pxg_call *lent, const void *array, uint64_t n, size_t size, const char *what,
                     pxg_error *why) {
  if (n > ELEMENTS_MAX)
    return pxg_fail(why, PXG_E_LIMIT, "n_%s: found %llu, expected at most %u", what, (ull)n, ELEMENTS_MAX);
  if (n && !array)
    return pxg_fail(why, PXG_E_ARG, "%s: found NULL with n_%s %llu, expected an array [PXG-ABI-012]", what, what,
                    (ull)n);
  if (pxg_call_overruns(lent, array, n * size))
    return pxg_fail(why, PXG_E_ARG, "%s: found an array that leaves the lent scratch [PXG-MEM-012]", what);
  return true;
}

static bool readable(const pxg_config_out *o, const pxg_call *lent, pxg_error *why) {
  if (o->size < sizeof *o)
    return pxg_fail(why, PXG_E_ARG, "size: found %u, expected %zu [PXG-ABI-005]", o->size, sizeof *o);
  return array_ok(lent, o->attrs, o->n_attrs, sizeof *o->attrs, "attrs", why) &&
         array_ok(lent, o->projection, o->n_projection, sizeof *o->projection, "projection", why);
}

/* ---- Bits and features: UNSUPPORTED ------------------------------------------------------------------------------ */

static bool bits_ok(const char *what, uint64_t found, uint64_t allowed, pxg_error *why) {
  if (!(found & ~allowed)) return true;
  return pxg_fail(why, PXG_E_UNSUPPORTED, "%s: found 0x%llx, expected no bit but 0x%llx [PXG-CFG-009]", what,
                  (ull)found, (ull)allowed);
}

static bool feature_ok(const pxg_config *c, unsigned feature, const char *member, const char *value, pxg_error *why) {
  if (pxg_has(c->features, feature)) return true;
  return pxg_fail(why, PXG_E_UNSUPPORTED,
                  "%s: found %s, expected nothing that needs the feature %s, which is clear here "
                  "[PXG-CFG-009]",
                  member, value, pxg_feature_name(feature));
}

static bool flags_ok(const pxg_config *c, uint32_t flags, pxg_error *why) {
  static const struct {
    uint32_t bit;
    unsigned feature;
    const char *name;
  } needs[] = {{PXG_CFG_RESIZES_REQUEST, PXG_F_RESIZE_REQUEST, "RESIZES_REQUEST"},
               {PXG_CFG_RESIZES_RESPONSE, PXG_F_RESIZE_RESPONSE, "RESIZES_RESPONSE"},
               {PXG_CFG_ORPHAN, PXG_F_ORPHAN, "ORPHAN"},
               {PXG_CFG_SUBREQUESTS, PXG_F_SUBREQUESTS, "SUBREQUESTS"},
               {PXG_CFG_UPGRADE_BODY, PXG_F_UPGRADE_BODY, "UPGRADE_BODY"}};
  for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
    if ((flags & needs[i].bit) && !feature_ok(c, needs[i].feature, "flags", needs[i].name, why)) return false;
  return true;
}

/* The feature that a phase in pend_phases needs, or -1 where PENDING is never legal. */
static int pend_feature(uint32_t phase) {
  if (phase >= PXG_PHASE_REQUEST_HEADERS && phase <= PXG_PHASE_RESPONSE_TRAILERS)
    return PXG_F_PEND_REQUEST_HEADERS + (int)phase - PXG_PHASE_REQUEST_HEADERS;
  if (phase == PXG_PHASE_L4_OPEN) return PXG_F_PEND_L4_OPEN;
  return phase == PXG_PHASE_L4_DOWNSTREAM || phase == PXG_PHASE_L4_UPSTREAM ? PXG_F_PEND_L4_DATA : -1;
}

static bool supported(const pxg_config *c, const pxg_config_out *o, pxg_error *why) {
  static const char *const member[2] = {"body_mode[0]", "body_mode[1]"};
  static const char *const names[] = {"UNSET", "SKIP", "STREAM", "WHOLE", "OBSERVE"};
  static const unsigned modes[] = {0, 0, PXG_F_BODY_STREAM_REQUEST, PXG_F_BODY_WHOLE_REQUEST,
                                   PXG_F_BODY_OBSERVE_REQUEST};
  const uint64_t all = PXG_ALL_HTTP_PHASES | PXG_ALL_L4_PHASES;
  if (!bits_ok("subscribe", o->subscribe, all, why) || !bits_ok("pend_phases", o->pend_phases, all, why) ||
      !bits_ok("flags", o->flags, CFG_FLAGS, why))
    return false;
  for (int d = 0; d < 2; d++)
    if (o->body_mode[d] > PXG_BODY_OBSERVE)
      return pxg_fail(why, PXG_E_UNSUPPORTED, "%s: found %u, expected 0 to %u [PXG-CFG-009]", member[d],
                      o->body_mode[d], PXG_BODY_OBSERVE);
  if ((o->subscribe & PXG_ALL_L4_PHASES) && !feature_ok(c, PXG_F_L4, "subscribe", "an L4 phase", why)) return false;
  if (!flags_ok(c, o->flags, why)) return false;
  for (uint32_t p = 1; p < PXG_N_PHASES; p++) {
    int feature = o->pend_phases & PXG_PHASE_BIT(p) ? pend_feature(p) : -1;
    if (feature >= 0 && !feature_ok(c, (unsigned)feature, "pend_phases", pxg_phase_name(p), why)) return false;
  }
  for (unsigned d = 0; d < 2; d++)
    if (o->body_mode[d] > PXG_BODY_SKIP &&
        !feature_ok(c, modes[o->body_mode[d]] + d, member[d], names[o->body_mode[d]], why))
      return false;
  for (uint64_t i = 0; i < o->n_attrs; i++) {
    const pxg_attr_want *a = &o->attrs[i];
    if ((a->flags & ~PXG_ATTR_REQUIRED) || a->reserved0 || (a->phases & ~all))
      return pxg_fail(why, PXG_E_UNSUPPORTED,
                      "attrs[%llu]: found flags 0x%x, reserved0 %u and phases 0x%llx, expected no undefined bit "
                      "[PXG-CFG-009]",
                      (ull)i, a->flags, a->reserved0, (ull)a->phases);
  }
  for (uint64_t i = 0; i < o->n_projection; i++)
    if (o->projection[i].phases & ~all)
      return pxg_fail(why, PXG_E_UNSUPPORTED,
                      "projection[%llu]: found phases 0x%llx, expected no undefined bit [PXG-CFG-009]", (ull)i,
                      (ull)o->projection[i].phases);
  return true;
}

/* ---- Values: ARG, NOTFOUND --------------------------------------------------------------------------------------- */

static bool string_ok(const pxg_str *s, const pxg_call *lent, const char *what, uint64_t i, pxg_error *why) {
  if (s->flags & ~PXG_STR_SENSITIVE)
    return pxg_fail(why, PXG_E_ARG, "%s[%llu].name: found flags 0x%x, expected 0 [PXG-ABI-012]", what, (ull)i,
                    s->flags);
  if (!s->len || !s->ptr)
    return pxg_fail(why, PXG_E_ARG, "%s[%llu].name: found %s, expected a name [PXG-ABI-012]", what, (ull)i,
                    s->len ? "NULL with a length" : "an empty string");
  if (pxg_call_overruns(lent, s->ptr, s->len))
    return pxg_fail(why, PXG_E_ARG, "%s[%llu].name: found a string that leaves the lent scratch [PXG-MEM-012]", what,
                    (ull)i);
  return true;
}

/* A token of RFC 9110 without capitals, or one behind the colon of a pseudo-header. */
static bool field_name_ok(const pxg_str *s) {
  uint32_t from = s->ptr[0] == ':';
  for (uint32_t i = from; i < s->len; i++) {
    uint8_t b = s->ptr[i];
    bool token = (b >= 'a' && b <= 'z') || (b >= '0' && b <= '9') || (b && strchr("!#$%&'*+-.^_`|~", b));
    if (!token) return false;
  }
  return s->len > from;
}

static int32_t find_attribute(const pxg_config *c, const pxg_str *name) {
  const pxg_driver *d = pxg_host_driver();
  const char *text = (const char *)name->ptr;
  const size_t prefix = sizeof METADATA - 1;
  if (name->len > prefix && !memcmp(text, METADATA, prefix)) {
    const char *dot = memchr(text + prefix, '.', name->len - prefix);
    bool both = dot && dot != text + prefix && dot != text + name->len - 1;
    return both && pxg_has(d->features, PXG_F_METADATA) ? PXG_ATTR_METADATA : PXG_ATTR_NONE;
  }
  return d->attribute && !c->no_attributes ? d->attribute(d->data, text, name->len) : PXG_ATTR_NONE;
}

static bool values_ok(const pxg_config_out *o, const pxg_call *lent, pxg_error *why) {
  const uint64_t body[2] = {PXG_PHASE_BIT(PXG_PHASE_REQUEST_BODY), PXG_PHASE_BIT(PXG_PHASE_RESPONSE_BODY)};
  uint64_t never = 0;
  for (uint32_t p = 0; p < 64; p++)
    if (pend_feature(p) < 0) never |= PXG_PHASE_BIT(p);
  if (o->pend_phases & (~o->subscribe | never))
    return pxg_fail(why, PXG_E_ARG,
                    "pend_phases: found 0x%llx, expected phases of subscribe (0x%llx) without log, wake and l4_close "
                    "[PXG-CFG-009]",
                    (ull)o->pend_phases, (ull)o->subscribe);
  for (int d = 0; d < 2; d++)
    if (o->body_mode[d] > PXG_BODY_SKIP && !(o->subscribe & body[d]))
      return pxg_fail(why, PXG_E_ARG,
                      "body_mode[%d]: found %u, expected its body phase in subscribe (0x%llx) "
                      "[PXG-CFG-009]",
                      d, o->body_mode[d], (ull)o->subscribe);
  for (uint64_t i = 0; i < o->n_attrs; i++)
    if (!string_ok(&o->attrs[i].name, lent, "attrs", i, why)) return false;
  for (uint64_t i = 0; i < o->n_projection; i++) {
    const pxg_str *name = &o->projection[i].name;
    if (!string_ok(name, lent, "projection", i, why)) return false;
    if (field_name_ok(name)) continue;
    char clean[128];
    pxg_clean(clean, sizeof clean, name->ptr, name->len);
    return pxg_fail(why, PXG_E_ARG,
                    "projection[%llu].name: found %s, expected a field's name in lower case "
                    "[PXG-HDR-010]",
                    (ull)i, clean);
  }
  return true;
}

static bool attributes_ok(const pxg_config *c, const pxg_config_out *o, pxg_error *why) {
  for (uint64_t i = 0; i < o->n_attrs; i++) {
    const pxg_attr_want *a = &o->attrs[i];
    if (!(a->flags & PXG_ATTR_REQUIRED) || find_attribute(c, &a->name) != PXG_ATTR_NONE) continue;
    char clean[256];
    pxg_clean(clean, sizeof clean, a->name.ptr, a->name.len);
    return pxg_fail(why, PXG_E_NOTFOUND,
                    "attrs[%llu]: found the required attribute %s, expected one that this host has [PXG-ATT-003]",
                    (ull)i, clean);
  }
  return true;
}

bool pxg_declared_ok(const pxg_config *c, const pxg_config_out *o, const pxg_call *lent, pxg_error *why) {
  return readable(o, lent, why) && supported(c, o, why) && values_ok(o, lent, why) && attributes_ok(c, o, why);
}

/* ---- Copies ------------------------------------------------------------------------------------------------------ */

static uint64_t limited(const pxg_config *c, const char *what, uint64_t wish, uint64_t preset, uint64_t most) {
  if (!wish) return preset < most ? preset : most;
  if (wish <= most) return wish;
  pxg_say(PXG_LOG_WARN, "guest=%s filter=%s config=%s: %s %llu is set to the host's limit %llu [PXG-CFG-010]",
          c->lib->name, c->filter, c->instance, what, (ull)wish, (ull)most);
  return most;
}

bool pxg_declared_take(pxg_config *c, const pxg_config_out *o) {
  c->value = o->config;
  c->subscribe = o->subscribe;
  c->pend_phases = o->pend_phases;
  c->flags = o->flags;
  c->pend_ns = limited(c, "pend_ns", o->pend_ns, c->policy.pend_default_ns, c->policy.pend_limit_ns);
  for (int d = 0; d < 2; d++) {
    c->body_mode[d] = o->body_mode[d] ? o->body_mode[d] : PXG_BODY_SKIP;
    c->max_body[d] = limited(c, d ? "max_body[1]" : "max_body[0]", o->max_body[d], c->policy.max_body_default,
                             c->policy.max_body_limit);
  }
  c->attrs = calloc(o->n_attrs + 1, sizeof *c->attrs);
  c->projection = calloc(o->n_projection + 1, sizeof *c->projection);
  if (!c->attrs || !c->projection) return false;
  for (uint64_t i = 0; i < o->n_attrs; i++) {
    pxg_attr *a = &c->attrs[c->n_attrs++];
    const pxg_str *name = &o->attrs[i].name;
    a->id = find_attribute(c, name);
    a->phases = o->attrs[i].phases;
    c->attr_phases |= a->phases;
    size_t prefix = a->id == PXG_ATTR_METADATA ? sizeof METADATA - 1 : 0;
    a->name_len = name->len - (uint32_t)prefix;
    a->name = pxg_text_copy(name->ptr + prefix, a->name_len);
    if (!a->name) return false;
  }
  for (uint64_t i = 0; i < o->n_projection; i++) {
    pxg_projected *p = &c->projection[c->n_projection++];
    p->phases = o->projection[i].phases;
    c->projected_phases |= p->phases;
    p->name_len = o->projection[i].name.len;
    p->name = pxg_text_copy(o->projection[i].name.ptr, p->name_len);
    if (!p->name) return false;
  }
  return true;
}
