# SPDX-License-Identifier: Apache-2.0
"""Behaviours of nginx that no guest may change, as data: one file for each group of subjects.

A Subject is a server of its own with its own upstream; its cases run one after the other, in the order in which they are
written, subjects side by side. In configurations %D% is the run's folder, %UP% the subject's upstream (unix:...), %S% the
socket that the subject listens on.
"""

import hashlib
import json
import re

import harness

# Everything that is there to be served, with times that never change.
MTIME = 23_000_000
FILES = {
    "index.html": b"<html>index</html>\n",
    "text.txt": b"".join(b"%03d line of text\n" % i for i in range(100)),
    "small.txt": b"small\n",
    "empty.txt": b"",
    "big.bin": b"".join(b"%08x" % i for i in range(1 << 17)),
    "page.html": b"<html><head><title>page</title></head><body>" + b"word " * 400 + b"</body></html>\n",
    "dir/index.html": b"dir index\n",
    "list/a.txt": b"a\n",
    "list/b b.txt": b"b\n",
    "list/c<c.txt": b"c\n",
    "no-index/x.txt": b"x\n",
}

SUBJECTS = []


class Subject:
    """`conf` stands in the server, `http` beside it. `origin`: path -> bytes to answer with, closing after them, or
    function(request, connection) -> whether the connection goes on; any other path answers with what was asked."""

    def __init__(self, name, conf="", http="", origin=None, needs=(), listen=""):
        self.name, self.conf, self.http, self.origin = name, conf, http, origin or {}
        self.needs, self.listen = needs, listen
        self.cases = []
        SUBJECTS.append(self)

    def server(self):
        return f"""{self.http}
server {{
  listen unix:%S%{self.listen}; server_name e;
  access_log %D%/logs/{self.name}.compare compare; error_log %D%/logs/{self.name}.error info;
  {self.conf}
}}
"""

    def case(self, name):
        """Decorates function(run)."""
        def add(f):
            self.add(name, f)
            return f
        return add

    def add(self, name, f):
        assert name not in [n for n, _ in self.cases], f"{self.name}: {name} twice"
        self.cases.append((name, f))

    def get(self, name, path, *fields, method="GET", body=None, times=1, to=None, host="e", protocol="HTTP/1.1"):
        def run(r):
            for _ in range(times):
                with r.connect(to) as c:
                    c.send(harness.request(method, path, (*fields, "Connection: close"), body, host, protocol))
                    r.take_all(c, [method])
        self.add(name, run)

    def raw(self, name, *parts, methods=(), close=False):
        """Sends the parts, each with a write of its own, and takes answers to the end of the connection."""
        def run(r):
            with r.connect() as c:
                for p in parts:
                    try:
                        c.send(p)
                    except (BrokenPipeError, ConnectionResetError):
                        break
                if close:
                    c.socket.shutdown(1)
                r.take_all(c, list(methods))
        self.add(name, run)


class Run:
    """One case in one nginx. What it notes is what is compared."""

    def __init__(self, path, subject, upstream):
        self.dir, self.subject, self.upstream = path, subject, upstream
        self.socket = f"{path}/{subject.name}.sock"
        self.notes = []

    def connect(self, to=None):
        return harness.Client(f"{self.dir}/{to}" if to else self.socket)

    def note(self, *what):
        self.notes.append(" ".join(str(w) for w in what))

    def take(self, c, method="GET"):
        a = c.answer(method)
        if a is None:
            self.note("(end)")
        else:
            self.note(a.head.decode("latin1").replace("\r\n", "\n"))
            self.note(f"[{a.framing}] {len(a.body)} {shown(a.body)}")
        return a

    def take_all(self, c, methods=()):
        """`methods` of the requests in their order; GET where they end."""
        methods = list(methods)
        while True:
            a = self.take(c, methods[0] if methods else "GET")
            if a is None:
                break
            if a.status != 100 and methods:
                methods.pop(0)

    def ask(self, path, *fields, method="GET", body=None):
        with self.connect() as c:
            c.send(harness.request(method, path, (*fields, "Connection: close"), body))
            a = self.take(c, method)
            c.rest()  # One that goes away too early is another behaviour.
            return a


def shown(body):
    body = re.sub(rb"(?<=\r\n--)\d{20}", b"<boundary>", body)
    if len(body) > 6000:
        return f"{hashlib.sha256(body).hexdigest()} {body[:200]!r}"
    return body.decode("latin1")


MASKS = [
    (re.compile(r"^(Date|Expires|X-Time): .*$", re.M | re.I), r"\1: -"),
    (re.compile(r"\b\d{20}\b"), "<boundary>"),
]


def masked(text, path):
    text = text.replace(path, "<dir>")
    for pattern, to in MASKS:
        text = pattern.sub(to, text)
    return text


def echo(request, connection):
    """What was asked, as JSON, on a connection that stays if the request lets it."""
    said = json.dumps({"head": request.raw.decode("latin1").split("\r\n"), "length": len(request.body),
                       "sha": hashlib.sha256(request.body).hexdigest()}).encode()
    stay = request.raw.split(b"\r\n")[0].endswith(b"1.1") and request.get("connection") != ["close"]
    connection.say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-Turn: %d\r\n%s\r\n" % (
        len(said), connection.turn, b"" if stay else b"Connection: close\r\n") + (b"" if request.method == "HEAD" else said))
    return stay


def answerer(origin):
    def answer(request, connection):
        found = origin.get(request.path.partition("?")[0], echo)
        if callable(found):
            return found(request, connection)
        connection.say(found)
        return False
    return answer


def response(body=b"", *fields, status="200 OK", length=True):
    lines = [f"HTTP/1.1 {status}", *fields]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + body


def chunked(*parts, trailers=b""):
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n" + trailers + b"\r\n"


from . import bodies, caching, content, filters, limits, messages, proxying, routing, versions  # noqa: E402,F401
