/* SPDX-License-Identifier: Apache-2.0 */

#include "ngx_http_pxg.h"

static ngx_int_t ngx_http_pxg_phase(ngx_conf_t *cf, ngx_uint_t phase, ngx_http_handler_pt handler) {
  ngx_http_core_main_conf_t *cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
  ngx_http_handler_pt *h = ngx_array_push(&cmcf->phases[phase].handlers);
  if (h == NULL) return NGX_ERROR;
  *h = handler;
  return NGX_OK;
}

static ngx_int_t ngx_http_pxg_preconfiguration(ngx_conf_t *cf) {
  if (ngx_http_pxg_attributes_init(cf) != NGX_OK) return NGX_ERROR;
  if (ngx_http_pxg_routing_variables(cf) != NGX_OK) return NGX_ERROR;
  return ngx_http_pxg_add_variables(cf);
}

static ngx_int_t ngx_http_pxg_postconfiguration(ngx_conf_t *cf) {
  ngx_http_pxg_main_conf_t *m = ngx_http_conf_get_module_main_conf(cf, ngx_http_proxy_golang_module);

  /* Requests pay for what there is only. */
  if (m->strips && ngx_http_pxg_phase(cf, NGX_HTTP_PREACCESS_PHASE, ngx_http_pxg_strip_handler) != NGX_OK)
    return NGX_ERROR;
  if (m->filters.nelts == 0) return NGX_OK;
  if (ngx_http_pxg_phase(cf, NGX_HTTP_ACCESS_PHASE, ngx_http_pxg_access_handler) != NGX_OK) return NGX_ERROR;
  if (ngx_http_pxg_phase(cf, NGX_HTTP_LOG_PHASE, ngx_http_pxg_log_handler) != NGX_OK) return NGX_ERROR;
  ngx_http_pxg_request_body_init();
  ngx_http_pxg_response_init();
  ngx_http_pxg_note_file(cf);
  return ngx_http_pxg_validate(cf);
}

static ngx_http_module_t ngx_http_pxg_module_ctx = {
    ngx_http_pxg_preconfiguration,
    ngx_http_pxg_postconfiguration,
    ngx_http_pxg_create_main_conf,
    ngx_http_pxg_init_main_conf,
    NULL, /* create server configuration */
    NULL, /* merge server configuration */
    ngx_http_pxg_create_loc_conf,
    ngx_http_pxg_merge_loc_conf,
};

ngx_module_t ngx_http_proxy_golang_module = {
    NGX_MODULE_V1,
    &ngx_http_pxg_module_ctx,
    ngx_http_pxg_commands,
    NGX_HTTP_MODULE,
    NULL, /* init master */
    NULL, /* init module */
    ngx_http_pxg_init_process,
    NULL, /* init thread */
    NULL, /* exit thread */
    ngx_http_pxg_exit_process,
    NULL, /* exit master */
    NGX_MODULE_V1_PADDING,
};
