/* SPDX-License-Identifier: Apache-2.0 */

/* A look into a library's file before it is loaded (2.2 step 1). The file is read as it may be: every offset is checked,
 * and nothing of it is executed. */

#define _POSIX_C_SOURCE 200809L

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pxg_loading.h"

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#elif defined(__riscv)
#define MACHINE EM_RISCV
#else
#error "pxg_elf.c does not know the ELF number of this machine"
#endif

/* Sections and symbols are read in pieces: a Go guest is tens of megabytes, most of it of no interest. */
typedef struct file {
  const char *path;
  int fd;
  uint64_t size;
  pxg_error *why;
} file;

static bool refuse(const file *f, const char *found, const char *expected) {
  return pxg_fail(f->why, PXG_E_ARG, "%s: found %s, expected %s [PXG-LOAD-011]", f->path, found, expected);
}

static bool get(const file *f, void *to, uint64_t at, uint64_t len) {
  if (at > f->size || len > f->size - at) return false;
  for (uint8_t *p = to; len;) {
    ssize_t n = pread(f->fd, p, len, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n, at += (uint64_t)n, len -= (uint64_t)n;
  }
  return true;
}

/* A part of the file in memory of its own, with a NUL behind; null if it does not lie in the file. */
static void *take(const file *f, uint64_t at, uint64_t len) {
  if (at > f->size || len > f->size - at) return NULL;
  char *part = malloc(len + 1);
  if (part && !get(f, part, at, len)) {
    free(part);
    return NULL;
  }
  if (part) part[len] = 0;
  return part;
}

static const char *machine_name(unsigned machine) {
  static const struct {
    unsigned machine;
    const char *name;
  } names[] = {{EM_X86_64, "x86-64"}, {EM_AARCH64, "AArch64"}, {EM_386, "i386"},     {EM_ARM, "ARM"},
               {EM_RISCV, "RISC-V"},  {EM_PPC64, "ppc64"},     {EM_S390, "s390"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].machine == machine) return names[i].name;
  return "another architecture";
}

static bool header_ok(const file *f, const Elf64_Ehdr *h) {
  if (memcmp(h->e_ident, ELFMAG, SELFMAG)) return refuse(f, "a file that is not ELF", "an ELF shared object");
  if (h->e_ident[EI_CLASS] != ELFCLASS64) return refuse(f, "an ELF file that is not 64-bit", "a 64-bit one");
  if (h->e_ident[EI_DATA] != ELFDATA2LSB) return refuse(f, "a big-endian ELF file", "a little-endian one");
  if (h->e_machine != MACHINE)
    return pxg_fail(f->why, PXG_E_ARG,
                    "%s: found an object for %s (ELF machine %u), expected one for %s (%u) [PXG-LOAD-011]", f->path,
                    machine_name(h->e_machine), h->e_machine, machine_name(MACHINE), MACHINE);
  if (h->e_type == ET_EXEC)
    return refuse(f, "an executable", "a shared object: cc -shared -fPIC, or go build -buildmode=c-shared");
  if (h->e_type != ET_DYN) return refuse(f, "an ELF file of another type", "a shared object");
  if (!h->e_shnum || h->e_shentsize != sizeof(Elf64_Shdr) || h->e_shstrndx >= h->e_shnum)
    return refuse(f, "no section headers", "those of a shared object");
  return true;
}

enum symbol { MISSING, NO_FUNCTION, EXPORTED };

/* Looks for the entry in one dynamic symbol table. False: the table is damaged. */
static bool find_entry(const file *f, const Elf64_Shdr *table, const Elf64_Shdr *strings, enum symbol *found) {
  Elf64_Sym *symbols = take(f, table->sh_offset, table->sh_size);
  char *text = take(f, strings->sh_offset, strings->sh_size);
  bool ok = symbols && text;
  for (uint64_t i = 0; ok && i < table->sh_size / sizeof *symbols; i++) {
    const Elf64_Sym *s = &symbols[i];
    if (s->st_name >= strings->sh_size || strcmp(text + s->st_name, PXG_GUEST_INIT_SYMBOL)) continue;
    bool visible = ELF64_ST_VISIBILITY(s->st_other) == STV_DEFAULT || ELF64_ST_VISIBILITY(s->st_other) == STV_PROTECTED;
    if (s->st_shndx == SHN_UNDEF || ELF64_ST_BIND(s->st_info) == STB_LOCAL || !visible) continue;
    unsigned type = ELF64_ST_TYPE(s->st_info);
    if (type == STT_FUNC || type == STT_GNU_IFUNC) {
      *found = EXPORTED;
    } else if (*found == MISSING) {
      *found = NO_FUNCTION;
    }
  }
  free(symbols);
  free(text);
  return ok || refuse(f, "a damaged symbol table", "one that lies in the file");
}

static bool look(const file *f, bool *go) {
  Elf64_Ehdr h;
  if (!f->size) return refuse(f, "an empty file", "an ELF shared object");
  if (f->size < sizeof h || !get(f, &h, 0, sizeof h)) {
    char magic[SELFMAG];
    bool elf = get(f, magic, 0, sizeof magic) && !memcmp(magic, ELFMAG, SELFMAG);
    return refuse(f, elf ? "an ELF file that is cut" : "a file that is not ELF", "an ELF shared object");
  }
  if (!header_ok(f, &h)) return false;
  Elf64_Shdr *sections = take(f, h.e_shoff, (uint64_t)h.e_shnum * sizeof *sections);
  if (!sections) return refuse(f, "section headers beyond its end", "a whole file");
  const Elf64_Shdr *ns = &sections[h.e_shstrndx];
  char *names = take(f, ns->sh_offset, ns->sh_size);
  enum symbol entry = MISSING;
  bool ok = names || refuse(f, "section names beyond its end", "a whole file");
  for (unsigned i = 0; ok && i < h.e_shnum; i++) {
    const Elf64_Shdr *s = &sections[i];
    if (s->sh_name < ns->sh_size && !strcmp(names + s->sh_name, ".go.buildinfo")) *go = true;
    if (s->sh_type == SHT_DYNSYM && s->sh_link < h.e_shnum) ok = find_entry(f, s, &sections[s->sh_link], &entry);
  }
  free(names);
  free(sections);
  if (!ok || entry == EXPORTED) return ok;
  return entry == MISSING ? refuse(f, "no symbol " PXG_GUEST_INIT_SYMBOL, "a guest, which exports it")
                          : refuse(f, PXG_GUEST_INIT_SYMBOL " as data", "a function");
}

bool pxg_elf_check(const char *path, bool *go, pxg_error *why) {
  struct stat st;
  file f = {.path = path, .why = why};
  *go = false;
  /* A FIFO would keep an open for reading waiting for ever. */
  f.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (f.fd < 0 || fstat(f.fd, &st)) {
    char found[128];
    if (strerror_r(errno, found, sizeof found)) memcpy(found, "an error", sizeof "an error");
    if (f.fd >= 0) close(f.fd);
    return pxg_fail(why, PXG_E_ARG, "%s: found \"%s\", expected a file that can be read [PXG-LOAD-011]", path, found);
  }
  f.size = (uint64_t)st.st_size;
  bool ok = S_ISREG(st.st_mode) ? look(&f, go) : refuse(&f, "no regular file", "an ELF shared object");
  close(f.fd);
  return ok;
}
