/* Example guest in C: a header policy. Filter `header-policy`; its configuration has one rule a line:
 *
 *   # blank lines and lines that begin with # are skipped
 *   request set NAME VALUE...          leave one field NAME with VALUE (the rest of the line)
 *   request add NAME VALUE...          append a field
 *   request delete NAME                remove all fields NAME
 *   response set|add|delete ...        the same for the response
 *   require header NAME STATUS         reply STATUS unless the request has a field NAME
 *   deny header NAME STATUS            reply STATUS if the request has a field NAME
 *   deny path-prefix PREFIX STATUS     reply STATUS if the path as the client sent it begins with these bytes
 *   deny method METHOD STATUS          reply STATUS to that method
 *   inherit                            in a route's configuration: the rules of the one it overrides, first
 *
 * Request rules run in the order of the lines, and the first `require` or `deny` that matches ends them with its
 * reply. Conditions look at the request as it arrived, not at what earlier lines set. A mistake is refused with its
 * line and word. */
#include <stdlib.h>

#include "proxy_golang_guest.h"

enum rule_kind { REQUEST_OP, RESPONSE_OP, REQUIRE_HEADER, DENY_HEADER, DENY_PATH_PREFIX, DENY_METHOD };

typedef struct rule {
  enum rule_kind kind;
  uint16_t op;     /* PXG_OP_*, for the first two kinds */
  uint32_t status; /* of the reply, for the others */
  uint32_t line;
  pxg_str name;  /* field name, path prefix or method; points into the policy's text */
  pxg_str value; /* of set and add */
} rule;

/* Immutable once made; one block with its rules and its text behind it. */
typedef struct policy {
  const struct policy *parent; /* with `inherit`: outlives this one (PXG-CFG-003) */
  uint64_t subscribe;
  uint32_t n_rules;
  rule *rules;
  uint8_t *text;
} policy;

/* ---- parsing */

/* One line being parsed: where we are, for messages. */
typedef struct parser {
  pxg_config_out *out;
  pxg_str rest;
  uint32_t line, word;
} parser;

/* "line 3, word 2: found "xet"; expected set, add or delete" */
static int32_t refuse(parser *p, pxg_str found, const char *expected) {
  int len = found.len > 80 ? 80 : (int)found.len;
  if (len == 0) {
    return pxgg_config_error(p->out, PXG_E_ARG, "line %u, word %u: the line ends here; expected %s", p->line, p->word,
                             expected);
  }
  return pxgg_config_error(p->out, PXG_E_ARG, "line %u, word %u: found \"%.*s\"; expected %s", p->line, p->word, len,
                           (const char *)found.ptr, expected);
}

static pxg_str word(parser *p) {
  p->word++;
  return pxgg_next_word(&p->rest);
}

static int is_token(pxg_str s) {
  uint32_t i;
  for (i = 0; i < s.len; i++) {
    uint8_t c = s.ptr[i];
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) continue;
    if (c == 0 || strchr("!#$%&'*+-.^_`|~", c) == NULL) return 0;
  }
  return s.len > 0;
}

/* Fields that the host owns and refuses from guests (PXG-HDR-008): better said at configuration than on each stream. */
static int is_framing(pxg_str name) {
  static const char *const owned[] = {"connection", "content-length", "keep-alive",        "proxy-connection",
                                      "te",         "trailer",        "transfer-encoding", "upgrade",
                                      "host"};
  size_t i;
  for (i = 0; i < sizeof owned / sizeof *owned; i++) {
    if (pxgg_eq(name, pxgg_str(owned[i], strlen(owned[i])))) return 1;
  }
  return 0;
}

/* Reads a field name and makes it lower case in place: the text is the policy's own copy. */
static int32_t field_name(parser *p, rule *r) {
  uint32_t i;
  int pseudo;
  r->name = word(p);
  for (i = 0; i < r->name.len; i++) {
    uint8_t *c = (uint8_t *)(uintptr_t)r->name.ptr + i;
    if (*c >= 'A' && *c <= 'Z') *c = (uint8_t)(*c + 32);
  }
  pseudo = r->kind == REQUEST_OP
               ? PXGG_EQ(r->name, ":path") || PXGG_EQ(r->name, ":authority") || PXGG_EQ(r->name, ":method")
               : r->kind == RESPONSE_OP && PXGG_EQ(r->name, ":status");
  if (pseudo && r->op == PXG_OP_HEADER_SET) return PXG_OK;
  if (pseudo) return refuse(p, r->name, "a plain field name: a pseudo-header can only be set");
  if (!is_token(r->name)) return refuse(p, r->name, "a field name");
  if (is_framing(r->name) && (r->kind == REQUEST_OP || r->kind == RESPONSE_OP)) {
    return refuse(p, r->name, "another field: the proxy owns this one (for the host name set :authority)");
  }
  return PXG_OK;
}

static int32_t header_rule(parser *p, rule *r, enum rule_kind kind) {
  pxg_str w = word(p);
  int32_t status;
  uint32_t i;
  r->kind = kind;
  if (PXGG_EQ(w, "set")) {
    r->op = PXG_OP_HEADER_SET;
  } else if (PXGG_EQ(w, "add")) {
    r->op = PXG_OP_HEADER_ADD;
  } else if (PXGG_EQ(w, "delete")) {
    r->op = PXG_OP_HEADER_DELETE;
  } else {
    return refuse(p, w, "set, add or delete");
  }
  status = field_name(p, r);
  if (status != PXG_OK || r->op == PXG_OP_HEADER_DELETE) return status;
  p->word++;
  r->value = p->rest;
  p->rest.len = 0;
  if (r->value.len == 0) return refuse(p, r->value, "a value");
  for (i = 0; i < r->value.len; i++) {
    if ((r->value.ptr[i] < 0x20 && r->value.ptr[i] != '\t') || r->value.ptr[i] == 0x7f) {
      return pxgg_config_error(p->out, PXG_E_ARG,
                               "line %u, word %u: the value has the control byte 0x%02x; expected text", p->line,
                               p->word, r->value.ptr[i]);
    }
  }
  return PXG_OK;
}

static int32_t reply_status(parser *p, rule *r) {
  pxg_str w = word(p);
  uint64_t status;
  if (!pxgg_number(w, 599, &status) || status < 200) return refuse(p, w, "a status from 200 to 599");
  r->status = (uint32_t)status;
  return PXG_OK;
}

static int32_t require_rule(parser *p, rule *r) {
  pxg_str w = word(p);
  int32_t status;
  r->kind = REQUIRE_HEADER;
  if (!PXGG_EQ(w, "header")) return refuse(p, w, "header");
  status = field_name(p, r);
  return status == PXG_OK ? reply_status(p, r) : status;
}

static int32_t deny_rule(parser *p, rule *r) {
  pxg_str w = word(p);
  int32_t status;
  if (PXGG_EQ(w, "path-prefix")) {
    r->kind = DENY_PATH_PREFIX;
    r->name = word(p);
    if (r->name.len == 0 || r->name.ptr[0] != '/') return refuse(p, r->name, "a path that begins with /");
  } else if (PXGG_EQ(w, "header")) {
    r->kind = DENY_HEADER;
    status = field_name(p, r);
    if (status != PXG_OK) return status;
  } else if (PXGG_EQ(w, "method")) {
    r->kind = DENY_METHOD;
    r->name = word(p);
    if (!is_token(r->name)) return refuse(p, r->name, "a method, such as TRACE");
  } else {
    return refuse(p, w, "path-prefix, header or method");
  }
  return reply_status(p, r);
}

static int32_t parse(policy *pol, const policy *parent, pxg_str text, pxg_config_out *out) {
  parser p;
  pxg_str line;
  memset(&p, 0, sizeof p);
  p.out = out;
  while (pxgg_next_line(&text, &line, &p.line)) {
    rule *r = &pol->rules[pol->n_rules];
    pxg_str w;
    int32_t status;
    p.rest = line;
    p.word = 0;
    r->line = p.line;
    w = word(&p);
    if (PXGG_EQ(w, "inherit")) {
      if (parent == NULL) return refuse(&p, w, "a rule: there is nothing to inherit, this overrides no configuration");
      if (pol->n_rules || pol->parent) return refuse(&p, w, "a rule: inherit comes once, before all others");
      pol->parent = parent;
      pol->subscribe |= parent->subscribe;
      status = PXG_OK;
    } else {
      if (PXGG_EQ(w, "request")) {
        status = header_rule(&p, r, REQUEST_OP);
      } else if (PXGG_EQ(w, "response")) {
        status = header_rule(&p, r, RESPONSE_OP);
      } else if (PXGG_EQ(w, "require")) {
        status = require_rule(&p, r);
      } else if (PXGG_EQ(w, "deny")) {
        status = deny_rule(&p, r);
      } else {
        return refuse(&p, w, "request, response, require, deny or inherit");
      }
      pol->n_rules++;
      pol->subscribe |= PXG_PHASE_BIT(r->kind == RESPONSE_OP ? PXG_PHASE_RESPONSE_HEADERS : PXG_PHASE_REQUEST_HEADERS);
    }
    if (status != PXG_OK) return status;
    w = word(&p);
    if (w.len) return refuse(&p, w, "the end of the line");
  }
  return PXG_OK;
}

/* ---- hooks */

/* [config-thread] */
static int32_t on_config_new(uint64_t ctx, const pxg_config_in *in, pxg_config_out *out) {
  const policy *parent = (const policy *)(uintptr_t)in->parent;
  pxg_str text = in->bytes, line;
  uint32_t n = 0, lines = 0;
  policy *pol;
  int32_t status;
  if (!PXGG_EQ(in->filter, "header-policy")) {
    return pxgg_config_error(out, PXG_E_NOTFOUND, "no filter \"%.*s\" in this library; expected header-policy",
                             (int)(in->filter.len > 80 ? 80 : in->filter.len), (const char *)in->filter.ptr);
  }
  while (pxgg_next_line(&text, &line, &lines)) n++;

  pol = (policy *)calloc(1, sizeof *pol + n * sizeof(rule) + in->bytes.len);
  if (pol == NULL) return pxgg_config_error(out, PXG_E_INTERNAL, "out of memory for %u rules", n);
  pol->rules = (rule *)(void *)(pol + 1);
  pol->text = (uint8_t *)(pol->rules + n);
  if (in->bytes.len) memcpy(pol->text, in->bytes.ptr, in->bytes.len);

  status = parse(pol, parent, pxgg_str(pol->text, in->bytes.len), out);
  if (status != PXG_OK) {
    free(pol); /* the error's text is in the host's scratch */
    return status;
  }
  pxgg_logf(pxgg_host(ctx), PXG_LOG_DEBUG, "header-policy: %u rules", pol->n_rules);
  out->config = (uint64_t)(uintptr_t)pol;
  out->subscribe = pol->subscribe;
  return PXG_OK;
}

/* [config-thread] */
static void on_config_drop(uint64_t ctx, uint64_t config) {
  (void)ctx;
  free((void *)(uintptr_t)config);
}

/* Whether the rule ends the request with its reply. */
static int refuses(const rule *r, const pxg_event *ev) {
  switch (r->kind) {
  case REQUIRE_HEADER: return pxgg_find(ev->fields, ev->n_fields, r->name) == NULL;
  case DENY_HEADER: return pxgg_find(ev->fields, ev->n_fields, r->name) != NULL;
  case DENY_PATH_PREFIX: return pxgg_starts_with(pxgg_header(ev, PXGG_LIT(":path")), r->name);
  case DENY_METHOD: return pxgg_eq(pxgg_header(ev, PXGG_LIT(":method")), r->name);
  default: return 0;
  }
}

/* Adds the operations of one policy; answers the rule that refuses the request, or NULL. */
static const rule *run(const policy *pol, const pxg_event *ev, enum rule_kind ops, pxgg_call *c) {
  uint32_t i;
  if (pol->parent) {
    const rule *refused = run(pol->parent, ev, ops, c);
    if (refused) return refused;
  }
  for (i = 0; i < pol->n_rules; i++) {
    const rule *r = &pol->rules[i];
    if (r->kind == ops) {
      pxgg_op_put(c, r->op, PXG_TARGET_HEADERS, 0, r->name, pxgg_borrowed(r->value));
    } else if (ops == REQUEST_OP && refuses(r, ev)) {
      return r;
    }
  }
  return NULL;
}

static void reply(pxgg_call *c, const rule *r) {
  pxg_reply *reply = pxgg_reply_new(c, r->status);
  c->n_ops = 0; /* what earlier lines changed is of no use to a reply */
  pxgg_reply_header(c, reply, PXGG_LIT("content-type"), PXGG_LIT("text/plain"));
  pxgg_reply_body(c, reply, PXGG_LIT("refused by policy\n"));
  if (reply) reply->details = pxgg_format(c, "header-policy: line %u", r->line);
  pxgg_reply_send(c, reply);
}

/* [loop-thread] */
static void on_event(uint64_t ctx, const pxg_event *ev, pxg_result *out) {
  const policy *pol = (const policy *)(uintptr_t)ev->config;
  const rule *refused;
  pxgg_call c;
  pxgg_begin(&c, pxgg_host(ctx), out);
  refused = run(pol, ev, ev->phase == PXG_PHASE_RESPONSE_HEADERS ? RESPONSE_OP : REQUEST_OP, &c);
  if (refused) {
    reply(&c, refused);
  } else {
    pxgg_continue(&c);
  }
}

PXGG_EXPORT int32_t pxg_guest_init_v1(const pxg_host *host, pxg_guest *out) {
  static pxg_str filters[1];
  int32_t status = pxgg_init(host, out, PXGG_LIT("header-policy"), PXGG_LIT("1.0"));
  if (status != PXG_OK) return status;
  filters[0] = PXGG_LIT("header-policy");
  out->filters = filters;
  out->n_filters = 1;
  out->on_config_new = on_config_new;
  out->on_config_drop = on_config_drop;
  out->on_event = on_event;
  return PXG_OK;
}
