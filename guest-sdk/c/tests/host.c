#include "host.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TAIL 64
#define MAX_FIELDS 2048
#define SCRATCH 4096

struct th_host {
  struct {
    pxg_host table;
    uint8_t tail[TAIL];
  } host;
  pxg_page page;
  pxg_guest guest;
  pxg_guest_init_v1_fn init;
  uint64_t limit, taken;
  void *blocks[64];
  int n_blocks, in_call;
  char log[4096];
};

static void die(const char *what, const char *why) {
  fprintf(stderr, "test host: %s: %s\n", what, why);
  exit(1);
}

static pxg_str text(const char *s) {
  pxg_str out;
  out.ptr = (const uint8_t *)s;
  out.len = (uint32_t)strlen(s);
  out.flags = 0;
  return out;
}

/* A view in a block of exactly its size. */
static pxg_str view(const char *s, size_t n) {
  pxg_str out;
  uint8_t *p = NULL;
  if (n) {
    p = malloc(n);
    memcpy(p, s, n);
  }
  out.ptr = p;
  out.len = (uint32_t)n;
  out.flags = 0;
  return out;
}

static void copy_text(char *out, size_t cap, pxg_str s) {
  size_t n = s.len < cap - 1 ? s.len : cap - 1;
  if (n) memcpy(out, s.ptr, n);
  out[n] = 0;
}

static uint8_t *scratch_more(uint64_t ctx, uint64_t n) {
  th_host *h = (th_host *)(uintptr_t)ctx;
  if (!h->in_call) die("PXG-MEM", "scratch_more outside a call");
  if (n > h->limit - h->taken || h->n_blocks == 64) return NULL;
  h->taken += n;
  return h->blocks[h->n_blocks++] = calloc(1, n ? n : 1);
}

static void write_log(uint64_t ctx, uint32_t level, const uint8_t *p, uint64_t n) {
  th_host *h = (th_host *)(uintptr_t)ctx;
  size_t used = strlen(h->log);
  snprintf(h->log + used, sizeof h->log - used, "%u %.*s\n", level, (int)n, (const char *)p);
}

const char *th_log(th_host *h) { return h->log; }
void th_limit(th_host *h, uint64_t bytes) { h->limit = bytes; }

static void call_ends(th_host *h) {
  while (h->n_blocks) free(h->blocks[--h->n_blocks]);
  h->taken = 0;
  h->in_call = 0;
}

int32_t th_init_with(th_host *h, uint32_t host_size, uint32_t major, uint32_t guest_size) {
  pxg_host table = h->host.table;
  pxg_guest guest;
  memset(&guest, 0, sizeof guest);
  guest.size = guest_size;
  table.size = host_size;
  table.major = major;
  return h->init(&table, &guest);
}

th_host *th_load(const char *path) {
  th_host *h = calloc(1, sizeof *h);
  void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  int again;
  if (lib == NULL) die("dlopen", dlerror());
  *(void **)&h->init = dlsym(lib, "pxg_guest_init_v1");
  if (h->init == NULL) die(path, "no symbol pxg_guest_init_v1");
  memset(h->host.tail, 0xee, TAIL);
  h->host.table.size = sizeof h->host;
  h->host.table.major = PXG_VERSION_MAJOR;
  h->host.table.minor = PXG_VERSION_MINOR + 7;
  h->host.table.name = text("test host");
  h->host.table.version = text("1");
  h->host.table.ctx = (uint64_t)(uintptr_t)h;
  h->host.table.page = &h->page;
  h->host.table.log = write_log;
  h->host.table.scratch_more = scratch_more;
  h->page.size = sizeof h->page;
  h->page.log_level = PXG_LOG_DEBUG;
  h->limit = 1 << 20;
  for (again = 0; again < 2; again++) {
    struct {
      pxg_guest table;
      uint8_t tail[TAIL];
    } guest;
    uint64_t i;
    memset(&guest, 0, sizeof guest);
    memset(guest.tail, 0xee, TAIL);
    guest.table.size = sizeof guest;
    if (h->init(&h->host.table, &guest.table) != PXG_OK) die(path, "init failed");
    for (i = 0; i < TAIL; i++) {
      if (guest.tail[i] != 0xee) die("PXG-ABI-004", "init wrote beyond its table");
    }
    if (again && guest.table.ctx != h->guest.ctx) die("PXG-LOAD-006", "init is not idempotent");
    h->guest = guest.table;
  }
  return h;
}

uint64_t th_configure(th_host *h, const char *filter, const char *bytes, uint64_t parent, uint64_t *subscribe,
                      char error[512]) {
  struct {
    pxg_config_in in;
    uint8_t tail[TAIL];
  } in;
  struct {
    pxg_config_out out;
    uint8_t tail[TAIL];
  } out;
  int32_t status;
  int i;
  memset(&in, 0, sizeof in);
  memset(in.tail, 0xee, TAIL);
  in.in.size = sizeof in;
  in.in.filter = view(filter, strlen(filter));
  in.in.name = view("test", 4);
  in.in.bytes = view(bytes, strlen(bytes));
  in.in.parent = parent;
  memset(&out, 0, sizeof out);
  memset(out.tail, 0xee, TAIL);
  out.out.size = sizeof out.out;
  out.out.scratch = malloc(SCRATCH);
  out.out.scratch_cap = SCRATCH;
  h->in_call = 1;
  status = h->guest.on_config_new(h->guest.ctx, &in.in, &out.out);
  for (i = 0; i < TAIL; i++) {
    if (out.tail[i] != 0xee) die("PXG-ABI-004", "on_config_new wrote beyond its struct");
  }
  copy_text(error, 512, out.out.error);
  free((void *)(uintptr_t)in.in.filter.ptr);
  free((void *)(uintptr_t)in.in.name.ptr);
  free((void *)(uintptr_t)in.in.bytes.ptr);
  free(out.out.scratch);
  call_ends(h);
  if (status < 0) {
    if (error[0] == 0) die("PXG-CFG-001", "a refusal without a text");
    return 0;
  }
  if (out.out.config == 0) die("PXG-CFG", "0 is never a legal configuration");
  if (subscribe) *subscribe = out.out.subscribe;
  return out.out.config;
}

void th_drop(th_host *h, uint64_t config) { h->guest.on_config_drop(h->guest.ctx, config); }

/* The header list that operations are applied to. */
typedef struct list {
  char *name[MAX_FIELDS], *value[MAX_FIELDS];
  int n;
} list;

static char *dup_text(pxg_str s) {
  char *p = malloc(s.len + 1);
  copy_text(p, s.len + 1, s);
  return p;
}

static void list_remove(list *l, int i) {
  free(l->name[i]);
  free(l->value[i]);
  l->n--;
  memmove(l->name + i, l->name + i + 1, (size_t)(l->n - i) * sizeof *l->name);
  memmove(l->value + i, l->value + i + 1, (size_t)(l->n - i) * sizeof *l->value);
}

static void list_add(list *l, char *name, char *value) {
  if (l->n == MAX_FIELDS) die("test host", "too many fields");
  l->name[l->n] = name;
  l->value[l->n++] = value;
}

static void apply(list *l, const pxg_op *op) {
  char *name = dup_text(op->key), *value = dup_text(op->val.bytes);
  int i;
  if (op->target != PXG_TARGET_HEADERS) die("PXG-ABI-005", "a target other than the headers");
  if (op->kind == PXG_OP_HEADER_SET || op->kind == PXG_OP_HEADER_DELETE) {
    for (i = l->n - 1; i >= 0; i--) {
      if (strcmp(l->name[i], name) == 0) list_remove(l, i);
    }
  }
  if (op->kind == PXG_OP_HEADER_SET || op->kind == PXG_OP_HEADER_ADD) {
    list_add(l, name, value);
    return;
  }
  if (op->kind != PXG_OP_HEADER_DELETE) die("test host", "an operation that headers do not have");
  free(name);
  free(value);
}

void th_event(th_host *h, uint64_t config, uint32_t phase, const char *headers, th_done *done) {
  struct {
    pxg_event ev;
    uint8_t tail[TAIL];
  } ev;
  struct {
    pxg_result out;
    uint8_t tail[TAIL];
  } out;
  list l;
  uint64_t n = 0, i;
  pxg_field *fields;
  const char *p;
  int k;

  memset(done, 0, sizeof *done);
  l.n = 0;
  fields = malloc(sizeof *fields * MAX_FIELDS);
  for (p = headers; *p;) {
    const char *end = strchr(p, '\n'), *colon = strstr(p, ": ");
    fields[n].name = view(p, (size_t)(colon - p));
    fields[n].value = view(colon + 2, (size_t)(end - colon - 2));
    list_add(&l, dup_text(fields[n].name), dup_text(fields[n].value));
    n++;
    p = end + 1;
  }
  fields = realloc(fields, n ? n * sizeof *fields : 1);

  memset(&ev, 0, sizeof ev);
  memset(ev.tail, 0xee, TAIL);
  ev.ev.size = sizeof ev;
  ev.ev.phase = phase;
  ev.ev.flags = PXG_EV_END_STREAM | PXG_EV_CAN_REPLY;
  ev.ev.config = config;
  ev.ev.user = 0;
  ev.ev.stream = 1;
  ev.ev.fields = fields;
  ev.ev.n_fields = n;
  memset(&out, 0, sizeof out);
  memset(out.tail, 0xee, TAIL);
  out.out.size = sizeof out.out;
  out.out.scratch_ops = calloc(32, sizeof(pxg_op));
  out.out.scratch_ops_cap = 32;
  out.out.scratch = malloc(SCRATCH);
  out.out.scratch_cap = SCRATCH;
  memset(out.out.scratch, 0xa5, SCRATCH);

  h->in_call = 1;
  h->guest.on_event(h->guest.ctx, &ev.ev, &out.out);
  for (i = 0; i < TAIL; i++) {
    if (out.tail[i] != 0xee) die("PXG-ABI-004", "on_event wrote beyond its result");
  }

  done->action = out.out.action;
  done->n_ops = out.out.n_ops;
  copy_text(done->error, sizeof done->error, out.out.error);
  if (out.out.action == PXG_ACT_REPLY) {
    const pxg_reply *r = out.out.reply;
    size_t used = 0;
    if (r == NULL || r->size != sizeof *r) die("PXG-ABI-002", "a reply without its size");
    done->status = r->status;
    copy_text(done->details, sizeof done->details, r->details);
    for (i = 0; i < r->n_fields; i++) {
      used += (size_t)snprintf(done->headers + used, sizeof done->headers - used, "%.*s: %.*s\n",
                               (int)r->fields[i].name.len, (const char *)r->fields[i].name.ptr,
                               (int)r->fields[i].value.len, (const char *)r->fields[i].value.ptr);
    }
    for (i = 0, used = 0; i < r->n_body; i++) {
      used += (size_t)snprintf(done->body + used, sizeof done->body - used, "%.*s", (int)r->body[i].bytes.len,
                               (const char *)r->body[i].bytes.ptr);
    }
  } else {
    size_t used = 0;
    for (i = 0; i < out.out.n_ops; i++) apply(&l, &out.out.ops[i]);
    for (k = 0; k < l.n; k++) {
      used += (size_t)snprintf(done->headers + used, sizeof done->headers - used, "%s: %s\n", l.name[k], l.value[k]);
    }
  }
  while (l.n) list_remove(&l, l.n - 1);
  for (i = 0; i < n; i++) {
    free((void *)(uintptr_t)fields[i].name.ptr);
    free((void *)(uintptr_t)fields[i].value.ptr);
  }
  free(fields);
  free(out.out.scratch_ops);
  free(out.out.scratch);
  call_ends(h);
}
