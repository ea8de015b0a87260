/* SPDX-License-Identifier: Apache-2.0 */

/* pxg-minihost: a small strict host, written from include/ and spec/ alone. This file is the config thread: start, reload,
 * drops, drain. */

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "minihost.h"

/* ---- the operator's door ----------------------------------------------------------------------------------------- */

static int admin_open(void) {
  if (!set.admin) return -1;
  char host[64] = "";
  const char *colon = strrchr(set.admin, ':');
  if (colon && colon - set.admin < 63) memcpy(host, set.admin, (size_t)(colon - set.admin));
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon ? colon + 1 : "0"))};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t len = sizeof a;
  if (inet_pton(AF_INET, host, &a.sin_addr) != 1 || bind(fd, (struct sockaddr *)&a, len) || listen(fd, 16)) {
    close(fd);
    return -1;
  }
  getsockname(fd, (struct sockaddr *)&a, &len);
  printf("admin %s:%u\n", host, ntohs(a.sin_port));
  return fd;
}

static void admin_answer(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0) return;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){1, 0}, sizeof(struct timeval));
  char request[2048];
  size_t n = 0;
  while (n < sizeof request - 1) {
    ssize_t k = recv(fd, request + n, sizeof request - 1 - n, 0);
    if (k <= 0) break;
    n += (size_t)k;
    if (head_end(request, n)) break;
  }
  request[n] = 0;
  char *text = NULL;
  size_t len = 0;
  FILE *f = must(open_memstream(&text, &len));
  int status = 200;
  static const char *const levels[] = {"trace", "debug", "info", "warn", "error", "off"};
  if (!strncmp(request, "GET /metrics ", 13)) {
    metrics_print(f);
  } else if (!strncmp(request, "POST /log-level/", 16)) {
    uint32_t level = 0;
    while (level < 6 && strncmp(request + 16, levels[level], strlen(levels[level]))) level++;
    status = level < 6 ? 200 : 404;
    if (level < 6 && !BUG("log-level-stands")) __atomic_store_n(&page.log_level, level, __ATOMIC_RELAXED);
  } else {
    status = 404;
  }
  fclose(f);
  char head[128];
  int h = snprintf(head, sizeof head,
                   "HTTP/1.1 %d \r\ncontent-type: text/plain\r\ncontent-length: %zu\r\nconnection: close\r\n\r\n",
                   status, len);
  if (send(fd, head, (size_t)h, MSG_NOSIGNAL) == h) {
    for (size_t at = 0; at < len;) {
      ssize_t k = send(fd, text + at, len - at, MSG_NOSIGNAL);
      if (k <= 0) break;
      at += (size_t)k;
    }
  }
  free(text);
  close(fd);
}

/* ---- the config thread ------------------------------------------------------------------------------------------- */

static void reload(void) {
  world *w = NULL;
  if (settings_reload() && world_load(0, &w)) {
    world_serve(w);
    say(PXG_LOG_INFO, "reloaded");
  } else {
    say(PXG_LOG_ERROR, "the reload is refused; the configuration in force keeps serving [PXG-LOAD-009]");
    if (BUG("refused-reload-serves-nothing")) world_serve(NULL);
  }
  if (BUG("reload-cuts-streams")) workers_cut();
}

static void serve(int signals, int admin) {
  bool draining = false;
  uint64_t limit = 0;
  for (;;) {
    struct pollfd p[3] = {{signals, POLLIN, 0}, {config_event, POLLIN, 0}, {admin, POLLIN, 0}};
    int n = poll(p, admin < 0 ? 2 : 3, draining ? 20 : 500);
    if (n < 0 && errno != EINTR) return;
    if (n > 0 && (p[0].revents & POLLIN)) {
      struct signalfd_siginfo info;
      if (read(signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGHUP) {
          reload();
        } else if (!draining) {
          draining = true;
          limit = now_ns() + set.drain_ms * 1000000;
          if (!BUG("drain-unsaid")) __atomic_store_n(&page.draining, 1, __ATOMIC_RELAXED);
          workers_drain();
          say(PXG_LOG_INFO, "draining %u streams", worker_streams());
        }
      }
    }
    if (n > 0 && (p[1].revents & POLLIN)) {
      uint64_t count;
      if (read(config_event, &count, sizeof count) < 0) return;
    }
    configs_drop();
    if (n > 0 && admin >= 0 && (p[2].revents & POLLIN)) admin_answer(admin);
    if (draining && (!worker_streams() || now_ns() >= limit || BUG("drain-waits-for-none"))) return;
  }
}

static bool validate(void) {
  world *w = NULL;
  bool ok = world_load(PXG_CFG_IN_VALIDATE_ONLY, &w);
  world_free(w);
  configs_drop();
  puts(ok ? "valid" : "refused");
  return ok;
}

/* A mutant: guests are loaded before a fork, and called after it. */
static void fork_the_workers(void) {
  pid_t child = fork();
  if (child <= 0) return;
  sigset_t all;
  sigfillset(&all);
  int signal, status;
  while (!sigwait(&all, &signal)) {
    if (signal != SIGCHLD) {
      kill(child, signal);
    } else if (waitpid(child, &status, 0) == child) {
      _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
  }
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  if (!settings_read(argc, argv)) return 2;
  /* Blocked in all threads, those of guests included: the config thread reads them. */
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGHUP);
  sigaddset(&mask, SIGTERM);
  sigaddset(&mask, SIGINT);
  pthread_sigmask(SIG_BLOCK, &mask, NULL);
  int signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
  config_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  page_tick();
  if (set.validate) return !validate();
  world *w = NULL;
  if (set.pin && BUG("loads-on-one-processor")) pin(0);
  if (!world_load(0, &w)) {
    configs_drop();
    if (!BUG("serves-without-the-filter")) return 1;
  }
  if (BUG("workers-forked-after-loading")) fork_the_workers();
  world_serve(w);
  uint16_t port;
  int admin = admin_open();
  if (!workers_start(&port)) {
    fprintf(stderr, "pxg-minihost: cannot listen at %s: %s\n", set.listen, strerror(errno));
    return 1;
  }
  if (BUG("handler-after-loading")) signal(SIGSEGV, SIG_DFL), signal(SIGURG, SIG_IGN);
  printf("listening %.*s:%u\n", (int)(strrchr(set.listen, ':') - set.listen), set.listen, port);
  fflush(stdout);
  serve(signals, admin);
  if (BUG("configs-dropped-before-the-streams")) configs_drop_now();
  workers_stop();
  world_serve(NULL);
  while (!configs_drop() && !BUG("streams-left-at-shutdown")) {
    struct pollfd dropped = {config_event, POLLIN, 0};
    uint64_t count;
    if (poll(&dropped, 1, -1) > 0 && read(config_event, &count, sizeof count) < 0) break;
  }
  workers_end();
  if (admin >= 0) close(admin);
  close(signals);
  close(config_event);
  tokens_free();
  metrics_free();
  settings_free();
  return 0;
}
