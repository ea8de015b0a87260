/* Exports the entry, and is an executable. */
int pxg_guest_init_v1(const void *host, void *out) {
  (void)host, (void)out;
  return 0;
}
int main(void) { return 0; }
