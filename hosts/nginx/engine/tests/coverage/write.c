/* SPDX-License-Identifier: Apache-2.0 */

/* For `make coverage` alone, in the place of `write`: a child that validates is killed as soon as it has answered, so what
 * it reached is put down before each of its answers. */

#include <gcov.h>
#include <unistd.h>

ssize_t __real_write(int fd, const void *bytes, size_t n);
ssize_t __wrap_write(int fd, const void *bytes, size_t n);

ssize_t __wrap_write(int fd, const void *bytes, size_t n) {
  __gcov_dump();
  __gcov_reset();
  return __real_write(fd, bytes, n);
}
