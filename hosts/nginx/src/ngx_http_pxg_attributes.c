/* SPDX-License-Identifier: Apache-2.0 */

/* Attributes (spec/16-attributes.md): what nginx knows of a stream, as text. */

#include "ngx_http_pxg.h"

#if (NGX_HTTP_SSL)
#include <openssl/x509v3.h>
#endif

typedef enum {
  NGX_HTTP_PXG_REQUEST_ID,
  NGX_HTTP_PXG_REQUEST_PROTOCOL,
  NGX_HTTP_PXG_REQUEST_START,
  NGX_HTTP_PXG_EARLY_DATA,
  NGX_HTTP_PXG_REQUEST_BODY_BYTES,
  NGX_HTTP_PXG_PATH_RAW,
  NGX_HTTP_PXG_PATH_NORMALIZED,
  NGX_HTTP_PXG_SOURCE,
  NGX_HTTP_PXG_SOURCE_PEER,
  NGX_HTTP_PXG_DESTINATION,
  NGX_HTTP_PXG_CONNECTION_ID,
  NGX_HTTP_PXG_CONNECTION_REQUESTS,
  NGX_HTTP_PXG_TLS_VERSION, /* From here to PEER_SHA256: absent without TLS. */
  NGX_HTTP_PXG_TLS_CIPHER,
  NGX_HTTP_PXG_TLS_ALPN,
  NGX_HTTP_PXG_TLS_SNI,
  NGX_HTTP_PXG_PEER_VERIFIED,
  NGX_HTTP_PXG_PEER_SUBJECT,
  NGX_HTTP_PXG_PEER_URI_SAN,
  NGX_HTTP_PXG_PEER_DNS_SAN,
  NGX_HTTP_PXG_PEER_SHA256,
  NGX_HTTP_PXG_ROUTE,
  NGX_HTTP_PXG_CLUSTER,
  NGX_HTTP_PXG_UPSTREAM_ADDRESS,
  NGX_HTTP_PXG_UPSTREAM_ATTEMPTS,
  NGX_HTTP_PXG_UPSTREAM_DURATION,
  NGX_HTTP_PXG_CODE,
  NGX_HTTP_PXG_DETAILS,
  NGX_HTTP_PXG_RESPONSE_BODY_BYTES,
  NGX_HTTP_PXG_DURATION,
  NGX_HTTP_PXG_N_ATTRIBUTES
} ngx_http_pxg_attribute_e;

static const char *const ngx_http_pxg_attribute_names[NGX_HTTP_PXG_N_ATTRIBUTES] = {
    "request.id",
    "request.protocol",
    "request.start_ns",
    "request.early_data",
    "request.body_bytes",
    "path.raw",
    "path.normalized",
    "source.address",
    "source.peer_address",
    "destination.address",
    "connection.id",
    "connection.requests",
    "tls.version",
    "tls.cipher",
    "tls.alpn",
    "tls.sni",
    "tls.peer.verified",
    "tls.peer.subject",
    "tls.peer.uri_san",
    "tls.peer.dns_san",
    "tls.peer.sha256",
    "route.name",
    "upstream.cluster",
    "upstream.address",
    "upstream.attempts",
    "upstream.duration_ns",
    "response.code",
    "response.code_details",
    "response.body_bytes",
    "duration_ns",
};

ngx_int_t ngx_http_pxg_attributes_init(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);
  ngx_str_t name = ngx_string("request_id");
  /* With an index it is made once for each request. */
  m->request_id = ngx_http_get_variable_index(cf, &name);
  return m->request_id == NGX_ERROR ? NGX_ERROR : NGX_OK;
}

int32_t ngx_http_pxg_attribute(void *data, const char *name, size_t len) {
  int32_t id;
  for (id = 0; id < NGX_HTTP_PXG_N_ATTRIBUTES; id++)
    if (ngx_strlen(ngx_http_pxg_attribute_names[id]) == len &&
        ngx_memcmp(ngx_http_pxg_attribute_names[id], name, len) == 0)
      return id;
  return PXG_ATTR_NONE;
}

/* ---- Values -------------------------------------------------------------------------------------------------------- */

/* One value of each attribute is shown at a time, so each has a room of its own, which grows. Null: no memory. */
static u_char *ngx_http_pxg_room(int32_t id, size_t size) {
  static ngx_str_t rooms[NGX_HTTP_PXG_N_ATTRIBUTES];
  ngx_str_t *room = &rooms[id];

  if (room->len < size) {
    if (room->data) ngx_free(room->data);
    room->len = size < 128 ? 128 : size;
    room->data = ngx_alloc(room->len, ngx_cycle->log);
    if (room->data == NULL) room->len = 0;
  }
  return room->data;
}

static bool ngx_http_pxg_show(const u_char *data, size_t len, pxg_str *v) {
  v->ptr = data, v->len = (uint32_t)len;
  return true;
}

static bool ngx_http_pxg_show_text(const char *text, pxg_str *v) {
  return ngx_http_pxg_show((const u_char *)text, ngx_strlen(text), v);
}

static bool ngx_http_pxg_show_number(int32_t id, uint64_t n, pxg_str *v) {
  u_char *p = ngx_http_pxg_room(id, NGX_INT64_LEN);
  return p && ngx_http_pxg_show(p, (size_t)(ngx_sprintf(p, "%uL", n) - p), v);
}

/* Foreign text: absent if it is not UTF-8 (16.2). */
static bool ngx_http_pxg_show_utf8(int32_t id, const u_char *text, size_t len, pxg_str *v) {
  u_char *p = ngx_http_pxg_room(id, len + 1), *at, *last;

  if (p == NULL) return false;
  ngx_memcpy(p, text, len);
  for (at = p, last = p + len; at < last;) {
    if (*at < 0x80)
      at++;
    else if (ngx_utf8_decode(&at, (size_t)(last - at)) > 0x10ffff)
      return false;
  }
  return ngx_http_pxg_show(p, len, v);
}

static bool ngx_http_pxg_show_address(int32_t id, struct sockaddr *sa, socklen_t len, pxg_str *v) {
  u_char *p = ngx_http_pxg_room(id, NGX_SOCKADDR_STRLEN);
  size_t n = p && sa ? ngx_sock_ntop(sa, len, p, NGX_SOCKADDR_STRLEN, 1) : 0;
  return n && ngx_http_pxg_show(p, n, v);
}

/* The other end of the connection, where the realip module has put another address in its place. */
static bool ngx_http_pxg_show_peer(ngx_http_request_t *r, int32_t id, pxg_str *v) {
  ngx_str_t an = ngx_string("realip_remote_addr"), pn = ngx_string("realip_remote_port");
  ngx_http_variable_value_t *a = ngx_http_get_variable(r, &an, ngx_hash_key(an.data, an.len));
  ngx_http_variable_value_t *p = ngx_http_get_variable(r, &pn, ngx_hash_key(pn.data, pn.len));
  ngx_connection_t *c = r->connection;
  u_char *to;

  if (a == NULL || p == NULL || a->not_found || p->not_found || a->len == 0 || p->len == 0)
    return ngx_http_pxg_show_address(id, c->sockaddr, c->socklen, v);
  to = ngx_http_pxg_room(id, a->len + p->len + 4);
  if (to == NULL) return false;
  return ngx_http_pxg_show(
      to, (size_t)(ngx_sprintf(to, ngx_strlchr(a->data, a->data + a->len, ':') ? "[%v]:%v" : "%v:%v", a, p) - to), v);
}

/* ---- TLS ----------------------------------------------------------------------------------------------------------- */

#if (NGX_HTTP_SSL)

/* The first name of one kind in subjectAltName. */
static bool ngx_http_pxg_show_san(int32_t id, X509 *cert, int kind, pxg_str *v) {
  GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
  bool shown = false, found = false;
  int i;

  for (i = 0; i < sk_GENERAL_NAME_num(names) && !found; i++) {
    const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
    if (name->type != kind) continue;
    found = true;
    const ASN1_STRING *text = kind == GEN_URI ? name->d.uniformResourceIdentifier : name->d.dNSName;
    shown = ngx_http_pxg_show_utf8(id, ASN1_STRING_get0_data(text), (size_t)ASN1_STRING_length(text), v);
  }
  GENERAL_NAMES_free(names);
  return shown;
}

static bool ngx_http_pxg_show_subject(int32_t id, X509 *cert, pxg_str *v) {
  BIO *bio = BIO_new(BIO_s_mem());
  bool shown = false;
  char *text;
  long n;

  if (bio == NULL) return false;
  if (X509_NAME_print_ex(bio, X509_get_subject_name(cert), 0, XN_FLAG_RFC2253) >= 0) {
    n = BIO_get_mem_data(bio, &text);
    shown = n >= 0 && ngx_http_pxg_show_utf8(id, (u_char *)text, (size_t)n, v);
  }
  BIO_free(bio);
  return shown;
}

static bool ngx_http_pxg_show_digest(int32_t id, X509 *cert, pxg_str *v) {
  u_char digest[EVP_MAX_MD_SIZE], *p = ngx_http_pxg_room(id, 2 * EVP_MAX_MD_SIZE);
  unsigned n;

  if (p == NULL || !X509_digest(cert, EVP_sha256(), digest, &n)) return false;
  return ngx_http_pxg_show(p, (size_t)(ngx_hex_dump(p, digest, n) - p), v);
}

static bool ngx_http_pxg_show_certificate(ngx_http_request_t *r, int32_t id, X509 *cert, pxg_str *v) {
  ngx_str_t verified;

  switch (id) {
  case NGX_HTTP_PXG_PEER_VERIFIED:
    if (ngx_ssl_get_client_verify(r->connection, r->pool, &verified) != NGX_OK) return false;
    return ngx_http_pxg_show_text(cert && ngx_strncmp(verified.data, "SUCCESS", 7) == 0 ? "true" : "false", v);
  case NGX_HTTP_PXG_PEER_SUBJECT: return cert && ngx_http_pxg_show_subject(id, cert, v);
  case NGX_HTTP_PXG_PEER_URI_SAN: return cert && ngx_http_pxg_show_san(id, cert, GEN_URI, v);
  case NGX_HTTP_PXG_PEER_DNS_SAN: return cert && ngx_http_pxg_show_san(id, cert, GEN_DNS, v);
  default: return cert && ngx_http_pxg_show_digest(id, cert, v);
  }
}

static bool ngx_http_pxg_show_tls(ngx_http_request_t *r, int32_t id, pxg_str *v) {
  SSL *ssl = r->connection->ssl ? r->connection->ssl->connection : NULL;
  const unsigned char *alpn;
  unsigned n;
  const char *text;
  X509 *cert;
  bool shown;

  if (ssl == NULL) return false;
  switch (id) {
  case NGX_HTTP_PXG_TLS_VERSION: return ngx_http_pxg_show_text(SSL_get_version(ssl), v);
  case NGX_HTTP_PXG_TLS_CIPHER:
    text = SSL_CIPHER_standard_name(SSL_get_current_cipher(ssl));
    return text && ngx_http_pxg_show_text(text, v);
  case NGX_HTTP_PXG_TLS_ALPN:
    SSL_get0_alpn_selected(ssl, &alpn, &n);
    return n && ngx_http_pxg_show_utf8(id, alpn, n, v);
  case NGX_HTTP_PXG_TLS_SNI:
    text = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    return text && ngx_http_pxg_show_utf8(id, (const u_char *)text, ngx_strlen(text), v);
  }
  cert = SSL_get_peer_certificate(ssl);
  shown = ngx_http_pxg_show_certificate(r, id, cert, v);
  X509_free(cert);
  return shown;
}

static bool ngx_http_pxg_is_early(ngx_http_request_t *r) {
  ngx_str_t early = ngx_null_string;
  return r->connection->ssl && ngx_ssl_get_early_data(r->connection, r->pool, &early) == NGX_OK && early.len;
}

#else

static bool ngx_http_pxg_show_tls(ngx_http_request_t *r, int32_t id, pxg_str *v) { return false; }
static bool ngx_http_pxg_is_early(ngx_http_request_t *r) { return false; }

#endif

/* ---- The exchange -------------------------------------------------------------------------------------------------- */

static bool ngx_http_pxg_show_protocol(ngx_http_request_t *r, pxg_str *v) {
  switch (r->http_version) {
  case NGX_HTTP_VERSION_10: return ngx_http_pxg_show_text("HTTP/1.0", v);
  case NGX_HTTP_VERSION_11: return ngx_http_pxg_show_text("HTTP/1.1", v);
  case NGX_HTTP_VERSION_20: return ngx_http_pxg_show_text("HTTP/2", v);
#ifdef NGX_HTTP_VERSION_30
  case NGX_HTTP_VERSION_30: return ngx_http_pxg_show_text("HTTP/3", v);
#endif
  default: return false;
  }
}

static bool ngx_http_pxg_show_normalized(ngx_http_request_t *r, int32_t id, pxg_str *v) {
  uintptr_t escape = 2 * ngx_escape_uri(NULL, r->uri.data, r->uri.len, NGX_ESCAPE_URI);
  u_char *p = ngx_http_pxg_room(id, r->uri.len + escape + 1 + r->args.len), *at;

  if (p == NULL) return false;
  at = (u_char *)ngx_escape_uri(p, r->uri.data, r->uri.len, NGX_ESCAPE_URI);
  if (r->args.len) {
    *at++ = '?';
    at = ngx_cpymem(at, r->args.data, r->args.len);
  }
  return ngx_http_pxg_show(p, (size_t)(at - p), v);
}

/* The attempts that were made; the last one in `*last`. */
static ngx_uint_t ngx_http_pxg_attempts(ngx_http_request_t *r, ngx_http_upstream_state_t **last) {
  ngx_http_upstream_state_t *s;
  ngx_uint_t i, n = 0;

  *last = NULL;
  if (r->upstream_states == NULL) return 0;
  for (i = 0, s = r->upstream_states->elts; i < r->upstream_states->nelts; i++)
    if (s[i].peer) n++, *last = &s[i];
  return n;
}

static bool ngx_http_pxg_show_upstream(ngx_http_request_t *r, int32_t id, pxg_str *v) {
  ngx_http_upstream_state_t *last;
  ngx_uint_t n = ngx_http_pxg_attempts(r, &last);
  ngx_http_upstream_srv_conf_t *u;

  if (last == NULL) return false;
  switch (id) {
  case NGX_HTTP_PXG_CLUSTER:
    u = r->upstream ? r->upstream->upstream : NULL;
    /* One that a location made for an address has no name. */
    return u && u->srv_conf && ngx_http_pxg_show(u->host.data, u->host.len, v);
  case NGX_HTTP_PXG_UPSTREAM_ADDRESS: return ngx_http_pxg_show(last->peer->data, last->peer->len, v);
  case NGX_HTTP_PXG_UPSTREAM_ATTEMPTS: return ngx_http_pxg_show_number(id, n, v);
  default:
    if (last->header_time == (ngx_msec_t)-1 || last->connect_time == (ngx_msec_t)-1) return false;
    return ngx_http_pxg_show_number(id, (uint64_t)(last->header_time - last->connect_time) * 1000000, v);
  }
}

const char *ngx_http_pxg_origin(ngx_http_request_t *r) {
  if (r->err_status) return "host.error";
  return r->upstream && r->upstream->headers_in.status_n ? "via_upstream" : "host.content";
}

static bool ngx_http_pxg_show_details(const ngx_http_pxg_subject_t *s, pxg_str *v) {
  const char *details = pxg_stream_details(s->stream);
  if (details == NULL) details = s->origin;
  return details && ngx_http_pxg_show_text(details, v);
}

/* What filters behind this one make of a body is only known where nginx sends it without chunks. */
static bool ngx_http_pxg_show_sent(const ngx_http_pxg_subject_t *s, int32_t id, pxg_str *v) {
  ngx_http_request_t *r = s->request;
  off_t sent = r->connection->sent - (off_t)r->header_size;

  if (!r->header_sent || r->http_version > NGX_HTTP_VERSION_11 || r->chunked) sent = s->body_bytes[PXG_DIR_RESPONSE];
  return ngx_http_pxg_show_number(id, sent > 0 ? (uint64_t)sent : 0, v);
}

bool ngx_http_pxg_show_attribute(const ngx_http_pxg_subject_t *s, int32_t id, uint32_t phase, pxg_str *v) {
  ngx_http_request_t *r = s->request;
  ngx_connection_t *c = r->connection;
  ngx_http_core_loc_conf_t *clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);
  ngx_http_pxg_main_conf_t *m = ngx_http_get_module_main_conf(r, ngx_http_proxy_golang_module);
  ngx_http_variable_value_t *vv;
  bool log = phase == PXG_PHASE_LOG, request_headers = phase == PXG_PHASE_REQUEST_HEADERS;

  switch (id) {
  case NGX_HTTP_PXG_REQUEST_ID:
    vv = ngx_http_get_indexed_variable(r, (ngx_uint_t)m->request_id);
    return vv && !vv->not_found && ngx_http_pxg_show(vv->data, vv->len, v);
  case NGX_HTTP_PXG_REQUEST_PROTOCOL: return ngx_http_pxg_show_protocol(r, v);
  case NGX_HTTP_PXG_REQUEST_START:
    return ngx_http_pxg_show_number(id, (uint64_t)r->start_sec * 1000000000 + (uint64_t)r->start_msec * 1000000, v);
  case NGX_HTTP_PXG_EARLY_DATA: return ngx_http_pxg_show_text(ngx_http_pxg_is_early(r) ? "true" : "false", v);
  case NGX_HTTP_PXG_REQUEST_BODY_BYTES:
    if (request_headers) return false;
    return ngx_http_pxg_show_number(id, (uint64_t)s->body_bytes[PXG_DIR_REQUEST], v);
  case NGX_HTTP_PXG_PATH_RAW: return ngx_http_pxg_show(s->raw_path.data, s->raw_path.len, v);
  case NGX_HTTP_PXG_PATH_NORMALIZED: return ngx_http_pxg_show_normalized(r, id, v);
  case NGX_HTTP_PXG_SOURCE: return ngx_http_pxg_show_address(id, c->sockaddr, c->socklen, v);
  case NGX_HTTP_PXG_SOURCE_PEER: return ngx_http_pxg_show_peer(r, id, v);
  case NGX_HTTP_PXG_DESTINATION:
    if (ngx_connection_local_sockaddr(c, NULL, 0) != NGX_OK) return false;
    return ngx_http_pxg_show_address(id, c->local_sockaddr, c->local_socklen, v);
  case NGX_HTTP_PXG_CONNECTION_ID: return ngx_http_pxg_show_number(id, c->number, v);
  case NGX_HTTP_PXG_CONNECTION_REQUESTS: return ngx_http_pxg_show_number(id, c->requests, v);
  case NGX_HTTP_PXG_ROUTE: return clcf->name.len && ngx_http_pxg_show(clcf->name.data, clcf->name.len, v);
  case NGX_HTTP_PXG_CLUSTER:
  case NGX_HTTP_PXG_UPSTREAM_ADDRESS:
  case NGX_HTTP_PXG_UPSTREAM_ATTEMPTS:
  case NGX_HTTP_PXG_UPSTREAM_DURATION: return ngx_http_pxg_show_upstream(r, id, v);
  case NGX_HTTP_PXG_CODE: return log && r->header_sent && ngx_http_pxg_show_number(id, r->headers_out.status, v);
  case NGX_HTTP_PXG_DETAILS: return ngx_http_pxg_show_details(s, v);
  case NGX_HTTP_PXG_RESPONSE_BODY_BYTES:
    if (!log && phase != PXG_PHASE_RESPONSE_BODY && phase != PXG_PHASE_RESPONSE_TRAILERS) return false;
    return ngx_http_pxg_show_sent(s, id, v);
  case NGX_HTTP_PXG_DURATION: return ngx_http_pxg_show_number(id, ngx_http_pxg_now() - s->started_ns, v);
  default: return ngx_http_pxg_show_tls(r, id, v);
  }
}

bool ngx_http_pxg_op_attribute(void *data, int32_t id, uint32_t phase, pxg_str *v) {
  ngx_http_pxg_ctx_t *ctx = data;
  ngx_http_pxg_subject_t s = {
      .request = ctx->request,
      .stream = ctx->stream,
      .body_bytes = ctx->body_bytes,
      .raw_path = ctx->raw_path,
      .started_ns = ctx->started_ns,
      .origin = ctx->response_fed ? ngx_http_pxg_origin(ctx->request) : NULL,
  };
  return ngx_http_pxg_show_attribute(&s, id, phase, v);
}

uint64_t ngx_http_pxg_started(ngx_http_request_t *r) {
  ngx_time_t *tp = ngx_timeofday();
  ngx_msec_int_t ms =
      (ngx_msec_int_t)((tp->sec - r->start_sec) * 1000 + (ngx_msec_int_t)tp->msec - (ngx_msec_int_t)r->start_msec);

  return ngx_http_pxg_now() - (uint64_t)(ms > 0 ? ms : 0) * 1000000;
}

void ngx_http_pxg_attributes_open(ngx_http_pxg_ctx_t *ctx) {
  ctx->raw_path = ctx->request->unparsed_uri;
  ctx->started_ns = ngx_http_pxg_started(ctx->request);
}

void ngx_http_pxg_count_body(ngx_http_pxg_ctx_t *ctx, int direction, const ngx_chain_t *in) {
  for (; in; in = in->next) ctx->body_bytes[direction] += ngx_buf_size(in->buf);
}
