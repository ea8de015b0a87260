/* Some library. */
int answer(void) { return 42; }
