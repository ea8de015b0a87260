/* A strict little host for testing C guests: it loads a guest as a proxy does, lends each view in its own block of
 * memory that is freed when the call returns (so valgrind sees a late or a long read), hands in structs that are longer
 * than the guest knows, and checks what comes back. */
#ifndef PXG_TEST_HOST_H
#define PXG_TEST_HOST_H

#include "proxy_golang.h"

typedef struct th_host th_host;

/* Header fields, one "name: value" a line. */
typedef struct th_done {
  uint32_t action;     /* PXG_ACT_* */
  char headers[65536]; /* after the operations, one "name: value" a line; of the reply with REPLY */
  uint32_t status;     /* of the reply */
  char body[4096];     /* of the reply */
  char details[256];   /* of the reply */
  char error[256];     /* with ERROR */
  uint64_t n_ops;
} th_done;

/* Loads a guest and runs its init twice; ends the program with a message if that fails. */
th_host *th_load(const char *path);
/* With a limit for scratch_more in bytes. */
void th_limit(th_host *h, uint64_t bytes);
/* A configuration; 0 if it was refused, and then the text is in `error`. */
uint64_t th_configure(th_host *h, const char *filter, const char *bytes, uint64_t parent, uint64_t *subscribe,
                      char error[512]);
void th_drop(th_host *h, uint64_t config);
/* One HEADERS event. `headers`: "name: value" a line. */
void th_event(th_host *h, uint64_t config, uint32_t phase, const char *headers, th_done *done);
/* What init answers to a table with other members. */
int32_t th_init_with(th_host *h, uint32_t host_size, uint32_t major, uint32_t guest_size);
const char *th_log(th_host *h);

#endif
