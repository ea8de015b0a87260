#include "guest.h"
static pxg_str names[2];
GUEST(config_new, event_continue, {
  names[0] = names[1] = LIT("auth");
  out->filters = names;
  out->n_filters = 2;
})
