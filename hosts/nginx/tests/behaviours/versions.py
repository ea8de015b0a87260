# SPDX-License-Identifier: Apache-2.0
"""TLS, HTTP/2, upgraded connections."""

import ssl

import h2.config
import h2.connection
import h2.events
import h2.settings
from harness import request

from . import FILES, Subject, chunked, response, shown

LONG = FILES["big.bin"]
LOCATIONS = """
location / { }
location /up/ { proxy_pass http://%UP%:/; }
location /off/ { proxy_pass http://%UP%:/; proxy_request_buffering off; proxy_http_version 1.1; }
location /small/ { client_max_body_size 100; proxy_pass http://%UP%:/; }
location /gzip/ { gzip on; gzip_types *; alias %D%/html/; }
location /moved { return 301 /else; }
location /basic/ { auth_basic realm; auth_basic_user_file %D%/users; alias %D%/html/; }
location /trailer/ { add_trailer X-Trailer yes always; proxy_pass http://%UP%:/; }
location /protocol { return 200 "$server_protocol $http2 $scheme\\n"; }
location /limited/ { alias %D%/html/; limit_rate 2m; }
"""
ORIGIN = {
    "/text": response(b"upstream\n", "Content-Type: text/plain", "Connection: x-hop", "X-Hop: 1"),
    "/long": response(LONG),
    "/chunked": response(chunked(b"one", b"two"), "Transfer-Encoding: chunked", length=False),
    "/cut": response(LONG).replace(LONG, LONG[:1000]),
    "/404": response(b"none\n", status="404 None"),
    "/204": response(status="204 None", length=False),
}

# ---- HTTP/2 ----------------------------------------------------------------------------------------------------------


class H2:
    """Requests of one connection; each stream's events in the order in which they came."""

    def __init__(self, r):
        self.r = r
        self.c = r.connect()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 24})
        self.h2.increment_flow_control_window(1 << 24)
        self.streams, self.over = {}, False
        self.flush()

    def flush(self):
        try:
            self.c.send(self.h2.data_to_send())
        except (BrokenPipeError, ConnectionResetError):
            self.over = True

    def open(self, method, path, fields=(), end=True):
        sid = self.h2.get_next_available_stream_id()
        self.h2.send_headers(sid, [(":method", method), (":scheme", "http"), (":authority", "e"), (":path", path), *fields], end)
        self.streams[sid] = []
        self.flush()
        return sid

    def body(self, sid, data, end=True):
        at = 0
        while at < len(data) and not self.over and not self.done(sid):
            n = min(self.h2.local_flow_control_window(sid), self.h2.max_outbound_frame_size, len(data) - at)
            if n:
                self.h2.send_data(sid, data[at:at + n], end_stream=end and at + n == len(data))
                at += n
                self.flush()
            else:
                self.step()

    def done(self, sid):
        return any(what in ("end", "reset") for what, _ in self.streams[sid])

    def step(self):
        got = b"" if self.over else self.c.socket.recv(65536)
        if not got:
            self.over = True
            return
        for e in self.h2.receive_data(got):
            sid = getattr(e, "stream_id", None)
            if isinstance(e, (h2.events.ResponseReceived, h2.events.InformationalResponseReceived)):
                self.streams[sid].append(("head", "\n".join(f"{n}: {v}" for n, v in e.headers)))
            elif isinstance(e, h2.events.DataReceived):
                self.streams[sid].append(("data", e.data))
                if e.flow_controlled_length:
                    self.h2.acknowledge_received_data(e.flow_controlled_length, sid)
            elif isinstance(e, h2.events.TrailersReceived):
                self.streams[sid].append(("trailers", str(e.headers)))
            elif isinstance(e, h2.events.StreamEnded):
                self.streams[sid].append(("end", ""))
            elif isinstance(e, h2.events.StreamReset):
                self.streams[sid].append(("reset", e.error_code))
            elif isinstance(e, h2.events.ConnectionTerminated):
                self.over = True
        self.flush()

    def finish(self):
        while not self.over and not all(self.done(s) for s in self.streams):
            self.step()
        self.c.socket.close()
        for sid, events in self.streams.items():
            data = b"".join(d for what, d in events if what == "data")
            self.r.note(f"stream {sid}")
            for what, d in events:
                if what != "data":
                    self.r.note(f"{what}: {d}")
            self.r.note(f"{len(data)} {shown(data)}")


s = Subject("http2", LOCATIONS, origin=ORIGIN, listen=" http2", needs=("http_v2_module",))


def over_h2(*requests):
    """Each: (method, path, fields, body); all are sent before the first answer is waited for."""
    def run(r):
        c = H2(r)
        for method, path, fields, body in requests:
            sid = c.open(method, path, fields, body is None)
            if body is not None:
                c.body(sid, body)
        c.finish()
    return run


def h2_case(name, path, method="GET", fields=(), body=None):
    s.add(f"h2: {name}", over_h2((method, path, fields, body)))


h2_case("file", "/text.txt")
h2_case("empty file", "/empty.txt")
h2_case("large file", "/big.bin")
h2_case("HEAD", "/text.txt", "HEAD")
h2_case("range", "/text.txt", fields=(("range", "bytes=10-19"),))
h2_case("304", "/text.txt", fields=(("if-modified-since", "Thu, 24 Sep 1970 04:53:20 GMT"),))
h2_case("404", "/none")
h2_case("301", "/moved")
h2_case("401", "/basic/x")
h2_case("protocol", "/protocol")
h2_case("gzip", "/gzip/page.html", fields=(("accept-encoding", "gzip"),))
h2_case("cookies are joined", "/up/echo", fields=(("cookie", "a=1"), ("cookie", "b=2")))
for path in ("text", "long", "chunked", "cut", "404", "204"):
    h2_case(f"upstream: {path}", f"/up/{path}")
h2_case("upstream: HEAD", "/up/text", "HEAD")
h2_case("trailers", "/trailer/chunked", fields=(("te", "trailers"),))
h2_case("trailers of a response with a length", "/trailer/text")
h2_case("POST", "/up/echo", "POST", body=b"posted")
h2_case("POST with a length", "/up/echo", "POST", (("content-length", "6"),), b"posted")
h2_case("POST with a wrong length", "/up/echo", "POST", (("content-length", "7"),), b"posted")
h2_case("POST, large", "/up/echo", "POST", body=LONG[:500_000])
h2_case("POST, unbuffered", "/off/echo", "POST", body=LONG[:500_000])
h2_case("POST, too large", "/small/echo", "POST", (("content-length", "1000"),), b"x" * 1000)
h2_case("POST that nobody reads", "/moved", "POST", body=b"x" * 20_000)
h2_case("limit_rate", "/limited/text.txt")
s.add("h2: many streams", over_h2(*[("GET", path, (), None) for path in
                                   ("/text.txt", "/up/text", "/none", "/big.bin", "/up/long", "/up/echo", "/moved", "/up/chunked")]))
s.add("h2: bodies on several streams", over_h2(*[("POST", f"/up/echo?{i}", (), LONG[:i * 10_000 + 1]) for i in range(6)]))


@s.case("h2: client cancels a stream, the others go on")
def cancel(r):
    c = H2(r)
    sid = c.open("GET", "/up/slow")
    r.upstream.asked.wait(20)
    c.h2.reset_stream(sid, 8)
    c.flush()
    del c.streams[sid]
    c.open("GET", "/text.txt")
    c.finish()


def slow(req, connection):
    connection.server.asked.set()
    connection.rfile.read(1)
    return False


s.origin["/slow"] = slow

# ---- TLS -------------------------------------------------------------------------------------------------------------

s = Subject("tls", "ssl_certificate %D%/cert.pem; ssl_certificate_key %D%/key.pem; keepalive_timeout 20;" + LOCATIONS,
            origin=ORIGIN, listen=" ssl", needs=("http_ssl_module",))


def over_tls(*requests):
    def run(r):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        c = r.connect()
        c.socket = context.wrap_socket(c.socket, suppress_ragged_eofs=False)
        with c:
            for method, path, body in requests:
                c.send(request(method, path, (), body))
                r.take(c, method)
    return run


s.add("tls: files and upstreams on one connection", over_tls(
    ("GET", "/text.txt", None), ("GET", "/big.bin", None), ("GET", "/up/text", None), ("POST", "/up/echo", b"b" * 100_000),
    ("HEAD", "/text.txt", None), ("GET", "/protocol", None), ("GET", "/none", None), ("POST", "/off/echo", b"b" * 100_000)))
s.add("tls: POST", over_tls(("POST", "/up/echo", LONG)))
s.raw("tls: plain HTTP on its port", b"GET / HTTP/1.1\r\nHost: e\r\n\r\n")

# ---- Upgrades --------------------------------------------------------------------------------------------------------

s = Subject("upgrade", """
proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_set_header Sec-WebSocket-Key $http_sec_websocket_key;
location / { proxy_pass http://%UP%; }
""")


def websocket(req, connection):
    connection.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX-Key: " +
                   req.get("sec-websocket-key")[0].encode() + b"\r\n\r\nhello ")
    while data := connection.request.recv(65536):
        connection.say(data.upper())
        if data.endswith(b"bye"):
            break
    return False


s.origin["/ws"] = websocket
s.origin["/refuse"] = response(b"no\n", status="400 No")
FIELDS = ("Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Key: abc")


@s.case("upgrade: both directions")
def upgraded(r):
    with r.connect() as c:
        c.send(request("GET", "/ws", FIELDS))
        r.note((c.until(b"\r\n\r\n") or b"(none)").decode("latin1").replace("\r\n", "\n"))
        r.note(c.exactly(6))
        for part in (b"one", b"two" * 20_000, b"bye"):
            c.send(part)
            r.note(shown_hash(c.exactly(len(part))))
        r.note(c.rest())


@s.case("upgrade: bytes right behind the request")
def early(r):
    with r.connect() as c:
        c.send(request("GET", "/ws", FIELDS) + b"early bye")
        r.note((c.until(b"\r\n\r\n") or b"(none)").decode("latin1").replace("\r\n", "\n"))
        r.note(c.rest())


def shown_hash(data):
    return f"{len(data)} {data[:20]}"


s.get("upgrade: refused", "/refuse", *FIELDS[:1])
s.raw("upgrade: asked for in vain", request("GET", "/echo", (*FIELDS,)).replace(b"Connection: upgrade", b"Connection: upgrade, close"))
