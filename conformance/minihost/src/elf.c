/* SPDX-License-Identifier: Apache-2.0 */

/* A look into a library's file before it is loaded (spec/02-loading, 2.2 step 1). */

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "minihost.h"

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#elif defined(__riscv)
#define MACHINE EM_RISCV
#else
#error "add this machine's ELF number"
#endif

static char *fault(const char *path, const char *found, const char *expected) {
  char *text = NULL;
  if (asprintf(&text, "%s: found %s, expected %s [PXG-LOAD-011]", path, found, expected) < 0) abort();
  return text;
}

/* A part of the file, or NULL if it does not lie in it. */
static const void *part(const uint8_t *file, size_t size, uint64_t at, uint64_t len) {
  return at <= size && len <= size - at ? file + at : NULL;
}

static char *look(const char *path, const uint8_t *file, size_t size, bool *go) {
  const Elf64_Ehdr *h = part(file, size, 0, sizeof *h);
  if (!h || memcmp(h->e_ident, ELFMAG, SELFMAG)) return fault(path, "a file that is not ELF", "an ELF shared object");
  if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_type != ET_DYN)
    return fault(path, "another kind of ELF file", "a 64-bit ELF shared object");
  if (h->e_machine != MACHINE) {
    char found[64];
    snprintf(found, sizeof found, "an object for ELF machine %u", h->e_machine);
    char expected[64];
    snprintf(expected, sizeof expected, "ELF machine %u", MACHINE);
    return fault(path, found, expected);
  }
  const Elf64_Shdr *sections = part(file, size, h->e_shoff, (uint64_t)h->e_shnum * sizeof *sections);
  if (!sections || h->e_shstrndx >= h->e_shnum) return fault(path, "no section headers", "those of a shared object");
  const Elf64_Shdr *names = &sections[h->e_shstrndx];
  bool exported = false;
  for (unsigned i = 0; i < h->e_shnum; i++) {
    const Elf64_Shdr *s = &sections[i];
    const char *name = s->sh_name < names->sh_size ? part(file, size, names->sh_offset + s->sh_name, 1) : NULL;
    if (name && !strncmp(name, ".go.buildinfo", size - (size_t)((const uint8_t *)name - file))) *go = true;
    if (s->sh_type != SHT_DYNSYM || s->sh_link >= h->e_shnum) continue;
    const Elf64_Shdr *strings = &sections[s->sh_link];
    const char *text = part(file, size, strings->sh_offset, strings->sh_size);
    const Elf64_Sym *symbols = part(file, size, s->sh_offset, s->sh_size);
    if (!text || !symbols) return fault(path, "a damaged symbol table", "one that lies in the file");
    for (uint64_t k = 0; k < s->sh_size / sizeof *symbols; k++)
      if (symbols[k].st_shndx != SHN_UNDEF && symbols[k].st_name < strings->sh_size &&
          strings->sh_size - symbols[k].st_name > strlen(PXG_GUEST_INIT_SYMBOL) &&
          !strcmp(text + symbols[k].st_name, PXG_GUEST_INIT_SYMBOL))
        exported = true;
  }
  return exported ? NULL : fault(path, "no symbol " PXG_GUEST_INIT_SYMBOL, "a guest, which exports it");
}

char *elf_check(const char *path, bool *go) {
  *go = false;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat st;
  if (fd < 0 || fstat(fd, &st)) {
    char *text = fault(path, strerror(errno), "a file that can be read");
    if (fd >= 0) close(fd);
    return text;
  }
  char *why = NULL;
  const uint8_t *file = st.st_size ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  if (file == MAP_FAILED) {
    why = fault(path, "an empty file", "an ELF shared object");
  } else {
    why = look(path, file, (size_t)st.st_size, go);
    munmap((void *)(uintptr_t)file, (size_t)st.st_size);
  }
  close(fd);
  return why;
}
