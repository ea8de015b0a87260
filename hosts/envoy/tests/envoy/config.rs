//! Configurations of Envoy, in JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

/// Name, address, and whether it speaks HTTP/2.
pub(crate) type Clusters = BTreeMap<&'static str, (SocketAddr, bool)>;

/// A string that the guest gets byte for byte.
pub(crate) fn text(config: &str) -> Value {
    json!(config)
}

/// Our filter with one guest.
///
/// What pends for a test pends until the test lets it go, also where a machine is slow: the limits are far away.
pub(crate) fn pxg(filter: &str, guest: &Path, config: Value) -> Value {
    pxg_with(
        filter,
        json!({ "guest": guest, "filter": filter, "config": config, "pend_limit": "120s", "hold_limit": "300s" }),
    )
}

/// Our filter with these settings.
pub(crate) fn pxg_with(filter: &str, settings: Value) -> Value {
    json!({
        "name": filter,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": { "name": "proxy_golang", "do_not_close": true },
            "filter_name": filter,
            "filter_config": settings_of(settings),
        },
    })
}

fn settings_of(settings: Value) -> Value {
    json!({ "@type": "type.googleapis.com/google.protobuf.Struct", "value": settings })
}

/// What a route has in `typed_per_filter_config` for a filter of ours.
pub(crate) fn per_route(filter: &str, settings: Value) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute",
        "dynamic_module_config": { "name": "proxy_golang", "do_not_close": true },
        "filter_name": filter,
        "filter_config": settings_of(settings),
    })
}

pub(crate) fn route(prefix: &str, cluster: &str) -> Value {
    json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster, "timeout": "0s" } })
}

/// To the upstream that each path is for.
pub(crate) fn routes() -> Vec<Value> {
    vec![
        route("/h2", "h2"),
        route("/upgrade", "raw"),
        route("/early", "raw"),
        route("/hints", "raw"),
        route("/continue", "raw"),
        route("/parked", "parked"),
        route("/", "app"),
    ]
}

/// A listener on a free port, with these filters before the router.
pub(crate) fn listener(name: &str, filters: Vec<Value>) -> Value {
    listener_with(name, filters, routes(), json!({}))
}

/// The same with other routes, and more in its connection manager.
pub(crate) fn listener_with(
    name: &str,
    filters: Vec<Value>,
    routes: Vec<Value>,
    more: Value,
) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_protocol_options": { "enable_trailers": true },
        "route_config": {
            "name": name,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
        },
        "http_filters": with_router(filters),
    });
    for (key, value) in more.as_object().expect("more is a table") {
        manager[key] = value.clone();
    }
    json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [
            { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager },
        ] }],
    })
}

fn with_router(mut filters: Vec<Value>) -> Vec<Value> {
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    }));
    filters
}

fn cluster(name: &str, address: SocketAddr, is_h2: bool) -> Value {
    let protocol = if is_h2 {
        json!({ "http2_protocol_options": {} })
    } else {
        json!({ "http_protocol_options": { "enable_trailers": true } })
    };
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000,
        }] },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": protocol,
        } },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": {
            "address": { "socket_address": { "address": address.ip(), "port_value": address.port() } },
        } }] }] },
    })
}

/// The whole configuration.
pub(crate) fn bootstrap(listeners: Vec<Value>, clusters: &Clusters) -> Value {
    let clusters: Vec<_> = clusters
        .iter()
        .map(|(name, (address, is_h2))| cluster(name, *address, *is_h2))
        .collect();
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}
