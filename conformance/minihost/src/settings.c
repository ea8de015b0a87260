/* SPDX-License-Identifier: Apache-2.0 */

/* The command line: what the operator says. */

#include <arpa/inet.h>

#include "minihost.h"

settings set = {
    .workers = 1,
    .pend_ms = 5000,
    .pend_limit_ms = 30000,
    .hold_time_ms = 100,
    .hold_span_ms = 30000,
    .drain_ms = 10000,
    .idle_ms = 60000,
    .max_body = 1 << 20,
    .max_body_limit = 64 << 20,
    .watermark = 256 << 10,
    .pending_cap = 4096,
    .max_ops = 4096,
    .max_fields = 256,
    .max_field_bytes = 64 << 10,
    .scratch_limit = 1 << 20,
    .max_series = 1000,
};

static const char usage[] =
    "usage: pxg-minihost --listen HOST:PORT --upstream HOST:PORT --filter PATH:FILTER:INSTANCE:FILE[:OPTION,...]\n"
    "  --workers N                                threads that serve (1)\n"
    "  --filter ...                               an instance of a filter; FILE holds the configuration's bytes; "
    "options:\n"
    "                                             open (failure mode), grant=NAMESPACE, allow=CLUSTER (none: all),\n"
    "                                             pend-limit-ms=N, hold-span-ms=N, pending-cap=N, max-body-limit=N\n"
    "  --with OPTION                              a further option of the filter before it\n"
    "  --chain PREFIX=INSTANCE[@FILE],...         the chain of paths with this prefix, each with this route's own FILE "
    "if\n"
    "                                             there is one; without any --chain: all instances in their order\n"
    "  --args FILE                                options, `NAME VALUE` a line\n"
    "  --cluster NAME=HOST:PORT                   a further upstream; --upstream is the cluster `default`\n"
    "  --route PREFIX[=NAME]                      paths with this prefix go to that cluster\n"
    "  --strip NAME                               a field that is removed from each request before the first guest\n"
    "  --admin HOST:PORT                          GET /metrics, POST /log-level/LEVEL\n"
    "  --l4                                       connections instead of HTTP\n"
    "  --pin                                      each worker stays on one processor\n"
    "  --validate                                 make each configuration with VALIDATE_ONLY, and end\n"
    "  --log-level LEVEL                          trace, debug, info, warn, error, off\n"
    "  --NUMBER N                                 pend-ms, pend-limit-ms, hold-time-ms, hold-span-ms, drain-ms, "
    "idle-ms,\n"
    "                                             max-body, max-body-limit, watermark, pending-cap,\n"
    "                                             max-ops, max-fields, max-field-bytes, scratch-limit, max-series\n"
    "  --mutant NAME, --list-mutants              break one rule\n";

static bool address(const char *text, char host[64], uint16_t *port) {
  const char *colon = strrchr(text, ':');
  struct in_addr a;
  if (!colon || colon - text > 63) return false;
  memcpy(host, text, (size_t)(colon - text));
  host[colon - text] = 0;
  char *end;
  unsigned long n = strtoul(colon + 1, &end, 10);
  *port = (uint16_t)n;
  return inet_pton(AF_INET, host, &a) == 1 && !*end && n < 65536;
}

static bool option(filter_spec *f, const char *text) {
  static const struct {
    const char *name;
    size_t at;
  } numbers[] = {{"pend-limit-ms=", offsetof(filter_spec, pend_limit_ms)},
                 {"hold-span-ms=", offsetof(filter_spec, hold_span_ms)},
                 {"pending-cap=", offsetof(filter_spec, pending_cap)},
                 {"max-body-limit=", offsetof(filter_spec, max_body_limit)}};
  if (!strcmp(text, "open") || !strcmp(text, "closed")) {
    f->open = *text == 'o';
    return true;
  }
  if (!strncmp(text, "grant=", 6)) return f->n_grants < 8 && (f->grants[f->n_grants++] = text + 6, true);
  if (!strncmp(text, "allow=", 6)) return f->n_allow < 8 && (f->allow[f->n_allow++] = text + 6, true);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    size_t n = strlen(numbers[i].name);
    if (strncmp(text, numbers[i].name, n)) continue;
    *(uint64_t *)((char *)f + numbers[i].at) = strtoull(text + n, NULL, 10);
    return true;
  }
  return false;
}

static bool add_filter(char *text) {
  filter_spec *f = zalloc(sizeof *f);
  char *save, *o;
  f->pend_limit_ms = set.pend_limit_ms;
  f->hold_span_ms = set.hold_span_ms;
  f->pending_cap = set.pending_cap;
  f->max_body_limit = set.max_body_limit;
  f->path = strtok_r(text, ":", &save);
  f->filter = strtok_r(NULL, ":", &save);
  f->instance = strtok_r(NULL, ":", &save);
  f->file = strtok_r(NULL, ":", &save);
  bool ok = f->file && set.specs->n_filters < MAX_FILTERS;
  while (ok && (o = strtok_r(NULL, ":,", &save))) ok = option(f, o);
  if (!ok) {
    free(f);
    return false;
  }
  set.specs->filters[set.specs->n_filters++] = f;
  return true;
}

static int filter_named(const char *name) {
  for (size_t i = 0; i < set.specs->n_filters; i++)
    if (!strcmp(set.specs->filters[i]->instance, name)) return (int)i;
  return -1;
}

/* `PREFIX=INSTANCE[@FILE],...`; the list may be empty. */
static bool add_chain(char *text) {
  char *list = strchr(text, '='), *save;
  if (!list || set.specs->n_chains == MAX_CHAINS) return false;
  *list++ = 0;
  chain_spec *c = &set.specs->chains[set.specs->n_chains++];
  c->prefix = text;
  for (char *name = strtok_r(list, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
    char *file = strchr(name, '@');
    if (file) *file++ = 0;
    int filter = filter_named(name);
    if (filter < 0 || c->n == MAX_PLACES) return false;
    c->filters[c->n] = filter;
    c->files[c->n++] = file;
  }
  return true;
}

static bool add_cluster(const char *name, size_t len, const char *at) {
  cluster *c = &set.clusters[set.n_clusters];
  if (set.n_clusters == 16 || len > 63 || !address(at, c->host, &c->port)) return false;
  memcpy(c->name, name, len);
  set.n_clusters++;
  return true;
}

static bool number(const char *name, const char *value) {
  static const struct {
    const char *name;
    uint64_t *at;
  } all[] = {{"pend-ms", &set.pend_ms},
             {"pend-limit-ms", &set.pend_limit_ms},
             {"hold-time-ms", &set.hold_time_ms},
             {"hold-span-ms", &set.hold_span_ms},
             {"drain-ms", &set.drain_ms},
             {"idle-ms", &set.idle_ms},
             {"max-body", &set.max_body},
             {"max-body-limit", &set.max_body_limit},
             {"watermark", &set.watermark},
             {"pending-cap", &set.pending_cap},
             {"max-ops", &set.max_ops},
             {"max-fields", &set.max_fields},
             {"max-field-bytes", &set.max_field_bytes},
             {"scratch-limit", &set.scratch_limit},
             {"max-series", &set.max_series}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (!strcmp(name, all[i].name)) {
      char *end;
      *all[i].at = strtoull(value, &end, 10);
      return *value && !*end;
    }
  return false;
}

static bool one(const char *name, char *value);

/* Options in a file: `NAME VALUE`, a line each; a name alone is a flag. Their text lives as long as the process. */
static const char *args_path;
static bool again;

static bool read_args(const char *path) {
  args_path = path;
  FILE *f = fopen(path, "r");
  if (!f) return false;
  char *line = NULL;
  size_t cap = 0;
  bool ok = true;
  while (ok && getline(&line, &cap, f) > 0) {
    line[strcspn(line, "\r\n")] = 0;
    char *name = line + strspn(line, " \t"), *value = name + strcspn(name, " \t");
    if (!*name || *name == '#') continue;
    if (*value) *value++ = 0;
    value += strspn(value, " \t");
    if (again && strcmp(name, "filter") && strcmp(name, "with") && strcmp(name, "chain")) continue;
    set.texts = must(realloc(set.texts, (set.n_texts + 1) * sizeof *set.texts));
    set.texts[set.n_texts] = copy_text(value, strlen(value));
    ok = one(name, set.texts[set.n_texts++]);
    if (!ok) fprintf(stderr, "pxg-minihost: %s: found %s %s, which is not legal\n", path, name, value);
  }
  free(line);
  fclose(f);
  return ok;
}

static bool one(const char *name, char *value) {
  char *equals = strchr(value, '=');
  if (!strcmp(name, "l4")) return set.l4 = true;
  if (!strcmp(name, "pin")) return set.pin = true;
  if (!strcmp(name, "validate")) return set.validate = true;
  if (!strcmp(name, "listen")) return set.listen = value, true;
  if (!strcmp(name, "admin")) return set.admin = value, true;
  if (!strcmp(name, "upstream")) return add_cluster("default", 7, value);
  if (!strcmp(name, "cluster")) return equals && add_cluster(value, (size_t)(equals - value), equals + 1);
  if (!strcmp(name, "filter")) return add_filter(value);
  if (!strcmp(name, "with")) return set.specs->n_filters && option(set.specs->filters[set.specs->n_filters - 1], value);
  if (!strcmp(name, "chain")) return add_chain(value);
  if (!strcmp(name, "args")) return read_args(value);
  if (!strcmp(name, "route")) {
    if (set.n_routes == 16) return false;
    if (equals) *equals = 0;
    set.routes[set.n_routes].prefix = value;
    set.routes[set.n_routes++].cluster = equals ? equals + 1 : "default";
    return true;
  }
  if (!strcmp(name, "strip")) return set.n_strip < 32 && (set.strip[set.n_strip++] = value, true);
  if (!strcmp(name, "workers")) return (set.workers = (uint32_t)atoi(value)) >= 1 && set.workers <= 64;
  if (!strcmp(name, "mutant")) return bug_choose(value);
  if (!strcmp(name, "log-level")) {
    static const char *const levels[] = {"trace", "debug", "info", "warn", "error", "off"};
    for (uint32_t i = 0; i < 6; i++)
      if (!strcmp(value, levels[i])) return page.log_level = i, true;
    return false;
  }
  return number(name, value);
}

bool settings_reload(void) {
  if (!args_path) return true;
  specs *old = set.specs;
  set.specs = zalloc(sizeof *set.specs);
  again = true;
  bool ok = read_args(args_path);
  if (ok) {
    set.specs->before = old;
  } else {
    set.specs->before = old->before;
    old->before = set.specs;
    set.specs = old;
  }
  return ok;
}

bool settings_read(int argc, char **argv) {
  set.specs = zalloc(sizeof *set.specs);
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (strncmp(name, "--", 2)) {
      fprintf(stderr, "pxg-minihost: found %s, expected an option\n%s", name, usage);
      return false;
    }
    name += 2;
    if (!strcmp(name, "list-mutants")) {
      bug_list(stdout);
      exit(0);
    }
    if (!strcmp(name, "version")) {
      puts("pxg-minihost 1.0.0");
      exit(0);
    }
    if (!strcmp(name, "help")) {
      fputs(usage, stdout);
      exit(0);
    }
    if (!strcmp(name, "l4") || !strcmp(name, "validate")) {
      one(name, NULL);
    } else if (++i == argc || !one(name, argv[i])) {
      fprintf(stderr, "pxg-minihost: --%s: found %s, which is not legal there\n%s", name,
              i < argc ? argv[i] : "nothing", usage);
      return false;
    }
  }
  if (!set.validate && (!set.listen || !cluster_find("default", 7))) {
    fprintf(stderr, "pxg-minihost: expected --listen and --upstream\n%s", usage);
    return false;
  }
  return true;
}

cluster *cluster_find(const char *name, size_t len) {
  for (size_t i = 0; i < set.n_clusters; i++)
    if (strlen(set.clusters[i].name) == len && !memcmp(set.clusters[i].name, name, len)) return &set.clusters[i];
  return NULL;
}

cluster *route_of(const char *path) {
  const char *name = "default";
  size_t best = 0;
  for (size_t i = 0; i < set.n_routes; i++) {
    size_t n = strlen(set.routes[i].prefix);
    if (n >= best && !strncmp(path, set.routes[i].prefix, n)) name = set.routes[i].cluster, best = n;
  }
  return cluster_find(name, strlen(name));
}

void settings_free(void) {
  for (specs *s = set.specs, *before; s; s = before) {
    before = s->before;
    for (size_t i = 0; i < s->n_filters; i++) free(s->filters[i]);
    free(s);
  }
  for (size_t i = 0; i < set.n_texts; i++) free(set.texts[i]);
  free(set.texts);
}
