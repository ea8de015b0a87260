//! A real Envoy as a child process: started on free ports, asked over its admin listener, ended in every case.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::{Client, Reply};
use crate::guests;
use crate::support::until;

/// The releases that are tested, as `cargo xtask test --only envoy` brings them.
pub(crate) const VERSIONS: [&str; 2] = ["1.39.3", "1.40.0"];

/// Names the folder that has a folder with the program `envoy` for each version.
const FOLDER: &str = "PXG_ENVOY_DIR";

/// The program of a version.
fn program(version: &str) -> PathBuf {
    let mut tried = Vec::new();
    let given = std::env::var_os(FOLDER).map(PathBuf::from);
    // Cargo's target folder is two above this program's; another one may be set for this build alone.
    let this = std::env::current_exe().expect("the path of this program");
    let built = this.ancestors().nth(3).map(|target| target.join("envoy"));
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/envoy");
    for folder in [given, built, Some(usual)].into_iter().flatten() {
        let program = folder.join(version).join("envoy");
        if program.is_file() {
            return program;
        }
        tried.push(program.display().to_string());
    }
    panic!(
        "there is no Envoy {version}, looked for as {}: `cargo xtask test --only envoy` brings it and runs these tests; \
         {FOLDER} names another folder",
        tried.join(", ")
    )
}

/// Envoy with our module on its search path.
pub(crate) fn command(version: &str) -> Command {
    let mut command = Command::new(program(version));
    command
        .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", guests::module_folder())
        .stdin(Stdio::null());
    command
}

/// A running Envoy. It is killed when this is dropped.
pub(crate) struct Envoy {
    child: Child,
    folder: tempfile::TempDir,
    admin: SocketAddr,
    listeners: HashMap<String, SocketAddr>,
}

impl Envoy {
    /// Starts it with two workers and waits until it serves.
    pub(crate) fn start(version: &str, config: &Value) -> Self {
        Self::start_with(
            version,
            config,
            &["--disable-hot-restart", "--concurrency", "2"],
        )
    }

    pub(crate) fn start_with(version: &str, config: &Value, flags: &[&str]) -> Self {
        Self::start_in(version, config, flags, &[])
    }

    /// With this in its environment.
    pub(crate) fn start_in(
        version: &str,
        config: &Value,
        flags: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, config.to_string()).expect("write the configuration");
        Self::start_process(version, &file, folder, flags, environment)
    }

    /// With a configuration that is there already.
    pub(crate) fn start_file(
        version: &str,
        config: &Path,
        folder: tempfile::TempDir,
        flags: &[&str],
    ) -> Self {
        Self::start_process(version, config, folder, flags, &[])
    }

    fn start_process(
        version: &str,
        config: &Path,
        folder: tempfile::TempDir,
        flags: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).expect("a file for Envoy's log");
        let admin = folder.path().join("admin");
        let child = command(version)
            .arg("-c")
            .arg(config)
            .arg("--admin-address-path")
            .arg(&admin)
            .args([
                "-l",
                "warning",
                "--component-log-level",
                "dynamic_modules:debug",
            ])
            .args(flags)
            .envs(environment.iter().copied())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .expect("start Envoy");
        let mut envoy = Self {
            child,
            folder,
            admin: ([127, 0, 0, 1], 0).into(),
            listeners: HashMap::new(),
        };
        until("Envoy has an admin listener", || {
            envoy.still_runs();
            let text = std::fs::read_to_string(&admin).unwrap_or_default();
            text.trim().parse().is_ok_and(|address| {
                envoy.admin = address;
                true
            })
        });
        until("Envoy is ready", || {
            envoy.still_runs();
            // It says where the admin listener is before that accepts.
            if TcpStream::connect(envoy.admin).is_err() {
                return false;
            }
            envoy.admin("GET", "/ready").status == 200
        });
        envoy.read_listeners();
        envoy
    }

    /// Asks for the addresses of all listeners.
    pub(crate) fn read_listeners(&mut self) {
        let listeners = self.admin("GET", "/listeners?format=json").json();
        for listener in listeners["listener_statuses"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let socket = &listener["local_address"]["socket_address"];
            let name = listener["name"]
                .as_str()
                .expect("a listener has a name")
                .to_owned();
            let port = socket["port_value"]
                .as_u64()
                .and_then(|p| u16::try_from(p).ok());
            let port = port.unwrap_or_else(|| panic!("no port: {listener}"));
            self.listeners.insert(name, ([127, 0, 0, 1], port).into());
        }
    }

    fn still_runs(&mut self) {
        if let Some(status) = self.child.try_wait().expect("ask for the state of Envoy") {
            panic!("Envoy ended: {status}");
        }
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let address = self.listeners.get(listener);
        *address.unwrap_or_else(|| panic!("Envoy has no listener {listener}: {:?}", self.listeners))
    }

    pub(crate) fn has_listener(&self, listener: &str) -> bool {
        self.listeners.contains_key(listener)
    }

    pub(crate) fn connect(&self, listener: &str) -> Client {
        Client::new(self.address(listener))
    }

    /// A GET of a case of the listener `script`.
    pub(crate) fn case(&self, case: &str, path: &str) -> Reply {
        self.connect("script")
            .request("GET", path, &format!("x-case: {case}\r\n"), b"")
    }

    /// A request to the admin listener.
    pub(crate) fn admin(&self, method: &str, path: &str) -> Reply {
        let mut client = Client::new(self.admin);
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
        ));
        client.reply()
    }

    /// The statistics whose names match this expression.
    pub(crate) fn stats(&self, filter: &str) -> HashMap<String, u64> {
        let text = self.admin("GET", &format!("/stats?filter={filter}")).text();
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// One of them, which is 0 before it is counted for the first time.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.stats(&format!("^{}$", name.replace('.', "\\.")))
            .get(name)
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(30)..];
        // A guest's stack may be in a line.
        let short = end
            .iter()
            .map(|line| line.get(..300).unwrap_or(line).to_owned());
        short.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || {
            self.log().contains(text)
        });
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).expect("terminate Envoy");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id is small"))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("Envoy ends", || {
            status = self.child.try_wait().expect("ask for the state of Envoy");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Bytes that its allocator, which is also the module's and the guests', has given out.
    pub(crate) fn allocated(&self) -> u64 {
        let memory = self.admin("GET", "/memory").json();
        let bytes = memory["allocated"].as_str().and_then(|n| n.parse().ok());
        bytes.unwrap_or_else(|| panic!("no number of bytes: {memory}"))
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("its state");
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .expect("its memory");
        let kib = line
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<u64>().ok());
        kib.expect("a number") * 1024
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("Envoy's log:\n{}", self.log_end());
        }
    }
}

/// `envoy --mode validate`.
pub(crate) fn validate(version: &str, config: &Value) -> Output {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let file = folder.path().join("envoy.json");
    std::fs::write(&file, config.to_string()).expect("write the configuration");
    let mut command = command(version);
    command
        .arg("-c")
        .arg(&file)
        .args(["--mode", "validate", "--disable-hot-restart"]);
    command.output().expect("start Envoy")
}
