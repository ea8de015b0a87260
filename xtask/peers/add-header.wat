;; A proxy-wasm filter (ABI 0.2.1) by hand, so that nothing of an SDK is measured: it sets one field in each request.
(module
  (import "env" "proxy_replace_header_map_value"
    (func $replace (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "x-bench")
  (data (i32.const 32) "0123456789abcdef")
  ;; Bytes that the host hands over are put from 1024 on, one after the other; only configuration uses it.
  (global $top (mut i32) (i32.const 1024))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.add (global.get $top) (i32.and (i32.add (local.get $size) (i32.const 15)) (i32.const -16))))
    (local.get $at))
  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32))
  (func (export "proxy_on_vm_start") (param $context i32) (param $size i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param $context i32) (param $size i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_headers") (param $context i32) (param $fields i32) (param $end i32) (result i32)
    ;; map 0 is the request's; a field that cannot be set makes the filter trap, which shows
    (if (call $replace (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 32) (i32.const 16))
      (then (unreachable)))
    (i32.const 0)))
