/* The entry is there and not exported. */
__attribute__((visibility("hidden"))) int pxg_guest_init_v1(const void *host, void *out) {
  (void)host, (void)out;
  return 0;
}
int (*keep)(const void *, void *) = pxg_guest_init_v1;
