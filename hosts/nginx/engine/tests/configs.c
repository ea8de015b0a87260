/* SPDX-License-Identifier: Apache-2.0 */

/* Configurations: what a guest may declare, the limits, parents and drops. */

#include <pthread.h>

#include "test.h"

static pxg_error why;
static const char *library;

static pxg_config_spec spec_of(const void *bytes, size_t n) {
  pxg_config_spec s = {.library = library,
                       .filter = "first",
                       .instance = "in/stance-1",
                       .bytes = bytes,
                       .n_bytes = (uint32_t)n,
                       .features = {TEST_FEATURES}};
  pxg_policy_default(&s.policy);
  return s;
}

static pxg_config *make(const char *text) {
  pxg_config_spec s = spec_of(text, strlen(text));
  why.text[0] = 0;
  return pxg_config_new(&s, &why);
}

static void refused(const char *text, int32_t status, const char *message, bool dropped) {
  quiet();
  CHECK(!make(text), "%s was accepted", text);
  CHECK(why.status == status, "%s: found status %d, expected %d: %s", text, why.status, status, why.text);
  HAS(why.text, message);
  HAS(why.text, "guest=test guest filter=first config=in/stance-1 file=");
  HAS(said, why.text);
  CHECK(dropped == !!strstr(said, "dropped "), "%s: %s", text, dropped ? "not dropped" : "dropped");
}

static void declarations(void) {
  refused("refuse", PXG_E_ARG, "ARG (-3): the key \\x01 is missing", false);
  refused("refuse-by-log", PXG_E_INTERNAL, "INTERNAL (-9): said before", false);
  refused("unknown-status", -77, "INTERNAL (-77): the guest does not say why", false);
  refused("zero", PXG_E_ARG, "config: found 0, which is never a value", false);
  refused("size", PXG_E_ARG, "size: found 8, expected", true);
  refused("subscribe-bit", PXG_E_UNSUPPORTED, "subscribe: found 0x10000000006, expected no bit but 0xf01fe", true);
  refused("pend-bit", PXG_E_UNSUPPORTED, "pend_phases: found 0x10000000002", true);
  refused("flag-bit", PXG_E_UNSUPPORTED, "flags: found 0x100, expected no bit but 0x7f", true);
  refused("flag-feature", PXG_E_UNSUPPORTED, "flags: found SUBREQUESTS, expected nothing that needs the feature", true);
  refused("pend-outside", PXG_E_ARG, "pend_phases: found 0x12, expected phases of subscribe (0x6)", true);
  refused("pend-log", PXG_E_ARG, "pend_phases: found 0x82", true);
  refused("pend-feature", PXG_E_UNSUPPORTED, "pend_phases: found request_trailers", true);
  refused("l4", PXG_E_UNSUPPORTED, "subscribe: found an L4 phase, expected nothing that needs the feature L4", true);
  refused("mode", PXG_E_UNSUPPORTED, "body_mode[0]: found 9, expected 0 to 4", true);
  refused("mode-feature", PXG_E_UNSUPPORTED, "body_mode[0]: found OBSERVE", true);
  refused("mode-phase", PXG_E_ARG, "body_mode[1]: found 2, expected its body phase in subscribe (0x6)", true);
  refused("attrs-null", PXG_E_ARG, "attrs: found NULL with n_attrs 3", true);
  refused("attrs-many", PXG_E_LIMIT, "n_attrs: found 1048576, expected at most 1024", true);
  refused("attr-required", PXG_E_NOTFOUND, "attrs[0]: found the required attribute no.such", true);
  refused("attr-bits", PXG_E_UNSUPPORTED, "attrs[0]: found flags 0x40", true);
  refused("projection", PXG_E_ARG, "projection[0].name: found Host, expected a field's name in lower case", true);
  refused("attrs-leave", PXG_E_ARG, "attrs: found an array that leaves the lent scratch [PXG-MEM-012]", true);
  refused("attr-empty", PXG_E_ARG, "attrs[0].name: found an empty string, expected a name", true);
  refused("attr-null", PXG_E_ARG, "attrs[0].name: found NULL with a length", true);
  refused("attr-flags", PXG_E_ARG, "attrs[0].name: found flags 0x40, expected 0", true);
  refused("projection-bits", PXG_E_UNSUPPORTED, "projection[0]: found phases 0x10000000000", true);
  refused("leaves", PXG_E_ARG, "attrs[0].name: found a string that leaves the lent scratch", true);
}

static void specs(void) {
  static const char *const bad[] = {"", "a b", "a.b", "\xc3\xa9"};
  pxg_config_spec s = spec_of("", 0);
  for (int i = 0; i < 4; i++) {
    s.instance = bad[i];
    CHECK(!pxg_config_new(&s, &why) && why.status == PXG_E_ARG, "%s", bad[i]);
    HAS(why.text, "expected 1 to 128 characters");
  }
  s = spec_of("", 0);
  s.features[0] |= 1ull << PXG_F_L4;
  CHECK(!pxg_config_new(&s, &why), "features beyond the host's");
  HAS(why.text, "[PXG-NEG-008]");
  s = spec_of("", 0);
  s.features[0] &= ~(1ull << PXG_F_METADATA);
  s.library = copy_of("loading.so", "needs-metadata.so", 0);
  CHECK(!pxg_config_new(&s, &why) && why.status == PXG_E_UNSUPPORTED, "a feature that the library requires");
  HAS(why.text, "features: found none of METADATA, expected all that the library requires [PXG-NEG-003]");
  s = spec_of("", 0);
  s.policy.fail_status = 200;
  CHECK(!pxg_config_new(&s, &why), "failure status");
  HAS(why.text, "failure status: found 200, expected 500 to 599");
  s = spec_of("", 0);
  s.filter = "third";
  CHECK(!pxg_config_new(&s, &why) && why.status == PXG_E_NOTFOUND, "filter");
  HAS(why.text, "filter: found third, expected one of first, second [PXG-CFG-001]");
  s = spec_of("", 0);
  s.library = "/no/such.so";
  CHECK(!pxg_config_new(&s, &why), "library");
  HAS(why.text,
      "guest=not loaded filter=first config=in/stance-1 file=/no/such.so: ARG (-3): /no/such.so: found \"No such file");
}

static void copies(void) {
  pxg_config_spec s = spec_of("a\0b", 3);
  static const char *const clusters[] = {"one", "two"}, *const spaces[] = {"shared"};
  char name[] = "one";
  const char *const mine[] = {name, "two"};
  (void)clusters;
  s.policy.clusters = mine, s.policy.n_clusters = 2;
  s.policy.namespaces = spaces, s.policy.n_namespaces = 1;
  s.policy.fail_open = true, s.policy.max_pending = 7;
  pxg_config *nul = pxg_config_new(&s, &why);
  name[0] = 'x';
  CHECK(nul && nul->max_body[0] == 3, "bytes with a NUL: %s", why.text);
  if (!nul) return;
  CHECK(pxg_config_may_cluster(nul, "one", 3) && !pxg_config_may_cluster(nul, "on", 2), "clusters");
  CHECK(pxg_config_may_namespace(nul, "shared", 6) && pxg_config_may_namespace(nul, "in/stance-1", 11) &&
            !pxg_config_may_namespace(nul, "other", 5),
        "namespaces");
  CHECK(nul->policy.fail_open && nul->policy.max_pending == 7 && nul->pend_ns == 5000000000u, "policy");
  CHECK(nul->max_body[1] == 1 << 20 && nul->body_mode[0] == PXG_BODY_SKIP, "presets");
  quiet();
  pxg_config *limits = make("limits"), *full = make("full");
  HAS(said, "3 guest=test guest filter=first config=in/stance-1: max_body[0] 1099511627776 is set to the host's limit "
            "67108864 [PXG-CFG-010]");
  HAS(said, "pend_ns 1152921504606846976 is set to the host's limit 60000000000");
  CHECK(limits && limits->max_body[0] == 64u << 20 && limits->pend_ns == 60000000000u, "%s", why.text);
  CHECK(full && full->n_attrs == 2 && full->n_projection == 2, "%s", why.text);
  if (!full || !limits) return;
  CHECK(full->attrs[0].id == 3 && full->attrs[0].phases == 2 && !strcmp(full->attrs[0].name, "request.id"), "attr 0");
  CHECK(full->attrs[1].id == PXG_ATTR_METADATA && !strcmp(full->attrs[1].name, "ns.key") &&
            full->attrs[1].name_len == 6 && full->attr_phases == 0x12,
        "attr 1: %s", full->attrs[1].name);
  CHECK(!strcmp(full->projection[0].name, ":path") && full->projected_phases == 6, "projection");
  CHECK(full->flags == PXG_CFG_DUPLEX && full->body_mode[0] == PXG_BODY_STREAM && full->pend_ns == 7, "members");
  pxg_config_unref(nul), pxg_config_unref(limits), pxg_config_unref(full);
  CHECK(pxg_configs_to_drop() && !pxg_configs_drop() && !pxg_configs_to_drop(), "drops");
}

static void *unref(void *c) {
  pxg_config_unref(c);
  return NULL;
}

static void lives(void) {
  pxg_config *parent = make("");
  CHECK(parent, "%s", why.text);
  if (!parent) return;
  pxg_config_spec s = spec_of("", 0);
  s.parent = parent;
  pxg_config *child = pxg_config_new(&s, &why);
  CHECK(child && child->parent == parent && child->value == parent->value + 1, "%s", why.text);
  if (!child) return;
  s.parent = child;
  CHECK(!pxg_config_new(&s, &why), "two levels");
  HAS(why.text, "parent: found an override");
  s.parent = parent, s.instance = "other";
  CHECK(!pxg_config_new(&s, &why), "another instance");
  HAS(why.text, "name: found other for an override, expected its parent's, in/stance-1");
  s = spec_of("", 0);
  s.parent = parent, s.library = copy_of("loading.so", "second.so", 0);
  CHECK(!pxg_config_new(&s, &why), "another library");
  HAS(why.text, "parent: found filter first of");
  char expected[64];
  snprintf(expected, sizeof expected, "%llu %llu\n", (unsigned long long)child->value,
           (unsigned long long)parent->value);
  pxg_config_unref(parent);
  CHECK(pxg_configs_drop() == 2, "a parent was dropped before its child");
  quiet();
  pxg_config_ref(child);
  pxg_config_unref(child);
  CHECK(!pxg_configs_to_drop(), "a reference was forgotten");
  pthread_t t;
  pthread_create(&t, NULL, unref, child);
  pthread_join(t, NULL);
  pxg_loop_thread(true);
  CHECK(pxg_configs_to_drop() && pxg_configs_drop() == SIZE_MAX, "dropped on a loop thread in spite of CONFIG_THREAD");
  pxg_loop_thread(false);
  CHECK(!pxg_configs_drop(), "left alive");
  HAS(said, expected);
  /* A value that lives cannot be given again; one that was dropped can. */
  pxg_config *first = make("taken-over");
  CHECK(first && first->value == 1, "%s", why.text);
  refused("taken", PXG_E_ARG, "config: found 1, the value of a live configuration", false);
  pxg_config_unref(first);
  refused("taken", PXG_E_ARG, "the value of a live configuration", false);
  CHECK(!pxg_configs_drop(), "left alive");
  first = make("taken");
  CHECK(first, "%s", why.text);
  pxg_config_unref(first);
  CHECK(!pxg_configs_drop(), "left alive");
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  guests = argv[1], scratch = argv[2];
  pxg_driver d = test_driver(NULL);
  CHECK(pxg_host_start(&d, &why), "%s", why.text);
  library = copy_of("loading.so", "good.so", 0);
  declarations();
  specs();
  copies();
  lives();
  return finish("configs");
}
