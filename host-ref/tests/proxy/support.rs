//! A host as a child process, upstreams in threads, and clients that see raw bytes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) use crate::client::{Client, Reply};
pub(crate) use crate::upstream::{Body, Upstream, full, mirror};

/// Far longer than anything takes: it only ends tests that hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process of `pxg-host run`, ended when it is dropped.
pub(crate) struct Host {
    child: Child,
    folder: tempfile::TempDir,
    addresses: HashMap<String, SocketAddr>,
    pub(crate) admin: SocketAddr,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<String>>,
}

/// The configuration that most tests add to: an admin listener, a listener on a free port, an access log in JSON.
pub(crate) const HEAD: &str = r#"
workers = 2
[admin]
address = "127.0.0.1:0"
[access_log]
path = "-"
format = "json"
[[listeners]]
name = "main"
address = "127.0.0.1:0"
"#;

/// A cluster `app` of these endpoints, and one route to it.
pub(crate) fn to_app(endpoints: &[SocketAddr]) -> String {
    format!(
        r#"
[[clusters]]
name = "app"
endpoints = {endpoints:?}
[[virtual_hosts]]
name = "all"
hosts = ["*"]
routes = [{{ name = "app", prefix = "/", cluster = "app" }}]
"#,
        endpoints = endpoints
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    )
}

/// A configuration made by [`to_app`], with the filter of a guest in `tests/guests` on its route.
pub(crate) fn with_c_filter(guest: &'static str, config: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/guests/{guest}.c"));
    let library = c_guest(guest, &source);
    let filter = format!(
        "[[guests]]\nname = \"c\"\npath = {library:?}\n[[filters]]\nname = \"it\"\nguest = \"c\"\n[[virtual_hosts]]"
    );
    let route = "cluster = \"app\"";
    config.replacen("[[virtual_hosts]]", &filter, 1).replacen(
        route,
        &format!("{route}, filters = [\"it\"]"),
        1,
    )
}

pub(crate) fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pxg-host"))
}

impl Host {
    /// Starts with [`HEAD`] and `config`, and waits until it is ready.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(&format!("{HEAD}{config}"))
    }

    /// Starts with exactly this configuration.
    pub(crate) fn start_with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pxg.toml");
        std::fs::write(&file, config).unwrap();
        let mut child = binary()
            .arg("run")
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut pipe, log) = (child.stderr.take().unwrap(), Arc::clone(&stderr));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut bytes) {
                log.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = HashMap::new();
        let mut admin = None;
        loop {
            let Some(Ok(line)) = lines.next() else {
                let _ = child.wait();
                panic!("pxg-host did not start:\n{}", stderr.lock().unwrap());
            };
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == "ready" {
                break;
            }
            let address = event["address"].as_str().unwrap().parse().unwrap();
            match event["listener"].as_str() {
                Some(name) => drop(addresses.insert(name.to_owned(), address)),
                None => admin = Some(address),
            }
        }
        let stdout = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&stdout);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.lock().unwrap().push(line);
            }
        });
        Self {
            child,
            folder,
            addresses,
            admin: admin.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
            stdout,
            stderr,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses["main"]
    }

    pub(crate) fn rewrite_config(&self, config: &str) {
        std::fs::write(self.folder.path().join("pxg.toml"), config).unwrap();
    }

    /// Connects to the listener `main`.
    pub(crate) fn connect(&self) -> Client {
        Client::new(self.address())
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.connect().get(path)
    }

    /// A request to the admin listener.
    pub(crate) fn admin(&self, method: &str, path: &str) -> Reply {
        let mut client = Client::new(self.admin);
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
        ));
        client.reply()
    }

    pub(crate) fn reload(&self) -> Reply {
        self.admin("POST", "/reload")
    }

    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.admin("GET", "/metrics").text();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let wanted: Vec<&str> = labels.trim_end_matches('}').split_terminator(',').collect();
        let line = text.lines().find_map(|l| {
            let (of, value) = l.rsplit_once(' ')?;
            let (n, has) = of.split_once('{').unwrap_or((of, ""));
            (n == name && wanted.iter().all(|w| has.contains(w))).then_some(value)
        });
        line.map_or(0, |value| value.parse().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits for the log to say something.
    pub(crate) fn wait_for_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || {
            self.log().contains(text)
        });
    }

    /// Waits for an access-log line that fits.
    pub(crate) fn access(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        until("an access-log line fits", || {
            let lines = self.stdout.lock().unwrap();
            found = lines
                .iter()
                .filter_map(|l| serde_json::from_str(l).ok())
                .find(&fits);
            found.is_some()
        });
        found.unwrap()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.id().to_string())
            .status();
        assert!(done.unwrap().success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of pxg-host:\n{}", self.log());
        }
    }
}

/// Looks until it is so; for what is seen only from outside.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a mirror saw of one field.
pub(crate) fn seen<'a>(mirror: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = mirror["fields"].as_array().unwrap();
    fields
        .iter()
        .filter(|f| f[0] == name)
        .map(|f| f[1].as_str().unwrap())
        .collect()
}

/// Runs a client that needs an event loop.
pub(crate) fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, client)
            .await
            .expect("the client hangs")
    })
}

/// Compiles a C source against the ABI's header, once for each name.
pub(crate) fn c_guest(name: &'static str, source: &Path) -> PathBuf {
    static BUILT: OnceLock<Mutex<HashMap<&'static str, PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap();
    if let Some(path) = built.get(name) {
        return path.clone();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("proxy-{}-{name}.so", std::process::id()));
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(cc)
        .args([
            "-std=c99",
            "-D_GNU_SOURCE",
            "-O1",
            "-shared",
            "-fPIC",
            "-pthread",
            "-fvisibility=hidden",
            "-I",
        ])
        .arg(root.join("include"))
        .arg("-I")
        .arg(root.join("guest-sdk/c/include"))
        .arg(source)
        .arg("-o")
        .arg(&out)
        .status()
        .expect("a C compiler: apt-get install gcc");
    assert!(status.success(), "{} does not compile", source.display());
    built.insert(name, out.clone());
    out
}
