#include "guest.h"
static pxg_str names[1];
GUEST(config_new, event_continue, {
  names[0] = LIT("a\xff");
  out->filters = names;
})
