//! A host as a child process, upstreams in threads, and clients that see raw bytes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

/// Far longer than anything takes: it only ends tests that hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

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
        client.send(&format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
        ));
        client.reply()
    }

    pub(crate) fn reload(&self) -> Reply {
        self.admin("POST", "/reload")
    }

    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.admin("GET", "/metrics").text();
        let line = text
            .lines()
            .find(|l| l.starts_with(series) && l[series.len()..].starts_with(' '));
        line.map_or(0, |l| l[series.len() + 1..].parse().unwrap())
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

/// A client that sees the bytes.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response as it came over HTTP/1.1.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The body's chunks, if it was chunked.
    pub(crate) chunked: bool,
}

impl Reply {
    /// The only value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self
            .fields
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str());
        let first = values.next();
        assert_eq!(values.next(), None, "{name} is there once");
        first
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"));
        self.reply()
    }

    /// A request with fields (each with its line end) and a body of known length.
    pub(crate) fn request(&mut self, method: &str, path: &str, fields: &str, body: &[u8]) -> Reply {
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        self.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\n{fields}{length}\r\n"
        ));
        self.send(body);
        if method == "HEAD" {
            self.head()
        } else {
            self.reply()
        }
    }

    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                true
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(e) => panic!("read: {e}"),
        }
    }

    /// Whether the other side has closed, after everything that it sent was taken.
    pub(crate) fn is_closed(&mut self) -> bool {
        assert!(
            self.buffer.is_empty(),
            "unread: {:?}",
            String::from_utf8_lossy(&self.buffer)
        );
        !self.fill()
    }

    /// Bytes that came without being asked for, until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    pub(crate) fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(
                self.fill(),
                "closed in the middle of {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
    }

    fn fields(&mut self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return fields;
            }
            let (name, value) = line.split_once(':').unwrap();
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    pub(crate) fn exact(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(
                self.fill(),
                "closed after {} of {n} bytes",
                self.buffer.len()
            );
        }
        self.buffer.drain(..n).collect()
    }

    /// A response without body: to HEAD, 101, 100, 304.
    pub(crate) fn head(&mut self) -> Reply {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        Reply {
            status: status.unwrap_or_else(|| panic!("no status line: {line:?}")),
            fields: self.fields(),
            body: Vec::new(),
            trailers: Vec::new(),
            chunked: false,
        }
    }

    /// A chunk; empty for the last one.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let size = usize::from_str_radix(self.line().trim(), 16).unwrap();
        if size == 0 {
            return Vec::new();
        }
        let chunk = self.exact(size);
        assert_eq!(self.line(), "");
        chunk
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let mut reply = self.head();
        if matches!(reply.status, 204 | 304) || reply.status < 200 {
            return reply;
        }
        if reply.field("transfer-encoding") == Some("chunked") {
            reply.chunked = true;
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                reply.body.extend(chunk);
            }
            reply.trailers = self.fields();
        } else if let Some(length) = reply.field("content-length") {
            reply.body = self.exact(length.parse().unwrap());
        } else {
            reply.body = self.rest();
        }
        reply
    }
}

/// A server in a thread of its own; it ends when this is dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    _stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Upstream {
    pub(crate) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// An HTTP/1.1 server.
    pub(crate) fn http1<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(false, answer)
    }

    /// An HTTP/2 server by prior knowledge.
    pub(crate) fn http2<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(true, answer)
    }

    fn serve<F, R>(http2: bool, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (connections, requests) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let counters = (Arc::clone(&connections), Arc::clone(&requests));
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        counters.0.fetch_add(1, Ordering::SeqCst);
                        let (answer, requests) = (Arc::clone(&answer), Arc::clone(&counters.1));
                        let service = service_fn(move |request| {
                            requests.fetch_add(1, Ordering::SeqCst);
                            let answer = answer(request);
                            async move { Ok::<_, std::convert::Infallible>(answer.await) }
                        });
                        tokio::spawn(async move {
                            let io = TokioIo::new(stream);
                            if http2 {
                                let builder =
                                    hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                                let _ = builder.serve_connection(io, service).await;
                            } else {
                                let builder = hyper::server::conn::http1::Builder::new();
                                let _ = builder.serve_connection(io, service).with_upgrades().await;
                            }
                        });
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            connections,
            requests,
            _stop: Some(stop),
        }
    }

    /// A server that sees the bytes: `serve` gets each connection, with its number, in a thread of its own.
    pub(crate) fn raw(serve: impl Fn(Client, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                let client = Client {
                    stream,
                    buffer: Vec::new(),
                };
                std::thread::spawn(move || serve(client, number));
            }
        });
        Self {
            address,
            connections,
            requests: Arc::default(),
            _stop: None,
        }
    }

    /// Answers what it got, as JSON: method, path, fields, body, trailers.
    pub(crate) fn mirror() -> Self {
        Self::http1(mirror)
    }
}

impl Client {
    /// A request as an upstream reads it: its first line, fields, body and trailers.
    pub(crate) fn read_request(&mut self) -> (String, Reply) {
        let line = self.line();
        let mut message = Reply {
            status: 0,
            fields: self.fields(),
            body: Vec::new(),
            trailers: Vec::new(),
            chunked: false,
        };
        if message.field("transfer-encoding") == Some("chunked") {
            message.chunked = true;
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                message.body.extend(chunk);
            }
            message.trailers = self.fields();
        } else if let Some(length) = message.field("content-length") {
            message.body = self.exact(length.parse().unwrap());
        }
        (line, message)
    }
}

pub(crate) async fn mirror(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let fields = |map: &http::HeaderMap| -> Vec<(String, String)> {
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        map.iter().map(|(n, v)| (n.to_string(), text(v))).collect()
    };
    let (body, trailers) = match body.collect().await {
        Ok(collected) => {
            let trailers = collected.trailers().map(fields).unwrap_or_default();
            (collected.to_bytes(), trailers)
        }
        Err(_) => (Bytes::new(), Vec::new()),
    };
    let value = serde_json::json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(|p| p.as_str()),
        "authority": parts.uri.authority().map(|a| a.as_str()),
        "fields": fields(&parts.headers),
        "body": String::from_utf8_lossy(&body),
        "length": body.len(),
        "trailers": trailers,
    });
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    response
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
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
