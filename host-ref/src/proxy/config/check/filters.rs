//! Filters and where routes use them.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::super::{self as config, Filter, FilterConfig, FilterUse, KeyPath};
use super::{CheckedFilter, Checker, FilterCall};
use crate::engine::{FailureMode, Policy};

impl Checker {
    pub(super) fn filter_calls(
        &mut self,
        key: &KeyPath,
        uses: &[FilterUse],
        filters: &HashMap<&str, usize>,
    ) -> Vec<FilterCall> {
        let mut calls = Vec::new();
        for (i, used) in uses.iter().enumerate() {
            let at = key.index(i);
            let Some(filter) = self.lookup(&at, "filter", used.name(), filters) else {
                continue;
            };
            let config = match used {
                FilterUse::Name(_) => None,
                FilterUse::Override(o) => {
                    Some(self.config_bytes(&at, o.config.as_ref(), o.config_file.as_deref()))
                }
            };
            calls.push(FilterCall {
                filter,
                config,
                key: at,
            });
        }
        calls
    }

    pub(super) fn filter(
        &mut self,
        key: &KeyPath,
        filter: &Filter,
        guests: &HashMap<&str, usize>,
        clusters: &HashMap<&str, usize>,
    ) -> CheckedFilter {
        for (i, name) in filter.clusters.iter().enumerate() {
            self.lookup(&key.key("clusters").index(i), "cluster", name, clusters);
        }
        for (name, time) in [
            ("pend_limit", filter.pend_limit),
            ("hold_limit", filter.hold_limit),
        ] {
            if time.0 == 0 {
                self.error(
                    &key.key(name),
                    "a filter may not hold a request for ever",
                    "write a finite time, like \"10s\"",
                );
            }
        }
        CheckedFilter {
            name: filter.name.clone(),
            guest: self
                .lookup(&key.key("guest"), "guest", &filter.guest, guests)
                .unwrap_or_default(),
            filter: filter.filter.clone(),
            config: self.config_bytes(key, filter.config.as_ref(), filter.config_file.as_deref()),
            policy: Policy {
                failure_mode: match filter.failure_mode {
                    config::FailureMode::Closed => FailureMode::Closed,
                    config::FailureMode::Open => FailureMode::Open,
                },
                pend_limit: Duration::from_millis(filter.pend_limit.0),
                hold_limit: Duration::from_millis(filter.hold_limit.0),
                max_pending: filter.max_pending,
                metadata_namespaces: filter.metadata_namespaces.clone(),
                clusters: filter.clusters.clone(),
            },
            max_body: filter.max_body.0,
            trailers: self.field_names(&key.key("trailers"), &filter.trailers),
            key: key.clone(),
        }
    }

    fn config_bytes(
        &mut self,
        key: &KeyPath,
        config: Option<&FilterConfig>,
        file: Option<&Path>,
    ) -> Vec<u8> {
        match (config, file) {
            (Some(_), Some(_)) => {
                self.error(
                    &key.key("config_file"),
                    "`config` and `config_file` are both there",
                    "keep one of them",
                );
                Vec::new()
            }
            (Some(FilterConfig::Text(text)), None) => text.clone().into_bytes(),
            (Some(FilterConfig::Table(table)), None) => {
                serde_json::to_vec(&table).unwrap_or_default()
            }
            (None, Some(file)) => {
                let path = self.path(file);
                std::fs::read(&path).unwrap_or_else(|e| {
                    self.error(
                        &key.key("config_file"),
                        format!("cannot read {}: {e}", path.display()),
                        "a relative path starts at the configuration file's folder",
                    );
                    Vec::new()
                })
            }
            (None, None) => Vec::new(),
        }
    }
}
