/* SPDX-License-Identifier: Apache-2.0 */

/* The least that a module of nginx's can do to look at all fields of a request and set one: no ABI, no engine, no guest. What
 * it costs is nginx's own price, and so the floor of what a host of guests can reach. Built without nginx's configure: what
 * configure would generate stands below. */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

typedef struct {
  ngx_flag_t on;
} bare_conf;

extern ngx_module_t bare_module;

static void *create(ngx_conf_t *cf) {
  bare_conf *conf = ngx_pcalloc(cf->pool, sizeof(*conf));
  if (conf) { conf->on = NGX_CONF_UNSET; }
  return conf;
}

static char *merge(ngx_conf_t *cf, void *outer, void *inner) {
  (void)cf;
  ngx_conf_merge_value(((bare_conf *)inner)->on, ((bare_conf *)outer)->on, 0);
  return NGX_CONF_OK;
}

static ngx_int_t handle(ngx_http_request_t *r) {
  static u_char lower[] = "x-bench";
  ngx_table_elt_t *set = NULL;
  if (!((bare_conf *)ngx_http_get_module_loc_conf(r, bare_module))->on || r != r->main) { return NGX_DECLINED; }
  for (ngx_list_part_t *part = &r->headers_in.headers.part; part; part = part->next) {
    ngx_table_elt_t *all = part->elts;
    for (ngx_uint_t i = 0; i < part->nelts; i++) {
      if (all[i].key.len == sizeof(lower) - 1 && ngx_memcmp(all[i].lowcase_key, lower, sizeof(lower) - 1) == 0) {
        set = &all[i];
      }
    }
  }
  if (!set) {
    set = ngx_list_push(&r->headers_in.headers);
    if (!set) { return NGX_ERROR; }
    ngx_memzero(set, sizeof(*set));
    set->hash = ngx_hash_key(lower, sizeof(lower) - 1);
    set->lowcase_key = lower;
    ngx_str_set(&set->key, "x-bench");
  }
  ngx_str_set(&set->value, "0123456789abcdef");
  return NGX_DECLINED;
}

static ngx_int_t start(ngx_conf_t *cf) {
  ngx_http_core_main_conf_t *core = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
  ngx_http_handler_pt *handler = ngx_array_push(&core->phases[NGX_HTTP_ACCESS_PHASE].handlers);
  if (!handler) { return NGX_ERROR; }
  *handler = handle;
  return NGX_OK;
}

static ngx_command_t commands[] = {
    {ngx_string("bare"), NGX_HTTP_LOC_CONF | NGX_CONF_FLAG, ngx_conf_set_flag_slot, NGX_HTTP_LOC_CONF_OFFSET,
     offsetof(bare_conf, on), NULL},
    ngx_null_command,
};

static ngx_http_module_t context = {NULL, start, NULL, NULL, NULL, NULL, create, merge};

ngx_module_t bare_module = {
    NGX_MODULE_V1, &context, commands, NGX_HTTP_MODULE, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NGX_MODULE_V1_PADDING,
};

ngx_module_t *ngx_modules[] = {&bare_module, NULL};
char *ngx_module_names[] = {"bare_module", NULL};
char *ngx_module_order[] = {NULL};
