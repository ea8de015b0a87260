/* Tests of the C guests and of the helpers: check DIRECTORY, where the guests are. Ends with 1 at the first failure. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "proxy_golang_guest.h"

static int checks;

#define CHECK(condition)                                                      \
  do {                                                                        \
    checks++;                                                                 \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

static void check_text(int line, const char *found, const char *expected) {
  checks++;
  if (strcmp(found, expected) != 0) {
    fprintf(stderr, "%s:%d: found\n%s\nexpected\n%s\n", __FILE__, line, found, expected);
    exit(1);
  }
}
#define CHECK_TEXT(found, expected) check_text(__LINE__, found, expected)

static th_host *load(const char *dir, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return th_load(path);
}

static const char *const GET = ":method: GET\n:scheme: https\n:authority: a\n:path: /x\n";

static void helpers(void) {
  pxg_str rest = PXGG_LIT("\n # no\r\n a = b c \r\n\nlast word"), line, key, value, word;
  uint32_t number = 0;
  uint64_t n = 7;
  CHECK(pxgg_next_line(&rest, &line, &number) && number == 3);
  CHECK(pxgg_key_value(line, &key, &value) && PXGG_EQ(key, "a") && PXGG_EQ(value, "b c"));
  CHECK(pxgg_next_line(&rest, &line, &number) && number == 5);
  CHECK(!pxgg_key_value(line, &key, &value));
  word = pxgg_next_word(&line);
  CHECK(PXGG_EQ(word, "last") && PXGG_EQ(line, "word"));
  CHECK(!pxgg_next_line(&rest, &line, &number));
  CHECK(pxgg_number(PXGG_LIT("599"), 599, &n) && n == 599);
  CHECK(!pxgg_number(PXGG_LIT("600"), 599, &n) && !pxgg_number(PXGG_LIT(""), 9, &n) &&
        !pxgg_number(PXGG_LIT("1x"), 9, &n));
  CHECK(pxgg_number(PXGG_LIT("18446744073709551615"), UINT64_MAX, &n) && n == UINT64_MAX);
  CHECK(!pxgg_number(PXGG_LIT("18446744073709551616"), UINT64_MAX, &n));
  CHECK(pxgg_eq_nocase(PXGG_LIT("Text/HTML"), PXGG_LIT("text/html")) && !pxgg_eq_nocase(PXGG_LIT("a"), PXGG_LIT("b")));
  CHECK(pxgg_eq(pxgg_str(NULL, 0), PXGG_LIT("")) && !pxgg_is_absent(pxgg_str(NULL, 0)) &&
        pxgg_is_absent(pxgg_absent()));
  CHECK(pxgg_starts_with(PXGG_LIT("/a/b"), PXGG_LIT("/a")) && !pxgg_starts_with(PXGG_LIT("/"), PXGG_LIT("/a")));
}

static void minimal(const char *dir) {
  th_host *h = load(dir, "minimal.so");
  static th_done done;
  char error[512];
  uint64_t config = th_configure(h, "minimal", "  good day ", 0, NULL, error);
  CHECK(config != 0);
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, GET, &done);
  CHECK(done.action == PXG_ACT_CONTINUE && done.n_ops == 1);
  CHECK(strstr(done.headers, "x-hello: good day\n") != NULL);
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, ":path: /ping\n", &done);
  CHECK(done.action == PXG_ACT_REPLY && done.status == 204);
  th_drop(h, config);
  CHECK(th_configure(h, "minimal", " ", 0, NULL, error) == 0);
  CHECK_TEXT(error, "no text found; expected the value for the header x-hello");
  CHECK(th_configure(h, "other", "x", 0, NULL, error) == 0);
  CHECK(th_init_with(h, sizeof(pxg_host), 0, sizeof(pxg_guest)) == PXG_E_VERSION);
  CHECK(th_init_with(h, sizeof(pxg_host), 2, sizeof(pxg_guest)) == PXG_E_VERSION);
  CHECK(th_init_with(h, sizeof(pxg_host) - 1, 1, sizeof(pxg_guest)) == PXG_E_ARG);
  CHECK(th_init_with(h, sizeof(pxg_host), 1, sizeof(pxg_guest) - 1) == PXG_E_ARG);
  free(h);
}

static void refused(th_host *h, const char *text, const char *expected) {
  char error[512];
  uint64_t config = th_configure(h, "header-policy", text, 0, NULL, error);
  checks++;
  if (config != 0) {
    fprintf(stderr, "taken, but expected a refusal: %s\n", text);
    exit(1);
  }
  CHECK_TEXT(error, expected);
}

static void header_policy(const char *dir) {
  th_host *h = load(dir, "header-policy.so");
  static th_done done;
  static char many[65536], expected[65536];
  char error[512];
  uint64_t subscribe, config, child;
  size_t used = 0, want = 0;
  int i;

  config = th_configure(h, "header-policy",
                        "# policy\n"
                        "request set X-A b and c\n"
                        "require header x-key 401\n"
                        "deny path-prefix /private 403\n"
                        "deny method TRACE 405\n"
                        "deny header x-bad 400\n"
                        "request add via me\n"
                        "request delete cookie\r\n"
                        "response delete server\n"
                        "response set x-frame-options DENY\n",
                        0, &subscribe, error);
  CHECK_TEXT(error, "");
  CHECK(subscribe == (PXG_PHASE_BIT(PXG_PHASE_REQUEST_HEADERS) | PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS)));
  CHECK(strstr(th_log(h), "1 header-policy: 9 rules") != NULL);

  th_event(h, config, PXG_PHASE_REQUEST_HEADERS,
           ":method: GET\n:path: /x\nx-key: 1\nx-a: old\nx-a: older\ncookie: c\nvia: you\n", &done);
  CHECK(done.action == PXG_ACT_CONTINUE);
  CHECK_TEXT(done.headers, ":method: GET\n:path: /x\nx-key: 1\nvia: you\nx-a: b and c\nvia: me\n");
  th_event(h, config, PXG_PHASE_RESPONSE_HEADERS, ":status: 200\nserver: s\n", &done);
  CHECK_TEXT(done.headers, ":status: 200\nx-frame-options: DENY\n");

  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, ":method: GET\n:path: /x\n", &done);
  CHECK(done.action == PXG_ACT_REPLY && done.status == 401);
  CHECK_TEXT(done.headers, "content-type: text/plain\n");
  CHECK_TEXT(done.body, "refused by policy\n");
  CHECK_TEXT(done.details, "header-policy: line 3");
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, ":method: GET\n:path: /private/x\nx-key: 1\n", &done);
  CHECK(done.status == 403);
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, ":method: TRACE\n:path: /\nx-key: 1\n", &done);
  CHECK(done.status == 405);
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, ":method: GET\n:path: /\nx-key: 1\nx-bad: 1\n", &done);
  CHECK(done.status == 400);

  child = th_configure(h, "header-policy", "inherit\nrequest set x-b 2\n", config, &subscribe, error);
  CHECK(child != 0 && subscribe & PXG_PHASE_BIT(PXG_PHASE_RESPONSE_HEADERS));
  th_event(h, child, PXG_PHASE_REQUEST_HEADERS, ":method: GET\n:path: /x\nx-key: 1\n", &done);
  CHECK_TEXT(done.headers, ":method: GET\n:path: /x\nx-key: 1\nx-a: b and c\nvia: me\nx-b: 2\n");
  th_drop(h, child);
  th_drop(h, config);

  /* Nothing to do: nothing subscribed. */
  config = th_configure(h, "header-policy", "\n# nothing\n", 0, &subscribe, error);
  CHECK(config != 0 && subscribe == 0);
  th_drop(h, config);

  /* More operations than the host lends at first, up to the limit, and over it. */
  for (i = 0; i < 500; i++) {
    used += (size_t)snprintf(many + used, sizeof many - used, "request add x-%d %d\n", i, i * i);
    want += (size_t)snprintf(expected + want, sizeof expected - want, "x-%d: %d\n", i, i * i);
  }
  config = th_configure(h, "header-policy", many, 0, &subscribe, error);
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, "", &done);
  CHECK(done.action == PXG_ACT_CONTINUE && done.n_ops == 500);
  CHECK_TEXT(done.headers, expected);
  th_limit(h, 8192);
  th_event(h, config, PXG_PHASE_REQUEST_HEADERS, "", &done);
  CHECK(done.action == PXG_ACT_ERROR && done.n_ops == 0);
  CHECK_TEXT(done.error, "scratch_more refused memory: the result is over the host's limit");
  th_limit(h, 1 << 20);
  th_drop(h, config);

  refused(h, "reqest set a b",
          "line 1, word 1: found \"reqest\"; expected request, response, require, deny or inherit");
  refused(h, "\nrequest xet a b", "line 2, word 2: found \"xet\"; expected set, add or delete");
  refused(h, "request set a", "line 1, word 4: the line ends here; expected a value");
  refused(h, "request set", "line 1, word 3: the line ends here; expected a field name");
  refused(h, "request set a( b", "line 1, word 3: found \"a(\"; expected a field name");
  refused(h, "request set a b\x01", "line 1, word 4: the value has the control byte 0x01; expected text");
  refused(h, "request delete :path",
          "line 1, word 3: found \":path\"; expected a plain field name: a pseudo-header can only be set");
  refused(
      h, "response set Content-Length 7",
      "line 1, word 3: found \"content-length\"; expected another field: the proxy owns this one (for the host name "
      "set :authority)");
  refused(h, "request delete a b", "line 1, word 4: found \"b\"; expected the end of the line");
  refused(h, "deny path-prefix private 403", "line 1, word 3: found \"private\"; expected a path that begins with /");
  refused(h, "deny path-prefix /p 199", "line 1, word 4: found \"199\"; expected a status from 200 to 599");
  refused(h, "deny path-prefix /p", "line 1, word 4: the line ends here; expected a status from 200 to 599");
  refused(h, "deny body x 403", "line 1, word 2: found \"body\"; expected path-prefix, header or method");
  refused(h, "require cookie x 401", "line 1, word 2: found \"cookie\"; expected header");
  refused(h, "inherit",
          "line 1, word 1: found \"inherit\"; expected a rule: there is nothing to inherit, this overrides no "
          "configuration");
  free(h);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: check DIRECTORY\n");
    return 2;
  }
  helpers();
  minimal(argv[1]);
  header_policy(argv[1]);
  printf("%d checks\n", checks);
  return 0;
}
