/* SPDX-License-Identifier: Apache-2.0 */

/* Validation in a child: what it accepts, refuses, and what becomes of a guest that crashes or hangs there. */

#define _XOPEN_SOURCE 700

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

static pxg_error why;
static size_t which;
static const char *good;

static pxg_config_spec spec_of(const char *library, const char *text) {
  pxg_config_spec s = {.library = library,
                       .filter = "first",
                       .instance = "v",
                       .bytes = text,
                       .n_bytes = (uint32_t)strlen(text),
                       .features = {TEST_FEATURES}};
  pxg_policy_default(&s.policy);
  return s;
}

/* The second of two. */
static bool second(const char *library, const char *text, uint64_t timeout_ns) {
  pxg_config_spec specs[2] = {spec_of(good, ""), spec_of(library, text)};
  pxg_validation v = {.specs = specs, .n = 2, .timeout_ns = timeout_ns};
  which = 9;
  why.text[0] = 0;
  return pxg_validate(&v, &which, &why);
}

static void refused(const char *library, const char *text, const char *message) {
  CHECK(!second(library, text, 0), "%s was accepted", text);
  CHECK(which == 1 && why.status < 0, "which %zu, status %d", which, why.status);
  HAS(why.text, message);
  CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD, "a child was left");
}

static bool become(void *data, pxg_error *e) {
  return data ? true : pxg_fail(e, PXG_E_INTERNAL, "no such user: nobody-2");
}

static void handler(int s) { (void)s; }

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  void *memory = NULL;
  size_t size = pxg_zone_size(8, 64);
  CHECK(!posix_memalign(&memory, 64, size), "memory");
  memset(memory, 0, size);
  pxg_zone *z = pxg_zone_open(memory, size);
  pxg_driver d = test_driver(z);
  CHECK(pxg_host_start(&d, &why), "%s", why.text);
  struct sigaction a = {.sa_handler = handler};
  sigaction(SIGCHLD, &a, NULL);
  sigaction(SIGSEGV, &a, NULL); /* A handler of the host's that returns: the child has its own. */
  good = copy_of("loading.so", "good.so", 0);

  CHECK(second(good, "define", 0), "%s", why.text);
  CHECK(!pxg_guest_first(), "a guest was loaded in this process");
  refused(good, "refuse", "guest=test guest filter=first config=v file=");
  HAS(why.text, "ARG (-3): the key \\x01 is missing");
  refused(good, "pend-outside", "pend_phases: found 0x12");
  refused(good, "crash", "found a crash by signal 11 (Segmentation fault) in on_config_new");
  HAS(why.text, "filter=first config=v file=");
  refused(good, "exit", "(exit status 3) in on_config_new");
  refused(copy_of("loading.so", "crash-in-init.so", 0), "",
          "found a crash by signal 11 (Segmentation fault) while the library was loaded and its init ran");
  refused(copy_of("loading.so", "no-hook.so", 0), "", "found on_cancel null in its table");
  refused(copy_of("no_entry.so", "no-entry.so", 0), "", "found no symbol pxg_guest_init_v1");
  CHECK(!second(good, "hang", 2000000000), "a configuration that hangs was accepted");
  HAS(why.text, "found no answer within 2000 ms");
  CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD, "a child was left");

  pxg_config_spec specs[2] = {spec_of(good, ""), spec_of(good, "full")};
  int parents[2] = {-1, 0};
  pxg_validation v = {.specs = specs, .parents = parents, .n = 2, .become = become};
  CHECK(!pxg_validate(&v, &which, &why), "became nobody");
  HAS(why.text, "no such user: nobody-2");
  specs[1].library = copy_of("no_entry.so", "no-entry.so", 0);
  CHECK(!pxg_validate(&v, &which, &why) && which == 1, "files are looked at before there is a child");
  HAS(why.text, "found no symbol pxg_guest_init_v1");
  specs[1].library = good;
  v.data = memory;
  CHECK(pxg_validate(&v, &which, &why), "%s", why.text);
  specs[1].instance = "another";
  CHECK(!pxg_validate(&v, &which, &why) && which == 1, "an override with another name");
  HAS(why.text, "expected its parent's, v");
  v.n = 0;
  CHECK(pxg_validate(&v, &which, &why), "nothing to validate");

  /* A process that has guests never forks one. */
  CHECK(pxg_guest_load(good, &why), "%s", why.text);
  CHECK(second(good, "", 0), "%s", why.text);
  refused(good, "refuse", "the key \\x01 is missing");
  CHECK(!pxg_configs_drop(), "left alive");
  return finish("validate");
}
