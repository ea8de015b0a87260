/* SPDX-License-Identifier: Apache-2.0 */

/* The mutants: one switch each, which makes the host break one rule. */

#include "minihost.h"

const char *bug_name;

static const char list[] =
#include "mutants.inc"
    ;

bool bug_choose(const char *name) {
  size_t len = strlen(name);
  for (const char *line = list; line && *line; line = strchr(line, '\n'), line += !!line)
    if (!strncmp(line, "mutant ", 7) && !strncmp(line + 7, name, len) && line[7 + len] == ' ') {
      bug_name = name;
      return true;
    }
  return false;
}

void bug_list(FILE *to) { fputs(list, to); }
