use super::*;

fn refused(json: &str) -> String {
    parse("edge", json.as_bytes()).unwrap_err().to_string()
}

#[test]
fn one_guest_needs_no_chain_and_gets_the_filters_name() {
    let settings = parse(
        "edge",
        br#"{"guest": "/a.so", "config": "text", "max_body": 1.5e3}"#,
    );
    let settings = settings.unwrap();
    let guest = &settings.chain[0];
    assert_eq!(
        (guest.name.as_str(), &guest.config[..]),
        ("edge", &b"text"[..])
    );
    assert_eq!(guest.max_body, 1500);
    assert_eq!(guest.pend_limit, Duration::from_secs(10));
    assert!(!guest.open && guest.batch_end && guest.warm_up && !guest.all_cpus);
}

#[test]
fn a_chain_keeps_its_order_and_its_guests_settings() {
    let settings = parse(
        "edge",
        br#"{"chain": [
            {"name": "a", "guest": "/a.so", "filter": "x", "config": {"n": 5.0, "f": 0.5, "s": [1.0]},
             "failure_mode": "open", "pend_limit": "500ms", "hold_limit": "1m", "max_pending": 7,
             "max_body": "64KiB", "metadata_namespaces": ["m"], "clusters": ["c"], "batch_end": false,
             "warm_up": false, "all_cpus": true},
            {"name": "b", "guest": "/a.so"}],
          "failure_status": 503, "strip_request_fields": ["X-User"], "cluster_field": "X-C",
          "filter_state": {"tenant": "my.tenant"}}"#,
    )
    .unwrap();
    let a = &settings.chain[0];
    // An object's fields have no order; that whole numbers are written as such shows in the text.
    let config = std::str::from_utf8(&a.config).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(config).unwrap(),
        serde_json::json!({"f": 0.5, "n": 5, "s": [1]}),
        "{config}"
    );
    assert!(
        config.contains("\"n\":5,") || config.ends_with("\"n\":5}"),
        "{config}"
    );
    assert_eq!((a.max_body, a.max_pending), (65536, 7));
    assert_eq!(a.pend_limit, Duration::from_millis(500));
    assert!(a.open && !a.batch_end && !a.warm_up && a.all_cpus);
    assert_eq!(settings.chain[1].name, "b");
    assert_eq!(
        (settings.failure_status, settings.strip[0].as_str()),
        (503, "x-user")
    );
    assert_eq!(settings.cluster_field, "x-c");
    assert_eq!(settings.filter_state["tenant"], "my.tenant");
}

#[test]
fn what_is_wrong_is_named_with_its_key_value_and_next_step() {
    for (json, expected) in [
        ("", "`filter_config`: found nothing; expected a table"),
        ("nonsense", "what is not JSON"),
        ("[]", "`filter_config`: found []; expected a table"),
        (
            r#"{"guest": "/a.so", "max_bdy": 1}"#,
            "`max_bdy`: found an unknown key",
        ),
        (
            r#"{"guest": "/a.so", "max_bdy": 1}"#,
            "Did you mean `max_body`?",
        ),
        (r#"{"name": "x"}"#, "`guest`: found nothing"),
        (
            r#"{"guest": "a.so"}"#,
            "`guest`: found \"a.so\"; expected an absolute path",
        ),
        (r#"{"chain": []}"#, "`chain`: found []"),
        (
            r#"{"chain": [{"guest": "/a.so"}]}"#,
            "`chain[0].name`: found nothing",
        ),
        (
            r#"{"chain": [{"name": "a", "guest": "/a.so"}, {"name": "a", "guest": "/a.so"}]}"#,
            "`chain[1].name`: found \"a\" a second time",
        ),
        (
            r#"{"chain": [{"name": "a", "guest": "/a.so", "pend_limit": 5}]}"#,
            "`chain[0].pend_limit`: found 5; expected a time with a unit",
        ),
        (r#"{"guest": "/a.so", "pend_limit": "0s"}"#, "`pend_limit`"),
        (
            r#"{"guest": "/a.so", "failure_mode": "ajar"}"#,
            "\"ajar\"; expected \"closed\" or \"open\"",
        ),
        (
            r#"{"guest": "/a.so", "failure_status": 404}"#,
            "a whole number from 500 to 599",
        ),
        (
            r#"{"guest": "/a.so", "max_body": "lots"}"#,
            "a number of bytes",
        ),
        (r#"{"guest": "/a.so", "clusters": "c"}"#, "a list of texts"),
        (
            r#"{"guest": "/a.so", "filter_state": {"a": 1}}"#,
            "`filter_state.a`: found 1",
        ),
    ] {
        let text = refused(json);
        assert!(text.contains(expected), "{json}: {text}");
    }
}

#[test]
fn a_configuration_may_be_the_bytes_of_a_file() {
    let bytes = b"\0\xff not text\r\n";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let path = file.path().to_str().unwrap();
    let settings = parse(
        "edge",
        format!(r#"{{"guest": "/a.so", "config_file": "{path}"}}"#).as_bytes(),
    );
    assert_eq!(settings.unwrap().chain[0].config, bytes);
    let json = format!(r#"{{"overrides": {{"a": {{"config_file": "{path}"}}}}}}"#);
    let overrides = parse_overrides(json.as_bytes()).unwrap();
    assert_eq!(overrides["a"], Override::Config(bytes.to_vec()));
    for (file, expected) in [
        (
            r#""a.conf""#,
            "`config_file`: found \"a.conf\"; expected an absolute path",
        ),
        (
            r#""/no/such""#,
            "\"/no/such\", which cannot be read (No such file",
        ),
        // It would be waited for.
        (
            r#""/dev/zero""#,
            "\"/dev/zero\", which cannot be read (not a regular file)",
        ),
        (
            r#""/etc/hosts", "config": {}"#,
            "\"/etc/hosts\" beside `config`",
        ),
        ("7", "`config_file`: found 7; expected text"),
    ] {
        let text = refused(&format!(r#"{{"guest": "/a.so", "config_file": {file}}}"#));
        assert!(text.contains(expected), "{file}: {text}");
    }
}

#[test]
fn a_route_overrides_by_name() {
    let json = br#"{"overrides": {"a": {"config": {"x": 1.0}}, "b": {"disabled": true}}}"#;
    let overrides = parse_overrides(json).unwrap();
    assert_eq!(overrides["a"], Override::Config(br#"{"x":1}"#.to_vec()));
    assert_eq!(overrides["b"], Override::Disabled);
    for (json, expected) in [
        ("{}", "`overrides`: found nothing"),
        (r#"{"overrides": {}}"#, "`overrides`: found {}"),
        (
            r#"{"overrides": {"a": {}}}"#,
            "`overrides.a`: found neither",
        ),
        (
            r#"{"overrides": {"a": {"confg": 1}}}"#,
            "Did you mean `config`?",
        ),
        (r#"{"overides": {"a": {}}}"#, "`overrides`: found nothing"),
    ] {
        let text = parse_overrides(json.as_bytes()).unwrap_err().to_string();
        assert!(text.contains(expected), "{json}: {text}");
    }
}
