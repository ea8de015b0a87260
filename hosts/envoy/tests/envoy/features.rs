//! What the host announces to guests is what the documentation says.

use std::path::Path;

use proxy_golang_abi::feature::Feature;
use serde_json::{Value, json};

use crate::config::{listener, pxg_with};
use crate::guests;
use crate::suite::{Setup, Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.listeners(listeners);
    suite.test("features::are_those_of_the_page", page);
}

fn listeners(setup: &Setup) -> Vec<Value> {
    let config = format!("record {}\nfeatures\n", setup.record.display());
    let plain = json!({ "guest": guests::script(), "config": config });
    let mut granted = plain.clone();
    granted["clusters"] = json!(["app"]);
    granted["reply_refilter"] = json!(true);
    vec![
        listener("features", vec![pxg_with("features", plain)]),
        listener(
            "features-granted",
            vec![pxg_with("features-granted", granted)],
        ),
    ]
}

fn page(w: &World) {
    let _ = w.envoy();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/host-differences.md");
    let text = std::fs::read_to_string(file).expect("the page");
    let heading = text
        .lines()
        .find(|l| l.starts_with("| feature "))
        .expect("a table");
    let column = heading
        .split('|')
        .position(|cell| cell.trim() == "Envoy")
        .expect("a column for Envoy");
    let announced = w.record("-").calls("features", 2);
    let has = |i: usize, which: &str, feature: Feature| {
        announced[i][which].as_u64().unwrap() & (1 << feature.0) != 0
    };
    for (feature, name) in Feature::ALL {
        let row = text
            .lines()
            .find(|l| l.starts_with(&format!("| {name} |")))
            .expect("a row for each feature");
        let cell = row.split('|').nth(column).expect("a cell").trim();
        let (can, without, with) = match cell {
            "yes" => (true, true, true),
            "granted" => (true, false, true),
            _ => (false, false, false),
        };
        assert_eq!(
            has(0, "host", *feature),
            can,
            "{name}: the page says {cell}"
        );
        assert_eq!(
            has(0, "config", *feature),
            without,
            "{name} without grants: the page says {cell}"
        );
        assert_eq!(
            has(1, "config", *feature),
            with,
            "{name} with grants: the page says {cell}"
        );
    }
}
