/* SPDX-License-Identifier: Apache-2.0 */

/* The client's side of a connection: HTTP/1 server, tunnel after an upgrade, or bytes on L4. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "minihost.h"

static atomic_ullong next_id;

static void ready(handler *h, uint32_t events);

static void name_of(char to[64], int fd, bool peer) {
  struct sockaddr_in a;
  socklen_t len = sizeof a;
  char host[INET_ADDRSTRLEN] = "?";
  if ((peer ? getpeername(fd, (struct sockaddr *)&a, &len) : getsockname(fd, (struct sockaddr *)&a, &len)) == 0)
    inet_ntop(AF_INET, &a.sin_addr, host, sizeof host);
  snprintf(to, 64, "%s:%u", host, ntohs(a.sin_port));
}

void client_accept(worker *w, int fd) {
  client *c = zalloc(sizeof *c);
  c->h = (handler){ready, fd, 0};
  c->w = w;
  c->id = atomic_fetch_add(&next_id, 1) + 1;
  c->minor = 1;
  c->body_done = true;
  c->idle_at = now_ns();
  name_of(c->peer, fd, true);
  name_of(c->local, fd, false);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  c->next = w->clients;
  c->link = &w->clients;
  if (c->next) c->next->link = &c->next;
  w->clients = c;
  if (set.l4) {
    config *chain[MAX_PLACES];
    size_t n = world_take(NULL, chain);
    stream *s = c->s = stream_new(w, c, true);
    s->cluster = cluster_find("default", 7);
    c->tunnel = true;
    stream_begin(s, chain, n);
    stream_run(s);
  } else {
    client_update(c);
  }
}

void client_free(client *c) {
  bytes_free(&c->out);
  fields_free(&c->body.trailers);
  free(c->in);
  free(c);
}

/* The memory goes at the end of the loop's round: events of this one may still point to it. */
static void drop(client *c, bool abort_it) {
  if (c->h.fd < 0) return;
  if (abort_it) setsockopt(c->h.fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
  handler_set(c->w, &c->h, 0);
  close(c->h.fd);
  c->h.fd = -1;
  *c->link = c->next;
  if (c->next) c->next->link = c->link;
  c->next = c->w->dead_clients;
  c->w->dead_clients = c;
}

static void die(client *c, bool abort_it) {
  stream *s = c->s;
  drop(c, abort_it);
  if (!s) return;
  c->s = NULL;
  s->client = NULL;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static void refuse_request(client *c, int status, const char *why) {
  char text[256];
  int n = snprintf(text, sizeof text, "HTTP/1.1 %d \r\ncontent-length: 0\r\nconnection: close\r\n\r\n", status);
  say(PXG_LOG_INFO, "client %s: the request is refused: %s", c->peer, why);
  bytes_copy(&c->out, text, (size_t)n);
  c->closing = true;
  client_flush(c);
}

static void begin(client *c, head *h) {
  config *chain[MAX_PLACES];
  const char *path = fields_get(&h->list, ":path"), *method = fields_get(&h->list, ":method");
  bool connect = !strcmp(method, "CONNECT");
  size_t n = world_take(path, chain);
  stream *s = c->s = stream_new(c->w, c, false);
  c->minor = h->minor;
  c->close_after = !h->keep_alive || atomic_load(&c->w->draining);
  c->body = (decoder){.framing = h->framing, .left = h->length};
  c->body_done = h->framing == F_NONE;
  s->requests = ++c->requests;
  s->m[REQ].head = h->list;
  s->m[REQ].ends = h->framing == F_NONE;
  s->raw_path = h->raw_path;
  s->protocol = h->protocol;
  s->head_method = !strcmp(method, "HEAD");
  s->expect_100 = h->expect;
  s->cluster = route_of(path ? path : "/");
  *h = (head){0};
  if (s->expect_100 && BUG("continue-before-the-verdict")) client_continue(s);
  if (connect) s->m[REQ].ends = true;
  atomic_fetch_add(&s->refs, 1);
  stream_begin(s, chain, n);
  stream_run(s);
  stream_unref(s);
}

static void consume(client *c, size_t n) {
  memmove(c->in, c->in + n, c->in_len - n);
  c->in_len -= n;
}

/* Body bytes of the stream that runs, or of one that has been answered. */
static bool feed(client *c) {
  stream *s = c->s;
  bytes out = {0};
  size_t used = 0;
  if (s && c->tunnel) {
    if (!c->in_len || !stream_wants(s, REQ)) return false;
    bytes_copy(&out, c->in, c->in_len);
    consume(c, c->in_len);
    stream_bytes(s, REQ, &out);
    bytes_free(&out);
    return true;
  }
  if (c->body_done || (!c->in_len && c->body.framing != F_NONE)) return false;
  bool wanted = s && !s->replied && !s->over[REQ];
  if (BUG("rest-of-the-request-is-a-request") && !wanted) return c->body_done = true;
  if (wanted && !stream_wants(s, REQ)) return false;
  int end = decode(&c->body, c->in, c->in_len, &used, &out);
  consume(c, used);
  if (end < 0) {
    bytes_free(&out);
    if (s) stream_reset(s, PXG_END_CLIENT_ABORT);
    return false;
  }
  if (end) c->body_done = true;
  if (out.len && wanted) stream_bytes(s, REQ, &out);
  if (end && wanted) stream_ended(s, REQ, &c->body.trailers);
  if (end) fields_free(&c->body.trailers);
  bool progress = used || end;
  bytes_free(&out);
  return progress;
}

static bool parse(client *c) {
  if (c->s || !c->body_done || c->closing || c->close_after || (c->out.len && c->requests)) return false;
  size_t n = head_end(c->in, c->in_len);
  if (!n) {
    if (c->in_len > set.max_field_bytes) refuse_request(c, 431, "the head is too long");
    return false;
  }
  head h = {0};
  const char *why = NULL;
  int status = head_request(&h, c->in, n, &why);
  consume(c, n);
  if (status) {
    head_free(&h);
    refuse_request(c, status, why);
    return false;
  }
  begin(c, &h);
  return true;
}

static void work(client *c) {
  while (c->h.fd >= 0) {
    stream *s = c->s;
    if (s) atomic_fetch_add(&s->refs, 1);
    bool more = feed(c);
    if (s) {
      if (more) stream_run(s);
      stream_unref(s);
    }
    if (c->h.fd >= 0 && !c->s && parse(c)) more = true;
    if (!more) break;
  }
  c->kick = false;
}

/* ---- the socket -------------------------------------------------------------------------------------------------- */

static void got_eof(client *c) {
  stream *s = c->s;
  c->eof = true;
  if (!s) return die(c, false);
  if (!c->tunnel) return stream_reset(s, PXG_END_CLIENT_ABORT);
  if (!s->in_done[REQ] && !s->over[REQ]) {
    stream_ended(s, REQ, NULL);
    stream_run(s);
  }
}

static void read_some(client *c) {
  if (c->in_cap < c->in_len + READ_SIZE) c->in = must(realloc(c->in, c->in_cap = c->in_len + READ_SIZE));
  ssize_t n = recv(c->h.fd, c->in + c->in_len, READ_SIZE, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n < 0) {
    if (c->s) return stream_reset(c->s, PXG_END_CLIENT_ABORT);
    return die(c, false);
  }
  c->in_len += (size_t)n;
  if (n) work(c);
  if (!n) got_eof(c);
}

void client_flush(client *c) {
  stream *s = c->s;
  if (BUG("output-held-back") && s && !s->in_done[RSP] && !s->over[RSP]) return;
  while (c->out.len && c->h.fd >= 0) {
    struct iovec v[32];
    int n = 0;
    for (; n < 32 && (size_t)n < c->out.n; n++) {
      slice *at = &c->out.at[c->out.first + (size_t)n];
      v[n] = (struct iovec){(void *)(uintptr_t)at->ptr, at->len};
    }
    ssize_t k = sendmsg(c->h.fd, &(struct msghdr){.msg_iov = v, .msg_iovlen = (size_t)n}, MSG_NOSIGNAL);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0 && errno == EAGAIN) break;
    if (k < 0) {
      bytes_drop(&c->out, c->out.len);
      if (s) return stream_reset(s, PXG_END_CLIENT_ABORT);
      return die(c, false);
    }
    bytes_drop(&c->out, (uint64_t)k);
  }
  if (c->out.len || c->h.fd < 0) return client_update(c);
  if (s && c->writing_shut && !c->eof_sent) {
    c->eof_sent = true;
    if (c->tunnel) shutdown(c->h.fd, SHUT_WR);
    return stream_drained(s, RSP);
  }
  if (!s && c->closing) {
    /* What the client still sends is read before the end, so that it finds the answer. */
    if (!c->lingering) shutdown(c->h.fd, SHUT_WR);
    c->lingering = true;
    c->idle_at = now_ns();
  }
  client_update(c);
}

void client_update(client *c) {
  if (c->h.fd < 0) return;
  stream *s = c->s;
  uint32_t want = EPOLLRDHUP;
  /* What is buffered here is looked at again when the stream has moved: a writable socket reports at once. */
  if (c->out.len || (c->kick && c->in_len)) want |= EPOLLOUT;
  bool room = c->in_len < READ_SIZE * 4;
  bool body = s && (c->tunnel || !c->body_done);
  bool wanted = !s || c->lingering || (body ? s->replied || s->over[REQ] || stream_wants(s, REQ) : room);
  if (wanted && room && !c->eof) want |= EPOLLIN;
  if (c->eof || (s && c->tunnel)) want &= ~(uint32_t)EPOLLRDHUP;
  handler_set(c->w, &c->h, want);
}

static void ready(handler *h, uint32_t events) {
  client *c = (client *)h;
  stream *s = c->s;
  if (s) atomic_fetch_add(&s->refs, 1);
  if (c->lingering && h->fd >= 0 && (events & (EPOLLIN | EPOLLERR | EPOLLHUP))) {
    char waste[READ_SIZE];
    if (recv(h->fd, waste, sizeof waste, 0) <= 0) die(c, false);
    return;
  }
  if (events & EPOLLOUT) client_flush(c);
  if (c->s && (events & EPOLLOUT)) {
    reply_room(c->s);
    if (c->s->again) stream_run(c->s);
  }
  if ((events & EPOLLIN) && h->fd >= 0) read_some(c);
  bool gone = events & (EPOLLERR | EPOLLHUP) || ((events & EPOLLRDHUP) && !c->tunnel && !(events & EPOLLIN));
  if (gone && h->fd >= 0) {
    if (c->s && !(c->eof && c->tunnel && !(events & EPOLLERR))) {
      stream_reset(c->s, PXG_END_CLIENT_ABORT);
    } else if (!c->s) {
      die(c, false);
    }
  }
  if (h->fd >= 0) {
    if (c->s || c->in_len) work(c);
    c->kick = false;
    client_update(c);
    if (c->s && c->s->up) {
      c->s->up->kick = true;
      upstream_update(c->s);
    }
  }
  if (s) stream_unref(s);
}

void client_idle(client *c, uint64_t now) {
  uint64_t limit = c->lingering ? 2000 : set.idle_ms;
  if (!c->s && c->idle_at + limit * 1000000 <= now) die(c, false);
}

/* ---- the sink of responses --------------------------------------------------------------------------------------- */

void client_continue(stream *s) {
  static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
  s->expect_100 = false;
  if (!s->client || s->m[RSP].sent || s->replied) return;
  bytes_copy(&s->client->out, text, sizeof text - 1);
}

void client_head(stream *s) {
  client *c = s->client;
  const fields *h = &s->m[RSP].head;
  const char *status = fields_get(h, ":status");
  s->code = (uint32_t)atoi(status);
  if (!c) return;
  /* A client that was not told to send its body may do so or not: the connection cannot be used again. */
  if (s->expect_100 || (!c->body_done && BUG("rest-of-the-request-is-a-request") == 0 && c->body.framing == F_LENGTH &&
                        c->body.left > 64 << 20))
    c->close_after = true;
  bool none = s->head_method || ((s->code == 204 || s->code == 304) && !BUG("body-with-204")) || s->upgraded;
  bool length = fields_get(h, "content-length") != NULL;
  bool chunks = c->minor || BUG("chunks-for-http-1.0");
  c->framing = none ? F_NONE : length ? F_LENGTH : chunks ? F_CHUNKED : F_CLOSE;
  if (c->framing == F_CLOSE) c->close_after = true;
  if (c->framing != F_CHUNKED) s->trailers_ok[RSP] = false;
  print_response(&c->out, s, c->framing, c->close_after && !s->upgraded, c->minor);
  if (s->upgraded) c->framing = F_CLOSE;
}

void client_bytes(stream *s, bytes *b) {
  if (s->client && s->client->framing != F_NONE) {
    print_body(&s->client->out, b, s->l4 ? F_CLOSE : s->client->framing);
  } else if (s->client && s->l4) {
    bytes_move(&s->client->out, b, b->len);
  } else {
    bytes_drop(b, b->len);
  }
}

void client_end(stream *s) {
  client *c = s->client;
  if (!c) return;
  if (!s->l4 && !c->tunnel) print_end(&c->out, &s->m[RSP].trailers, c->framing);
  c->writing_shut = true;
}

void client_done(stream *s) {
  client *c = s->client;
  if (!c) return;
  bool whole = s->dirend[RSP] == PXG_DIREND_COMPLETE && !s->dead;
  s->client = NULL;
  c->s = NULL;
  c->idle_at = now_ns();
  if (!whole || c->tunnel) return drop(c, !whole && !(c->tunnel && s->why == PXG_END_COMPLETE));
  c->writing_shut = c->eof_sent = false;
  c->kick = true;
  if (c->close_after) {
    c->closing = true;
    client_flush(c);
  } else {
    client_update(c);
  }
}
