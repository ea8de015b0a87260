/* SPDX-License-Identifier: Apache-2.0 */

/* The check of files, loading, and the log. */

#define _XOPEN_SOURCE 700

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

static pxg_error why;

static const char *elf(const char *path) {
  bool go;
  why.text[0] = 0;
  why.status = PXG_OK;
  CHECK(!pxg_elf_check(path, &go, &why) && why.status, "accepted %s", path);
  return why.text;
}

static void patch(const char *path, long at, const void *bytes, size_t n) {
  int fd = open(path, O_WRONLY);
  CHECK(pwrite(fd, bytes, n, at) == (ssize_t)n, "%s cannot be written", path);
  close(fd);
}

static void files(void) {
  bool go = true;
  CHECK(pxg_elf_check(copy_of("loading.so", "good.so", 0), &go, &why), "%s", why.text);
  CHECK(!go, "a C guest has no Go runtime");
  HAS(elf("/no/such/file"), "\"No such file or directory\", expected a file that can be read [PXG-LOAD-011]");
  HAS(elf(scratch), "found no regular file");
  HAS(elf("/bin/sh"), "expected a guest, which exports it");
  const char *path = copy_of("loading.so", "empty", 1);
  CHECK(!truncate(path, 0), "truncate");
  HAS(elf(path), "found an empty file");
  HAS(elf(copy_of("loading.so", "cut-in-head", 20)), "an ELF file that is cut");
  HAS(elf(copy_of("loading.so", "cut", 5000)), "found section headers beyond its end");
  path = copy_of("loading.so", "text", 100);
  patch(path, 0, "#!/b", 4);
  HAS(elf(path), "found a file that is not ELF");
  path = copy_of("loading.so", "32-bit", 0);
  patch(path, EI_CLASS, "\1", 1);
  HAS(elf(path), "found an ELF file that is not 64-bit");
  path = copy_of("loading.so", "machine", 0);
  patch(path, offsetof(Elf64_Ehdr, e_machine), "\x15\0", 2);
  HAS(elf(path), "found an object for ppc64 (ELF machine 21), expected one for ");
  path = copy_of("loading.so", "executable", 0);
  patch(path, offsetof(Elf64_Ehdr, e_type), "\2\0", 2);
  HAS(elf(path), "found an executable, expected a shared object");
  HAS(elf(copy_of("no_entry.so", "no-entry", 0)), "found no symbol pxg_guest_init_v1");
  HAS(elf(copy_of("entry_is_data.so", "data", 0)), "found pxg_guest_init_v1 as data, expected a function");
  path = copy_of("loading.so", "fifo", 1);
  CHECK(!unlink(path) && !mkfifo(path, 0600), "fifo");
  HAS(elf(path), "found no regular file");
  /* Every damage of one byte in what the check reads is an answer, never a crash. */
  path = copy_of("loading.so", "damaged", 0);
  struct stat st;
  CHECK(!stat(path, &st), "stat");
  unsigned refused = 0;
  for (long at = 0; at < st.st_size; at += at < 64 || at > st.st_size - 4096 ? 1 : 509) {
    uint8_t byte, flipped;
    int fd = open(path, O_RDWR);
    CHECK(pread(fd, &byte, 1, at) == 1, "pread");
    flipped = (uint8_t)~byte;
    CHECK(pwrite(fd, &flipped, 1, at) == 1, "pwrite");
    refused += !pxg_elf_check(path, &go, &why);
    CHECK(pwrite(fd, &byte, 1, at) == 1, "pwrite");
    close(fd);
  }
  CHECK(refused > 20, "only %u damages were refused", refused);
}

static void refused(const char *name, int32_t status, const char *text) {
  static char path[512];
  snprintf(path, sizeof path, "%s/%s", scratch, name);
  if (access(path, F_OK)) copy_of("loading.so", name, 0);
  why.text[0] = 0;
  CHECK(!pxg_guest_load(path, &why), "%s was accepted", name);
  CHECK(why.status == status, "%s: found status %d, expected %d: %s", name, why.status, status, why.text);
  HAS(why.text, text);
  HAS(why.text, path);
}

static void tables(void) {
  refused("wrong-major.so", PXG_E_VERSION, "found major version 2 in its table, expected 1");
  refused("other-major.so", PXG_E_VERSION, "its init answered VERSION (-7)");
  refused("no-hook.so", PXG_E_ARG, "found on_cancel null in its table, expected a function [PXG-LOAD-010]");
  refused("duplicate.so", PXG_E_ARG, "found two filters named first, expected distinct names");
  refused("empty-name.so", PXG_E_ARG, "found filter 0 without a name");
  refused("no-filter.so", PXG_E_ARG, "found no filter, expected at least one");
  refused("small-table.so", PXG_E_ARG, "found a table of 16 bytes");
  refused("guest-flag.so", PXG_E_UNSUPPORTED, "found flags 0x80 in its table");
  refused("requires.so", PXG_E_UNSUPPORTED, "lacks: L4, feature 255 [PXG-NEG-003]");
  refused("refuses.so", PXG_E_INTERNAL, "its init answered INTERNAL (-9), expected OK: no \\x02 license");
  refused("refuses.so", PXG_E_INTERNAL, "no \\x02 license"); /* Init may be called again. */
  copy_of("unresolved.so", "unresolved.so", 0);
  refused("unresolved.so", PXG_E_ARG, "it cannot be loaded: ");
  HAS(why.text, "nobody_defines_this");
  refused("replaces-itself.so", PXG_E_STATE, "the file was replaced while it was loaded; load it again [PXG-LOAD-007]");
  why.text[0] = 0;
  CHECK(!pxg_guest_load("/no/such.so", &why), "loaded nothing");
  HAS(why.text, "/no/such.so: found \"No such file");
}

static void libraries(void) {
  sigset_t before, after;
  sigemptyset(&before);
  sigaddset(&before, SIGUSR2);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  quiet();
  const char *path = copy_of("loading.so", "one.so", 0), *second = copy_of("loading.so", "nameless.so", 0);
  pxg_guest_lib *l = pxg_guest_load(path, &why);
  CHECK(l, "%s", why.text);
  if (!l) return;
  HAS(said, "2 guest="); /* PXG_LOG_INFO */
  HAS(said, "init: signals are blocked");
  pthread_sigmask(SIG_SETMASK, NULL, &after);
  CHECK(sigismember(&after, SIGUSR2) && !sigismember(&after, SIGTERM), "the mask was not restored");
  CHECK(!strcmp(l->name, "test guest") && l->table.n_filters == 2, "%s", l->name);
  quiet();
  CHECK(pxg_guest_load(path, &why) == l, "one file was loaded twice");
  LACKS(said, "init:");
  char other[600];
  snprintf(other, sizeof other, "%s-link.so", path);
  unlink(other);
  CHECK(!link(path, other) && pxg_guest_load(other, &why) == l, "another name of one file was loaded again");
  /* Another file under the name of a loaded one is another library; the old one stays. */
  const char *next = copy_of("loading.so", "next", 0);
  CHECK(!rename(next, path), "rename");
  pxg_guest_lib *swapped = pxg_guest_load(path, &why);
  CHECK(swapped && swapped != l && swapped->so != l->so && swapped->ctx != l->ctx, "%s", why.text);
  CHECK(swapped && swapped->table.on_event != l->table.on_event, "the old code under the new name");
  pxg_guest_lib *nameless = pxg_guest_load(second, &why);
  CHECK(nameless && !strcmp(nameless->name, "nameless.so"), "%s", nameless ? nameless->name : why.text);
  CHECK(pxg_guest_by_ctx(l->ctx) == l && !pxg_guest_by_ctx(99), "by ctx");
  pxg_loop_thread(true);
  CHECK(!pxg_guest_load(path, &why) && why.status == PXG_E_THREAD, "%s", why.text);
  pxg_loop_thread(false);
}

static void scratch_of_calls(void) {
  pxg_guest_lib *l = pxg_guest_first();
  _Alignas(16) static uint8_t lent[4096];
  static pxg_op ops[32];
  CHECK(!l->host.scratch_more(l->ctx, 16), "outside of hooks");
  pxg_call c = {.ops = ops, .ops_cap = 32, .scratch = lent, .scratch_cap = sizeof lent};
  pxg_call_begin(&c);
  CHECK(!pxg_guest_load(l->path, &why) && why.status == PXG_E_THREAD, "a config-thread call inside a hook");
  uint8_t *a = l->host.scratch_more(l->ctx, 100), *b = NULL;
  CHECK(a && !((uintptr_t)a % 16), "unaligned");
  for (int i = 0; i < 4000 && (b = l->host.scratch_more(l->ctx, 1)); i++) CHECK(!*b, "not zeroed");
  CHECK(b && l->host.scratch_more(l->ctx, 0), "many small pieces");
  CHECK(!c.over && !l->host.scratch_more(l->ctx, UINT64_MAX) && c.over, "over the limit");
  CHECK(!pxg_call_overruns(&c, a, 100) && pxg_call_overruns(&c, a, 101) && pxg_call_overruns(&c, a + 99, 2), "more");
  CHECK(!pxg_call_overruns(&c, lent, 4096) && pxg_call_overruns(&c, lent + 4095, 2), "scratch");
  CHECK(!pxg_call_overruns(&c, &ops[31], 64) && pxg_call_overruns(&c, &ops[31], 65), "operations");
  CHECK(!pxg_call_overruns(&c, &c, 1u << 30), "memory of the guest's own");
  pxg_call_end(&c);
  pxg_call_begin(&c);
  uint64_t got = 0;
  while (got < 64u << 10 && l->host.scratch_more(l->ctx, 1)) got++;
  CHECK(got == 64u << 10, "64 KiB are promised in pieces of every size, found %llu", (unsigned long long)got);
  pxg_call_end(&c);
}

static void log_records(void) {
  pxg_guest_lib *l = pxg_guest_first();
  char clean[64];
  quiet();
  l->host.log(l->ctx, PXG_LOG_WARN, (const uint8_t *)"a\nb\x7f\\\xff\xc3\xa9\xc2\x85\xed\xa0\x80\0c", 15);
  HAS(said, "3 guest=nameless.so: a\\x0ab\\x7f\\x5c\\xff\xc3\xa9\\xc2\\x85\\xed\\xa0\\x80\\x00c\n");
  quiet();
  l->host.log(l->ctx, 77, NULL, 5);
  HAS(said, "4 guest=nameless.so: \n");
  quiet();
  l->host.log(l->ctx, PXG_LOG_DEBUG, (const uint8_t *)"low", 3);
  LACKS(said, "low");
  pxg_log_level(PXG_LOG_OFF);
  l->host.log(l->ctx, PXG_LOG_ERROR, (const uint8_t *)"off", 3);
  LACKS(said, "off");
  CHECK(l->host.page->log_level == PXG_LOG_OFF, "the page follows");
  pxg_log_level(PXG_LOG_INFO);
  char *big = calloc(1, 20000);
  memset(big, 1, 20000);
  l->host.log(l->ctx, PXG_LOG_ERROR, (uint8_t *)big, PXG_LOG_RECORD_MAX);
  LACKS(said, "[cut]");
  CHECK(n_said > 4 * PXG_LOG_RECORD_MAX, "%zu", n_said);
  quiet();
  l->host.log(l->ctx, PXG_LOG_ERROR, (uint8_t *)big, 20000);
  HAS(said, "\\x01 [cut]\n");
  quiet();
  memset(big, 'x', 20000);
  l->host.log(l->ctx, PXG_LOG_ERROR, (uint8_t *)big, 20000);
  CHECK(n_said == strlen("4 guest=nameless.so: ") + PXG_LOG_RECORD_MAX + strlen(" [cut]\n"), "%zu", n_said);
  free(big);
  CHECK(pxg_clean(clean, sizeof clean, "0123456789012345678901234567890123456789012345678901234567890123", 64) < 64,
        "room");
  HAS(clean, " [cut]");
  quiet();
  pxg_say(PXG_LOG_ERROR, "%05000d", 1);
  HAS(said, "0 [cut]\n");
  pxg_page_clock(5, 6);
  pxg_page_draining(true);
  CHECK(l->host.page->monotonic_ns == 5 && l->host.page->realtime_ns == 6 && l->host.page->draining, "the page");
  CHECK(!l->host.get_ext(l->ctx, (const uint8_t *)PXG_METRICS_V1_ID, strlen(PXG_METRICS_V1_ID)), "without a zone");
}

static void runtimes(void) {
  quiet();
  CHECK(pxg_guest_load(copy_of("with_go.so", "go-1.so", 0), &why), "%s", why.text);
  LACKS(said, "Go runtime");
  CHECK(pxg_guest_load(copy_of("with_go.so", "go-2.so", 0), &why), "%s", why.text);
  HAS(said, "go-1.so and ");
  HAS(said, "go-2.so both have a Go runtime; Go does not support two in one process [PXG-LOAD-008]");
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  pxg_driver d = test_driver(NULL);
  CHECK(!pxg_guest_load("/x", &why) && why.status == PXG_E_STATE, "before the start");
  d.apply = NULL;
  CHECK(!pxg_host_start(&d, &why), "APPLY without apply");
  HAS(why.text, "[PXG-NEG-004]");
  d = test_driver(NULL);
  d.n_workers = 0;
  CHECK(!pxg_host_start(&d, &why), "without workers");
  HAS(why.text, "found a driver without name, version or workers");
  d = test_driver(NULL);
  CHECK(pxg_host_start(&d, &why), "%s", why.text);
  CHECK(!pxg_host_start(&d, &why), "twice");
  files();
  tables();
  libraries();
  scratch_of_calls();
  log_records();
  runtimes();
  return finish("loading");
}
