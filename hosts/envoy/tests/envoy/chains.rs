//! Several guests in one filter, several filters in one chain, and what routes have of their own.

use serde_json::{Value, json};

use crate::config::{listener, listener_with, per_route, pxg_with, route};
use crate::guests;
use crate::phases::{pxg_named, seen};
use crate::suite::{Setup, Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.listeners(listeners);
    suite.test("chains::several_guests_in_one_filter", one_filter);
    suite.test("chains::several_filters", several_filters);
    suite.test("chains::guests_in_three_languages", languages);
    suite.test("chains::a_routes_own_configuration", routes);
}

/// Each adds its name to both messages.
fn adds(name: &str) -> String {
    format!(
        "case *\nrequest_headers add x-order {name}\nresponse_headers add x-order {name}\nlog log 0 .\n"
    )
}

fn listeners(_: &Setup) -> Vec<Value> {
    let script = guests::script();
    let place = |name: &str| json!({ "guest": script, "filter": "script", "name": name, "config": adds(name) });
    let inside = pxg_with(
        "chain",
        json!({ "chain": [place("a"), place("b"), place("c")] }),
    );
    let outside: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| pxg_named(name, &script, &adds(name)))
        .collect();
    let languages = vec![
        pxg_with(
            "trace-id",
            json!({ "guest": guests::go(), "filter": "trace-id", "config": {} }),
        ),
        pxg_with(
            "header-policy",
            json!({ "guest": guests::header_policy(), "config": "request set x-plan gold\n" }),
        ),
        pxg_with(
            "body-rewrite",
            json!({ "guest": guests::rust(), "filter": "body-rewrite", "config": {
                "content_types": ["application/json"], "replace": [{ "from": "gold", "to": "silver" }],
            } }),
        ),
    ];
    let policy = pxg_with(
        "header-policy",
        json!({ "guest": guests::header_policy(), "config": "request set x-plan gold\nresponse set x-by all\n" }),
    );
    let of_route = |prefix: &str, config: &str| {
        let mut route = route(prefix, "app");
        route["typed_per_filter_config"] = json!({
            "header-policy": per_route("header-policy", json!({ "overrides": { "header-policy": { "config": config } } })),
        });
        route
    };
    let mut disabled = route("/disabled", "app");
    disabled["typed_per_filter_config"] = json!({
        "header-policy": per_route("header-policy", json!({ "overrides": { "header-policy": { "disabled": true } } })),
    });
    vec![
        listener("inside", vec![inside]),
        listener("outside", outside),
        listener("languages", languages),
        listener_with(
            "per-route",
            vec![policy],
            vec![
                of_route("/override", "request set x-plan silver\n"),
                of_route("/inherit", "inherit\nrequest set x-more 1\n"),
                disabled,
                route("/", "app"),
            ],
            json!({}),
        ),
    ]
}

fn orders(w: &World, listener: &str) -> (Vec<String>, Vec<String>) {
    let reply = w.envoy().connect(listener).get("/");
    let response = reply
        .fields
        .iter()
        .filter(|(n, _)| n == "x-order")
        .map(|(_, v)| v.clone())
        .collect();
    let request = seen(&reply.json(), "x-order")
        .into_iter()
        .map(ToOwned::to_owned)
        .collect();
    (request, response)
}

fn one_filter(w: &World) {
    let (request, response) = orders(w, "inside");
    assert_eq!(
        (request.join(""), response.join("")),
        ("abc".into(), "cba".into())
    );
}

fn several_filters(w: &World) {
    let (request, response) = orders(w, "outside");
    assert_eq!(
        (request.join(""), response.join("")),
        ("abc".into(), "cba".into())
    );
}

fn languages(w: &World) {
    let reply = w.envoy().connect("languages").get("/");
    let mirror = reply.json();
    assert_eq!(
        reply.field("x-trace-id"),
        seen(&mirror, "x-trace-id").first().copied()
    );
    // The upstream got gold, and what it said of that was rewritten.
    assert_eq!(seen(&mirror, "x-plan"), ["silver"]);
}

fn routes(w: &World) {
    let ask = |path: &str| {
        let reply = w.envoy().connect("per-route").get(path);
        let mirror = reply.json();
        let field = |name: &str| seen(&mirror, name).first().map(|v| (*v).to_owned());
        (
            field("x-plan"),
            field("x-more"),
            reply.field("x-by").map(ToOwned::to_owned),
        )
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(ask("/other"), (some("gold"), None, some("all")));
    assert_eq!(ask("/override"), (some("silver"), None, None));
    assert_eq!(ask("/disabled"), (None, None, None));
    assert_eq!(ask("/inherit"), (some("gold"), some("1"), some("all")));
}
