/* SPDX-License-Identifier: Apache-2.0 */

/* The attributes of spec/16-attributes that this host has. */

#include "minihost.h"

enum getter {
  A_ID,
  A_PROTOCOL,
  A_START,
  A_EARLY,
  A_REQUEST_BYTES,
  A_RAW,
  A_NORMAL,
  A_SOURCE,
  A_PEER,
  A_LOCAL,
  A_CONNECTION,
  A_REQUESTS,
  A_TLS,
  A_ROUTE,
  A_CLUSTER,
  A_ADDRESS,
  A_ATTEMPTS,
  A_UPSTREAM_NS,
  A_CODE,
  A_DETAILS,
  A_RESPONSE_BYTES,
  A_DURATION,
  A_OWN
};

/* `l4`: also on connections; `from`: the first phase that knows it. */
static const struct {
  const char *name;
  enum getter get;
  bool l4;
  uint32_t from;
} table[] = {{"request.id", A_ID, true, 1},
             {"request.protocol", A_PROTOCOL, false, 1},
             {"request.start_ns", A_START, true, 1},
             {"request.early_data", A_EARLY, false, 1},
             {"request.body_bytes", A_REQUEST_BYTES, false, 2},
             {"path.raw", A_RAW, false, 1},
             {"path.normalized", A_NORMAL, false, 1},
             {"source.address", A_SOURCE, true, 1},
             {"source.peer_address", A_PEER, true, 1},
             {"destination.address", A_LOCAL, true, 1},
             {"connection.id", A_CONNECTION, true, 1},
             {"connection.requests", A_REQUESTS, false, 1},
             {"tls.version", A_TLS, true, 1},
             {"tls.cipher", A_TLS, true, 1},
             {"tls.alpn", A_TLS, true, 1},
             {"tls.sni", A_TLS, true, 1},
             {"tls.peer.verified", A_TLS, true, 1},
             {"tls.peer.subject", A_TLS, true, 1},
             {"tls.peer.uri_san", A_TLS, true, 1},
             {"tls.peer.dns_san", A_TLS, true, 1},
             {"tls.peer.sha256", A_TLS, true, 1},
             {"route.name", A_ROUTE, false, 1},
             {"upstream.cluster", A_CLUSTER, true, 4},
             {"upstream.address", A_ADDRESS, true, 4},
             {"upstream.attempts", A_ATTEMPTS, false, 4},
             {"upstream.duration_ns", A_UPSTREAM_NS, false, 4},
             {"response.code", A_CODE, false, 7},
             {"response.code_details", A_DETAILS, false, 4},
             {"response.body_bytes", A_RESPONSE_BYTES, false, 5},
             {"duration_ns", A_DURATION, true, 1},
             {"x.minihost.mutant", A_OWN, true, 1}};

#define N (sizeof table / sizeof *table)

/* Its index, -2 for metadata, -1 for a name that this host does not have. */
int attribute_find(const char *name, size_t len) {
  static const char meta_prefix[] = "metadata.";
  if (len > sizeof meta_prefix - 1 && !memcmp(name, meta_prefix, sizeof meta_prefix - 1) &&
      memchr(name + sizeof meta_prefix - 1, '.', len - (sizeof meta_prefix - 1)))
    return -2;
  for (size_t i = 0; i < N; i++)
    if (strlen(table[i].name) == len && !memcmp(table[i].name, name, len)) return (int)i;
  return -1;
}

static const char *number(char room[128], size_t *len, uint64_t n) {
  *len = (size_t)snprintf(room, 128, BUG("numbers-in-hex") ? "0x%llx" : "%llu", (unsigned long long)n);
  return room;
}

static const char *text(size_t *len, const char *t) {
  *len = t ? strlen(t) : 0;
  return t;
}

const char *attribute_get(const stream *s, const attr *a, uint32_t phase, char room[128], size_t *len) {
  if (a->getter == -2) {
    for (const meta *m = s->meta; m; m = m->next)
      if (!strcmp(m->key, a->meta)) return *len = m->len, m->value;
    return NULL;
  }
  if (a->getter < 0) return BUG("absent-attribute-is-empty") ? text(len, "") : NULL;
  uint32_t from = table[a->getter].from;
  if (s->l4 && (!table[a->getter].l4 || (from == 4 && phase < PXG_PHASE_L4_UPSTREAM))) return NULL;
  bool response = phase >= PXG_PHASE_RESPONSE_HEADERS && phase <= PXG_PHASE_LOG;
  if (!s->l4 && from == 4 && !response && phase != PXG_PHASE_WAKE) return NULL;
  if (!s->l4 && from == 7 && phase != PXG_PHASE_LOG) return NULL;
  if (!s->l4 && from == 5 && (!response || phase < PXG_PHASE_RESPONSE_BODY)) return NULL;
  if (!s->l4 && from == 2 && phase == PXG_PHASE_REQUEST_HEADERS) return NULL;
  const struct client *c = s->client;
  switch (table[a->getter].get) {
  case A_ID: *len = (size_t)snprintf(room, 128, "mini-%llu", (unsigned long long)s->id); return room;
  case A_PROTOCOL: return text(len, s->protocol);
  case A_START: return number(room, len, s->start_wall);
  case A_EARLY: return text(len, "false");
  case A_REQUEST_BYTES: return number(room, len, s->bytes_in[REQ]);
  case A_RAW: return text(len, s->raw_path);
  case A_NORMAL: return text(len, fields_get(&s->m[REQ].head, ":path"));
  case A_SOURCE:
  case A_PEER: return c ? text(len, BUG("addresses-swapped") ? c->local : c->peer) : NULL;
  case A_LOCAL: return c ? text(len, BUG("addresses-swapped") ? c->peer : c->local) : NULL;
  case A_CONNECTION: return c ? number(room, len, c->id) : NULL;
  case A_REQUESTS: return c ? number(room, len, s->requests) : NULL;
  case A_ROUTE: return s->cluster ? text(len, s->cluster->name) : NULL;
  case A_CLUSTER: return s->contacted && s->cluster ? text(len, s->cluster->name) : NULL;
  case A_ADDRESS:
    if (!s->contacted || !s->cluster) return NULL;
    *len = (size_t)snprintf(room, 128, "%s:%u", s->cluster->host, s->cluster->port);
    return room;
  case A_ATTEMPTS: return s->contacted ? number(room, len, s->attempts) : NULL;
  case A_UPSTREAM_NS: return s->up_first ? number(room, len, s->up_first - s->up_start) : NULL;
  case A_CODE: return s->code ? number(room, len, s->code) : NULL;
  case A_DETAILS:
    return s->m[RSP].details ? text(len, s->m[RSP].details) : s->began[RSP] ? text(len, "via_upstream") : NULL;
  case A_RESPONSE_BYTES: return number(room, len, s->bytes_out[RSP]);
  case A_DURATION: return number(room, len, now_ns() - s->start);
  case A_OWN: return text(len, bug_name ? bug_name : "none");
  case A_TLS: return BUG("absent-attribute-is-empty") ? text(len, "") : NULL;
  }
  return NULL;
}
