/* SPDX-License-Identifier: Apache-2.0 */

/* The module's own file. nginx keeps it mapped from its start on, whatever happens to it on disk. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "ngx_http_pxg.h"

#include <dlfcn.h>

/* nginx unloads its modules at the end of a process, while threads of guests still call this one. */
void ngx_http_pxg_pin(void) {
  Dl_info me;
  if (dladdr(&ngx_http_proxy_golang_module, &me)) (void)dlopen(me.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

/* `load_module` of a path that is loaded is no load: what a package brings comes with a new process only. */
void ngx_http_pxg_note_file(ngx_conf_t *cf) {
  static dev_t device;
  static ino_t inode;
  struct stat now;
  Dl_info me;

  if (!dladdr(&ngx_http_proxy_golang_module, &me)) return;
  if (stat(me.dli_fname, &now) == -1) {
    ngx_log_error(
        NGX_LOG_WARN, cf->log, ngx_errno,
        "proxy_golang: the module's file \"%s\" is not there any more, nginx goes on with version %s that it has "
        "loaded and could not start again",
        me.dli_fname, NGX_HTTP_PXG_VERSION);
    return;
  }
  if (inode == 0) device = now.st_dev, inode = now.st_ino;
  if (device == now.st_dev && inode == now.st_ino) return;
  ngx_log_error(
      NGX_LOG_WARN, cf->log, 0,
      "proxy_golang: \"%s\" is another file than the one that nginx has loaded, a reload goes on with version %s of "
      "the old one: restart nginx, or upgrade it (SIGUSR2)",
      me.dli_fname, NGX_HTTP_PXG_VERSION);
}
