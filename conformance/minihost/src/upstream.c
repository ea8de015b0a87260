/* SPDX-License-Identifier: Apache-2.0 */

/* The upstream's side of a stream: one connection each. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "minihost.h"

static void ready(handler *h, uint32_t events);

static void update(upstream *u) {
  if (u->h.fd < 0) return;
  uint32_t want = 0;
  if (!u->connected || u->out.len || (u->shut_when_drained && !u->out_shut) || (u->kick && u->in_len)) want |= EPOLLOUT;
  if (u->connected && !u->eof && !u->finished && (!u->head_done || stream_wants(u->s, RSP))) want |= EPOLLIN;
  handler_set(u->w, &u->h, want);
}

void upstream_update(stream *s) {
  if (s->up) update(s->up);
}

void upstream_close(stream *s) {
  upstream *u = s->up;
  if (!u) return;
  s->up = NULL;
  u->s = NULL;
  if (u->h.fd >= 0) {
    handler_set(u->w, &u->h, 0);
    close(u->h.fd);
  }
  u->h.fd = -1;
  bytes_free(&u->out);
  fields_free(&u->body.trailers);
  free(u->in);
  u->in = NULL;
  u->dead_next = u->w->dead_ups;
  u->w->dead_ups = u;
}

/* The upstream failed. */
static void broken(stream *s, const char *word) {
  if (!s->l4 && !s->began[RSP] && !s->replied) {
    make_local(s, NULL, 502, copy_text(word, strlen(word)));
    return stream_run(s);
  }
  stream_reset(s, PXG_END_UPSTREAM_RESET);
}

void upstream_open(stream *s) {
  if (s->up) return;
  upstream *u = s->up = zalloc(sizeof *u);
  cluster *to = s->cluster;
  u->w = s->w;
  u->s = s;
  s->contacted = true;
  s->attempts = 1;
  s->up_start = now_ns();
  u->h = (handler){ready, socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 0};
  if (!s->l4) {
    const fields *h = &s->m[REQ].head;
    bool ends = s->m[REQ].ends_out;
    u->framing = ends ? F_NONE : fields_get(h, "content-length") ? F_LENGTH : F_CHUNKED;
    if (u->framing != F_CHUNKED) s->trailers_ok[REQ] = false;
    print_request(&u->out, s, u->framing);
  }
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(to->port)};
  inet_pton(AF_INET, to->host, &a.sin_addr);
  setsockopt(u->h.fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  int r = u->h.fd < 0 ? -1 : connect(u->h.fd, (struct sockaddr *)&a, sizeof a);
  if (r && errno != EINPROGRESS) {
    /* Told by the loop, as a connection that fails later is. */
    u->connected = false;
  }
  update(u);
}

void upstream_bytes(stream *s, bytes *b) {
  if (s->up && !s->up->shut_when_drained) {
    print_body(&s->up->out, b, s->l4 || s->upgraded ? F_CLOSE : s->up->framing);
  } else {
    bytes_drop(b, b->len);
  }
}

void upstream_end(stream *s) {
  upstream *u = s->up;
  if (!u) return;
  if (!s->l4 && !s->upgraded) print_end(&u->out, &s->m[REQ].trailers, u->framing);
  u->shut_when_drained = true;
}

static void flush(upstream *u) {
  stream *s = u->s;
  while (u->out.len) {
    struct iovec v[32];
    int n = 0;
    for (; n < 32 && (size_t)n < u->out.n; n++) {
      slice *at = &u->out.at[u->out.first + (size_t)n];
      v[n] = (struct iovec){(void *)(uintptr_t)at->ptr, at->len};
    }
    ssize_t k = sendmsg(u->h.fd, &(struct msghdr){.msg_iov = v, .msg_iovlen = (size_t)n}, MSG_NOSIGNAL);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0 && errno == EAGAIN) return;
    if (k < 0) {
      /* An answer may wait to be read. */
      bytes_drop(&u->out, u->out.len);
      break;
    }
    bytes_drop(&u->out, (uint64_t)k);
  }
  if (u->shut_when_drained && !u->out_shut) {
    u->out_shut = true;
    if (s->l4 || s->upgraded) shutdown(u->h.fd, SHUT_WR);
    stream_drained(s, REQ);
  }
}

static void response_end(upstream *u, stream *s) {
  u->finished = true;
  stream_ended(s, RSP, &u->body.trailers);
}

/* One message of the upstream's that has arrived whole; false: more is needed. */
static bool take_head(upstream *u, stream *s) {
  size_t n = head_end(u->in, u->in_len);
  if (!n) {
    if (u->in_len > set.max_field_bytes) broken(s, "host.bad_response");
    return false;
  }
  head h = {0};
  const char *why, *method = fields_get(&s->m[REQ].head, ":method");
  bool connect = method && !strcmp(method, "CONNECT");
  int status = head_response(&h, u->in, n, s->head_method, connect, &why);
  memmove(u->in, u->in + n, u->in_len - n);
  u->in_len -= n;
  if (status) {
    say(PXG_LOG_WARN, "upstream %s:%u: the response is refused: %s", s->cluster->host, s->cluster->port, why);
    head_free(&h);
    broken(s, "host.bad_response");
    return false;
  }
  int code = atoi(fields_get(&h.list, ":status"));
  if (code / 100 == 1 && code != 101 && !BUG("informational-is-an-event")) {
    head_free(&h);
    return true;
  }
  s->up_first = now_ns();
  u->head_done = true;
  u->body = (decoder){.framing = h.framing, .left = h.length};
  if (h.upgrade) {
    u->tunnel = true;
    s->upgraded = true;
    u->body.framing = F_CLOSE;
  }
  stream_response(s, &h.list, h.framing == F_NONE);
  if (h.framing == F_NONE && !h.upgrade) u->finished = true;
  head_free(&h);
  stream_run(s);
  return true;
}

static void take(upstream *u, stream *s) {
  while (s->up == u && u->in_len) {
    if (!u->head_done && !s->l4) {
      if (!take_head(u, s)) break;
      continue;
    }
    if (s->l4) u->body.framing = F_CLOSE;
    /* A tunnel begins when its response has left. */
    if (u->finished || (u->tunnel && !(s->client && s->client->tunnel))) break;
    bytes out = {0};
    size_t used;
    int end = decode(&u->body, u->in, u->in_len, &used, &out);
    memmove(u->in, u->in + used, u->in_len - used);
    u->in_len -= used;
    if (out.len) stream_bytes(s, RSP, &out);
    bytes_free(&out);
    if (end < 0) return stream_reset(s, PXG_END_UPSTREAM_RESET);
    if (end) response_end(u, s);
    stream_run(s);
  }
}

static void got_eof(upstream *u, stream *s) {
  u->eof = true;
  if (u->finished) return;
  if (s->l4 || (u->tunnel && s->client && s->client->tunnel) ||
      (u->head_done && u->body.framing == F_CLOSE && !u->tunnel)) {
    response_end(u, s);
    return stream_run(s);
  }
  broken(s, u->head_done ? "host.upstream_reset" : "host.upstream_closed");
}

static void read_some(upstream *u, stream *s) {
  if (u->in_cap < u->in_len + READ_SIZE) u->in = must(realloc(u->in, u->in_cap = u->in_len + READ_SIZE));
  ssize_t n = recv(u->h.fd, u->in + u->in_len, READ_SIZE, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n < 0) {
    u->eof = true;
    return broken(s, u->head_done ? "host.upstream_reset" : "host.upstream_closed");
  }
  u->in_len += (size_t)n;
  if (n) {
    take(u, s);
  } else {
    got_eof(u, s);
  }
}

static void ready(handler *h, uint32_t events) {
  upstream *u = (upstream *)h;
  stream *s = u->s;
  if (!s || h->fd < 0) return;
  atomic_fetch_add(&s->refs, 1);
  if (!u->connected) {
    int error = 0;
    socklen_t len = sizeof error;
    if (getsockopt(h->fd, SOL_SOCKET, SO_ERROR, &error, &len) || error || (events & EPOLLERR)) {
      broken(s, "host.connect");
      goto out;
    }
    u->connected = true;
  }
  if (events & EPOLLOUT) flush(u);
  if (s->up == u && (events & EPOLLIN)) read_some(u, s);
  /* Reset, or closed both ways, while this side does not read. */
  if (s->up == u && (events & (EPOLLERR | EPOLLHUP)) && !(events & EPOLLIN) && !u->finished && !u->eof) {
    if (h->interest & EPOLLIN || events & EPOLLERR) {
      broken(s, u->head_done ? "host.upstream_reset" : "host.upstream_closed");
    } else {
      /* What it sent is still to be read, when there is room. */
      handler_set(u->w, h, 0);
    }
  }
  if (s->up == u && u->out.len) flush(u);
  if (s->up == u) {
    if (u->in_len && (!u->head_done || stream_wants(s, RSP))) take(u, s);
  }
  if (s->up == u) u->kick = false, update(u);
  /* What was written makes room for the other side. */
  if (s->client && !s->finished) {
    s->client->kick = true;
    client_update(s->client);
  }
out:
  stream_unref(s);
}
