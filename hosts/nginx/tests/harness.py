# SPDX-License-Identifier: Apache-2.0
"""What the tests of the module share: guests, an nginx in a folder of its own, upstreams, a raw client.

Everything listens on unix sockets below that folder, so any number of runs go side by side. Whatever is started is ended
by its own process id when the block is left, also by a failure. Environment:

    PXG_NGINX           the binary, else /usr/sbin/nginx
    PXG_NGINX_MODULE    ngx_http_proxy_golang_module.so for that binary
    PXG_TEST_DEADLINE   seconds that nothing takes if all is well, 20
    PXG_TEST_BUILD      where guests are built, else a temporary folder; builds there are used again, also by programs that
                        run side by side: a library is not written again while its sources are the same
    PXG_TEST_PRELOAD    LD_PRELOAD for nginx, for modules with sanitizers
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time

NGINX = os.environ.get("PXG_NGINX", "/usr/sbin/nginx")
MODULE = os.environ.get("PXG_NGINX_MODULE", "") and os.path.abspath(os.environ["PXG_NGINX_MODULE"])
DEADLINE = float(os.environ.get("PXG_TEST_DEADLINE", "20"))
PRELOAD = os.environ.get("PXG_TEST_PRELOAD", "")

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(f"{HERE}/../../..")


def wait_for(what, check, deadline=None):
    """The first true answer of `check`; an error that names `what` if none came."""
    end = time.monotonic() + (deadline or DEADLINE)
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: still not so after {deadline or DEADLINE:g} s (PXG_TEST_DEADLINE sets the limit)")
        time.sleep(0.005)


def version(nginx=None):
    said = subprocess.run([nginx or NGINX, "-V"], capture_output=True, text=True, check=True).stderr
    return re.search(r"nginx/([\d.]+)", said)[1]


def configured(nginx=None):
    """The switches that nginx was built with, such as http_dav_module."""
    said = subprocess.run([nginx or NGINX, "-V"], capture_output=True, text=True, check=True).stderr
    return set(re.findall(r"--with-(\w+)", said))


# ---- Guests ----------------------------------------------------------------------------------------------------------


@functools.cache
def build_folder():
    """Where guests of this run are built; workers read it."""
    keep = os.environ.get("PXG_TEST_BUILD")
    if keep:
        return os.path.abspath(keep)
    path = tempfile.mkdtemp(prefix="pxg-guests-")
    os.chmod(path, 0o755)
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(path, ignore_errors=True))
    return path


def sources_of(*places):
    """What is read by a compiler there, in a fixed order."""
    found = [p for p in places if os.path.isfile(p)]
    for place in places:
        for folder, _, names in os.walk(place):
            found += [f"{folder}/{n}" for n in names if n.endswith((".c", ".h", ".go", ".mod", ".sum"))]
    return sorted(found)


def build(to, sources, command, **how):
    """Runs `command` + [to], unless the same command has made `to` from the same sources. Others see the old file or the
    new one."""
    to = os.path.abspath(to)
    key = hashlib.sha256(repr((command, shutil.which(command[0]))).encode())
    for source in sources:
        with open(source, "rb") as f:
            key.update(source.encode() + b"\0" + f.read())
    os.makedirs(os.path.dirname(to), exist_ok=True)
    with open(to + ".key", "a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        made.seek(0)
        if made.read() == key.hexdigest() and os.path.exists(to):
            return to
        made.truncate(0)
        subprocess.run([*command, to + ".new"], check=True, stdout=subprocess.DEVNULL, **how)
        os.rename(to + ".new", to)
        made.write(key.hexdigest())
    return to


def build_c(source, to=None, *more):
    """`source` may be the name of one in tests/guests. `more`: for the compiler."""
    source = source if os.path.isabs(source) else f"{HERE}/guests/{source}"
    to = to or f"{build_folder()}/{os.path.basename(source)[:-2]}.so"
    include = [f"{ROOT}/guest-sdk/c/include", f"{ROOT}/include"]
    return build(to, sources_of(source, *include),
                 ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fPIC", "-shared", "-fvisibility=hidden",
                  *(f"-I{i}" for i in include), *more, source, "-lpthread", "-o"])


def build_go(folder, to, version="1"):
    return build(to, sources_of(folder, f"{ROOT}/guest-sdk/go"),
                 ["go", "build", "-C", folder, "-buildmode=c-shared", "-trimpath", f"-ldflags=-s -w -X main.version={version}",
                  "-o"], env={"GOFLAGS": "-mod=mod", "GOPROXY": "off"} | os.environ)


class Guests:
    """Libraries of tests/guests that several programs use."""

    def __init__(self):
        self.noop = build_c("noop.c")
        self.suspend = build_go(f"{HERE}/guests/suspend", f"{build_folder()}/suspend.so")


# ---- nginx -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder():
    """A folder that nginx's worker may read and write, whatever its user."""
    path = tempfile.mkdtemp(prefix="pxg-nginx-")
    os.chmod(path, 0o755)
    for name in ("html", "temp", "logs"):
        os.mkdir(f"{path}/{name}")
    try:
        yield path
    finally:
        if os.environ.get("PXG_TEST_KEEP"):
            print(f"kept: {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)


def head(path, more="", daemon="off"):
    """The first lines of a configuration: everything that nginx would put elsewhere goes into `path`."""
    return f"""{more}
daemon {daemon}; pid {path}/nginx.pid; error_log {path}/logs/error.log info;
"""


def temp_paths(path):
    return "".join(f"{name}_temp_path {path}/temp/{name}; "
                   for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")) + "\n"


class Nginx:
    """A master with its workers. `listens`: a socket that is there once it serves."""

    def __init__(self, path, conf, listens=None, nginx=None):
        self.path, self.nginx = path, nginx or NGINX
        self.conf = f"{path}/nginx.conf"
        self.error_log = f"{path}/logs/error.log"
        self.write(conf)
        self.env = dict(os.environ)
        if PRELOAD:
            self.env["LD_PRELOAD"] = PRELOAD
        self.listens = listens

    def write(self, conf, encoding=None):
        with open(self.conf + ".new", "w", encoding=encoding) as f:
            f.write(conf)
        os.rename(self.conf + ".new", self.conf)

    def command(self, *more):
        return [self.nginx, "-p", self.path, "-c", self.conf, "-e", self.error_log, *more]

    def test(self):
        """nginx -t: whether it accepts, and what it says."""
        got = subprocess.run(self.command("-t"), capture_output=True, text=True, timeout=DEADLINE * 3, env=self.env)
        return got.returncode == 0, got.stderr + self.log()

    def __enter__(self):
        self.out = open(f"{self.path}/logs/out.log", "ab")
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.out,
                                        env=self.env)
        self.master, self.masters = self.process.pid, [self.process.pid]
        try:
            wait_for("nginx serves", self.serves, DEADLINE * 3)
            self.master = int(read(f"{self.path}/nginx.pid"))
            self.masters.append(self.master)
        except BaseException:
            self.__exit__()
            raise
        return self

    def serves(self):
        if self.process.poll():
            raise RuntimeError(f"nginx ended with {self.process.returncode}: {self.log()}{self.output()}")
        pid = f"{self.path}/nginx.pid"
        return os.path.exists(pid) and os.path.getsize(pid) and (self.listens is None or os.path.exists(self.listens))

    def __exit__(self, *_):
        for sign, patience in ((signal.SIGTERM, DEADLINE), (signal.SIGKILL, DEADLINE)):
            known = [p for m in self.masters for p in (m, *children(m))]
            for pid in known if sign == signal.SIGKILL else self.masters:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            end = time.monotonic() + patience
            while any(alive(p) for p in known) and time.monotonic() < end:
                self.process.poll()
                time.sleep(0.005)
            if not any(alive(p) for p in known):
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.out.close()

    def log(self):
        return read(self.error_log) if os.path.exists(self.error_log) else ""

    def output(self):
        return read(f"{self.path}/logs/out.log")

    def signal(self, sign):
        os.kill(self.master, sign)

    def ended(self):
        """Waits for the end of the master; the exit status, None if it is not known."""
        wait_for("the master ends", lambda: self.process.poll() is not None and not alive(self.master), DEADLINE * 3)
        return self.process.returncode if self.master == self.process.pid else None

    def workers(self, master=None):
        """Pids of the workers that accept; those that shut down say so in their title."""
        return [p for p in children(master or self.master) if b"worker process" in title(p)
                and b"shutting down" not in title(p)]

    def reload(self, wait=True):
        """A reload; waits until workers of the new generation alone accept."""
        old = set(self.workers())
        seen = len(self.log())
        self.signal(signal.SIGHUP)
        if not wait:
            return
        def done():
            said = self.log()[seen:]
            if "[emerg]" in said:
                raise RuntimeError("reload refused: " + said)
            now = set(self.workers())
            return now and not now & old
        wait_for("new workers after a reload", done, DEADLINE * 3)

    def quit(self):
        """Graceful shutdown of all, so that every log line is written."""
        self.signal(signal.SIGQUIT)
        self.ended()


def read(path):
    with open(path, errors="replace") as f:
        return f.read()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(p) for p in f.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def title(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def status_of(pid, key):
    """A number of /proc/PID/status, such as VmRSS (KiB) or Threads."""
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(rf"^{key}:\s+(\d+)", f.read(), re.M)[1])


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


# ---- Client ----------------------------------------------------------------------------------------------------------


class Answer:
    """One response as it came: `head` without its empty line, `body` without its framing."""

    def __init__(self, head, body, framing=""):
        self.head, self.body, self.framing = head, body, framing
        lines = head.decode("latin1").split("\r\n")
        self.line = lines[0]
        words = lines[0].split()
        self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        self.fields = [tuple(f.partition(": ")[::2]) for f in lines[1:]]

    def get(self, name):
        return [v for n, v in self.fields if n.lower() == name]

    def json(self):
        return json.loads(self.body)


class Client:
    """A connection that sends bytes as they are given and takes answers apart."""

    def __init__(self, to, deadline=None):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(deadline or DEADLINE)
        self.socket.connect(to)
        self.held = b""
        self.eof = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def send_aside(self, data):
        """Sends on a thread, for what nginx may not read before something else has happened."""
        def run():
            with contextlib.suppress(OSError):
                self.socket.sendall(data)
        threading.Thread(target=run, daemon=True).start()

    def fill(self):
        """More bytes; false at the end of the connection."""
        if self.eof:
            return False
        try:
            got = self.socket.recv(65536)
        except ConnectionResetError:
            got = b""
        self.eof = not got
        self.held += got
        return bool(got)

    def rest(self):
        while self.fill():
            pass
        got, self.held = self.held, b""
        return got

    def until(self, end):
        while end not in self.held:
            if not self.fill():
                return None
        got, _, self.held = self.held.partition(end)
        return got

    def exactly(self, n):
        while len(self.held) < n and self.fill():
            pass
        got, self.held = self.held[:n], self.held[n:]
        return got

    def answer(self, method="GET"):
        """The next response, None at the end of the connection. What is no HTTP/1 comes whole as a body."""
        while len(self.held) < 5 and self.fill():
            pass
        if not self.held:
            return None
        if not self.held.startswith(b"HTTP/"):
            return Answer(b"", self.rest(), "eof")
        head = self.until(b"\r\n\r\n")
        if head is None:
            got, self.held = self.held, b""
            return Answer(b"", got, "cut head")
        a = Answer(head, b"")
        length, coding = a.get("content-length"), a.get("transfer-encoding")
        if method == "HEAD" or a.status in (204, 304) or 100 <= a.status < 200:
            a.framing = "none"
        elif coding == ["chunked"]:
            a.body, a.framing = self.chunks()
        elif length:
            a.body = self.exactly(int(length[0]))
            a.framing = "length" if len(a.body) == int(length[0]) else "cut"
        else:
            a.body, a.framing = self.rest(), "eof"
        return a

    def chunks(self):
        body = b""
        while True:
            line = self.until(b"\r\n")
            if line is None:
                return body, "cut chunks"
            if not re.fullmatch(rb"[0-9a-f]+", line):
                return body + line + self.rest(), "no chunk size"
            n = int(line, 16)
            if n == 0:
                break
            part = self.exactly(n)
            body += part
            if len(part) < n or self.exactly(2) != b"\r\n":
                return body, "cut chunks"
        trailers = b""
        while True:
            line = self.until(b"\r\n")
            if line is None:
                return body, "cut trailers"
            if not line:
                return body, "chunked" + (" + " + trailers.decode("latin1") if trailers else "")
            trailers += line + b"\r\n"


def request(method, path, fields=(), body=None, host="e", protocol="HTTP/1.1"):
    lines = [f"{method} {path} {protocol}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += fields
    if body is not None and not any(f.lower().startswith(("content-length:", "transfer-encoding:")) for f in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + (body or b"")


def ask(to, path, method="GET", fields=(), body=None, deadline=None):
    """One request on a connection of its own."""
    with Client(to, deadline) as c:
        c.send(request(method, path, (*fields, "Connection: close"), body))
        return c.answer(method)


# ---- Upstream --------------------------------------------------------------------------------------------------------


class Request:
    """What an upstream was sent. `raw`: the head as it came."""

    def __init__(self, raw, rfile):
        self.raw = raw
        lines = raw.decode("latin1").split("\r\n")
        self.method, _, rest = lines[0].partition(" ")
        self.path = rest.rpartition(" ")[0]
        self.fields = [list(f.partition(": ")[::2]) for f in lines[1:]]
        held = {n.lower(): v for n, v in self.fields}
        self.body = b""
        if "content-length" in held:
            self.body = rfile.read(int(held["content-length"]))
        elif held.get("transfer-encoding") == "chunked":
            while size := int(rfile.readline() or b"0", 16):
                self.body += rfile.read(size)
                rfile.readline()
            while rfile.readline().strip():
                pass

    def get(self, name):
        return [v for n, v in self.fields if n.lower() == name]


class Upstream(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """`answer(request, connection)` writes what it likes to `connection.wfile` and answers whether the connection goes
    on. connection.turn counts requests on it, server.seen all of them."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, path, answer):
        self.answer, self.seen, self.connections = answer, 0, 0
        self.asked, self.go = threading.Event(), threading.Event()  # For answers that a test waits for, or lets go.
        super().__init__(path, Connection)
        os.chmod(path, 0o666)

    def handle_error(self, request, client_address):
        pass  # nginx may hang up on an answer; what is lost by that a test sees at the client.

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        self.turn = 0
        self.server.connections += 1
        while True:
            raw = b""
            while not raw.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                raw += line
            self.turn += 1
            self.server.seen += 1
            if not self.server.answer(Request(raw[:-4], self.rfile), self):
                return

    def say(self, data):
        self.wfile.write(data)
        self.wfile.flush()


# ---- Results ---------------------------------------------------------------------------------------------------------


def result_line(name, ok, **more):
    """The last line of a run, for whoever collects them."""
    return "RESULT " + json.dumps({"run": name, "ok": ok} | more, sort_keys=True)
