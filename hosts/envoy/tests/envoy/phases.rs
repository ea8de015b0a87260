//! Phases, fields, header operations.

use crate::record::values;
use crate::suite::{Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.scripts(
        "case all-phases\n\
         request_headers set x-a one\n\
         request_headers add x-many 2\n\
         request_headers delete x-gone\n\
         response_headers set x-b two\n\
         log log 2 all-phases has ended\n",
    );
    suite.test("phases::headers_both_ways", headers_both_ways);
}

fn headers_both_ways(w: &World) {
    let envoy = w.envoy();
    let fields = "x-case: all-phases\r\nx-gone: 1\r\nx-many: 1\r\n";
    let reply = envoy
        .connect("script")
        .request("GET", "/some?q=1", fields, b"");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.field("x-b"), Some("two"));
    let mirror = reply.json();
    assert_eq!(seen(&mirror, "x-a"), ["one"]);
    assert_eq!(seen(&mirror, "x-many"), ["1", "2"]);
    assert!(seen(&mirror, "x-gone").is_empty());
    let record = w.record("all-phases");
    assert_eq!(
        record.phases(),
        ["request_headers", "response_headers", "log"]
    );
    let events = record.events(1);
    assert_eq!(values(&events[0], "fields", ":path"), ["/some?q=1"]);
    envoy.wait_for_log("all-phases has ended");
}

/// What a mirror saw of one field.
pub(crate) fn seen<'a>(mirror: &'a serde_json::Value, name: &str) -> Vec<&'a str> {
    let fields = mirror["fields"].as_array().expect("fields").iter();
    fields
        .filter(|f| f[0] == name)
        .map(|f| f[1].as_str().expect("text"))
        .collect()
}
