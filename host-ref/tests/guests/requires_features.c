/* Requires what the host lacks: L4, WIRE_ORDER and something of the future. */
#include "guest.h"
GUEST(config_new, event_continue, {
  out->required[PXG_F_L4 / 64] |= 1ull << PXG_F_L4 % 64;
  out->required[PXG_F_WIRE_ORDER / 64] |= 1ull << PXG_F_WIRE_ORDER % 64;
  out->required[200 / 64] |= 1ull << 200 % 64;
})
