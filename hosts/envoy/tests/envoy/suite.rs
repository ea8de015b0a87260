//! Which tests there are, and the proxies that they share.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

use crate::config::{self, Clusters};
use crate::envoy::{Envoy, VERSIONS};
use crate::guests;
use crate::origin::Origins;
use crate::record::Record;

type Run = fn(&World);

#[derive(Default)]
pub(crate) struct Suite {
    /// Name, whether it is long, and the test.
    tests: Vec<(String, bool, Run)>,
    /// Made when the file for records is known.
    listeners: Vec<fn(&Setup) -> Vec<Value>>,
    /// The scripts of the listener `script`.
    scripts: Vec<&'static str>,
}

/// What a configuration is made of.
pub(crate) struct Setup {
    pub(crate) record: PathBuf,
    pub(crate) clusters: Clusters,
}

impl Suite {
    pub(crate) fn test(&mut self, name: &str, run: Run) {
        self.tests.push((name.to_owned(), false, run));
    }

    /// One that `cargo test -- --ignored` runs.
    pub(crate) fn long_test(&mut self, name: &str, run: Run) {
        self.tests.push((name.to_owned(), true, run));
    }

    /// Listeners of the shared proxy.
    pub(crate) fn listeners(&mut self, listeners: fn(&Setup) -> Vec<Value>) {
        self.listeners.push(listeners);
    }

    /// Cases of the shared proxy's listener `script`, whose one filter runs them.
    pub(crate) fn scripts(&mut self, scripts: &'static str) {
        self.scripts.push(scripts);
    }

    pub(crate) fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        // The machine's processors are for the proxies, too.
        arguments.test_threads.get_or_insert(4);
        let origins = Arc::new(Origins::start());
        let shared = Arc::new(Shared {
            listeners: self.listeners,
            scripts: self.scripts.concat(),
        });
        let worlds: Vec<_> = VERSIONS
            .iter()
            .map(|version| Arc::new(World::new(version, &origins, &shared)))
            .collect();
        let mut trials = Vec::new();
        for world in &worlds {
            for (name, is_long, run) in &self.tests {
                let (world, run) = (Arc::clone(world), *run);
                let name = format!("{}::{name}", world.version);
                let trial = Trial::test(name, move || {
                    let _shown = ShownIfItFails(&world);
                    run(&world);
                    Ok(())
                });
                trials.push(trial.with_ignored_flag(*is_long));
            }
        }
        let conclusion = libtest_mimic::run(&arguments, trials);
        // The trials have gone, and the proxies end with the last that refers to them.
        drop(worlds);
        conclusion.exit_code()
    }
}

struct Shared {
    listeners: Vec<fn(&Setup) -> Vec<Value>>,
    scripts: String,
}

/// What a test works with: a version of Envoy, and its shared proxy.
pub(crate) struct World {
    pub(crate) version: &'static str,
    pub(crate) origins: Arc<Origins>,
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
    envoy: OnceLock<Envoy>,
    starting: Mutex<()>,
}

impl World {
    fn new(version: &'static str, origins: &Arc<Origins>, shared: &Arc<Shared>) -> Self {
        Self {
            version,
            origins: Arc::clone(origins),
            shared: Arc::clone(shared),
            folder: tempfile::tempdir().expect("a folder for temporary files"),
            envoy: OnceLock::new(),
            starting: Mutex::default(),
        }
    }

    pub(crate) fn setup(&self) -> Setup {
        Setup {
            record: self.folder.path().join("record.jsonl"),
            clusters: self.origins.clusters(),
        }
    }

    /// What the scripts wrote down about the streams of a case in the shared proxy.
    pub(crate) fn record(&self, case: &'static str) -> Record {
        Record::new(self.setup().record, case)
    }

    /// The shared proxy; the first that asks starts it.
    pub(crate) fn envoy(&self) -> &Envoy {
        let _one: MutexGuard<'_, ()> = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        self.envoy.get_or_init(|| {
            let setup = self.setup();
            let script = format!(
                "record {}\ncounter script_hits\n{}",
                setup.record.display(),
                self.shared.scripts
            );
            let filter = config::pxg("script", &guests::script(), config::text(&script));
            let mut listeners = vec![config::listener("script", vec![filter])];
            for more in &self.shared.listeners {
                listeners.extend(more(&setup));
            }
            Envoy::start(self.version, &config::bootstrap(listeners, &setup.clusters))
        })
    }
}

/// Shows the end of the shared proxy's log when a test fails: then, so that the failures are the last that is printed.
struct ShownIfItFails<'a>(&'a World);

impl Drop for ShownIfItFails<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(envoy) = self.0.envoy.get()
        {
            let version = self.0.version;
            eprintln!(
                "the shared Envoy {version} logged at last:\n{}",
                envoy.log_end()
            );
        }
    }
}
