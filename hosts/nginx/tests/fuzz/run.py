#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients, an upstream and guests that behave by chance, around a real nginx, best one that is built with sanitizers.

    PXG_NGINX=... PXG_NGINX_MODULE=... tests/fuzz/run.py [--seconds 10] [--seed N] [--clients 8] [--filters 6]

The seed chooses all that is not a matter of timing: the configurations, and for each client its requests, which name the
seed of what guests answer (x-fuzz). A failure is a worker that dies, a sanitizer's report, a line [alert] or [emerg] in the
error log, a request or a graceful end that hangs, and a balance of the guest that does not come out even. HTTP/2 is spoken
where python3-h2 is installed. Environment: see ../harness.py.
"""

import argparse
import contextlib
import glob
import os
import random
import re
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import harness
from harness import Client, Nginx, Upstream, folder, wait_for

try:
    import h2.config
    import h2.connection
    import h2.exceptions
except ImportError:
    h2 = None

VERSION = tuple(int(n) for n in harness.version().split("."))
# What a request may cost at most: the limits below add up to far less.
PATIENCE = harness.DEADLINE
LIMITS = "pend_limit 500ms; hold_limit 700ms; hold_time 20ms; max_body 1m; clusters app; metadata_namespaces other;"
# Lines of the error log that tell of a fault in nginx or the module.
FAULT = re.compile(r"\[(alert|emerg|crit)\]|Sanitizer|runtime error|exited on signal")
# nginx's own words for what clients and upstreams do here; its own sources are compiled by relative paths.
HARMLESS = re.compile(r"^src/(core|event|http|os)/\S+: runtime error|ignore long locked|sendfile\(\) failed|\(104: Connection reset by peer\)|\(32: Broken pipe\)|"
                      r"\"alias\" cannot be used in location|worker process \d+ exited on signal 15|stat\(\) .* failed|pwritev?\(\)")


def conf(path, guest, chance, n):
    filters = "".join(
        f"proxy_golang_filter f{i} {{ guest {guest}; filter fuzz; config {chance.randrange(1 << 60)}; {LIMITS} "
        f"failure_mode {chance.choice(('open', 'closed'))}; reply_refilter {chance.choice(('on', 'off'))}; "
        f"flush {chance.choice(('on', 'off'))}; response_trailers {chance.choice(('on', 'off'))}; }}\n" for i in range(n))
    chains = [" ".join(chance.sample([f"f{i}" for i in range(n)], chance.choice((1, 1, 1, 2, 3)))) for _ in range(n * 2)]
    places, names = "", []
    for i, chain in enumerate(chains):
        def place(name, lines, inside=""):
            nonlocal places
            names.append(f"/{name}{i}/")
            places += f"location /{name}{i}/ {{ proxy_golang {chain}; {lines} {inside} }}\n"
        # Not by sendfile: a stream of HTTP/2 that is reset while a thread sends its file stalls the connection.
        more = " ".join(chance.sample((
            "gzip on; gzip_min_length 1; gzip_types *;", "limit_rate 200k;", "proxy_buffering off;", "proxy_request_buffering off;",
            "error_page 404 500 502 /file/a.txt;", "error_page 403 413 = @named;", "postpone_output 0;", "output_buffers 1 1k;",
            "proxy_buffers 2 4k; proxy_buffer_size 4k; proxy_busy_buffers_size 4k;", "client_body_buffer_size 1k;",
            "client_body_in_file_only clean;", "client_max_body_size 20k;", "chunked_transfer_encoding off;", "aio threads; sendfile off;",
            "proxy_intercept_errors on;", "add_header x-late $proxy_golang_details always;", "ssi on; ssi_types *;",
            "directio 4k;", "sub_filter o 0; sub_filter_once off; sub_filter_types *;", "addition_types *; add_after_body /file/tail;",
            "auth_request /auth;", "mirror /mirror;", "keepalive_timeout 0;", "lingering_close always;", "gunzip on;",
            "proxy_max_temp_file_size 0;", "proxy_cache c; proxy_cache_valid any 1m; proxy_cache_lock on;",
            "slice 1k; proxy_set_header Range $slice_range;", "proxy_ignore_client_abort on;", "proxy_next_upstream error invalid_header;",
            "proxy_golang_strip_request_fields x-a;", "satisfy any;"), 4))
        place("proxy", "proxy_pass http://app;", more)
        place("file", f"alias {path}/html/;", " ".join(l for l in re.split(r"(?<=;) ", more) if not l.startswith("slice")))
        place("return", 'return 200 "returned $request_uri";')
    return f"""
load_module {harness.MODULE};
{harness.head(path)}
worker_processes 1;
user root;
thread_pool default threads=2;
events {{ worker_connections 512; }}
http {{
  {harness.temp_paths(path)}
  log_format all '$request $status $body_bytes_sent $http_x_fuzz $proxy_golang_verdict $proxy_golang_details $proxy_golang_time '
                 '$proxy_golang_cluster $proxy_golang_metadata_f0_k';
  access_log {path}/logs/access.log all;
  proxy_cache_path {path}/temp/cache keys_zone=c:1m;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_read_timeout 2s; proxy_send_timeout 2s; send_timeout 2s; client_body_timeout 2s; client_header_timeout 2s;
  keepalive_timeout 2s; lingering_timeout 1s; lingering_time 2s; reset_timedout_connection on;
  map $proxy_golang_cluster $backend {{ "" app; default $proxy_golang_cluster; }}
  upstream app {{ server unix:{path}/up.sock; server unix:{path}/up.sock; keepalive 4; }}
  {filters}
  server {{
    listen unix:{path}/n.sock;
    listen unix:{path}/h2.sock {'' if VERSION >= (1, 25, 1) else 'http2'}; {'http2 on;' if VERSION >= (1, 25, 1) else ''}
    sendfile {chance.choice(("on", "off"))}; tcp_nopush on;
    root {path}/html;
    location / {{ proxy_pass http://$backend; proxy_golang f0; }}
    location = /canary {{ return 200 "alive"; }}
    location /file/ {{ alias {path}/html/; }}
    location = /auth {{ internal; proxy_golang off; proxy_pass http://app/auth; proxy_pass_request_body off;
                        proxy_set_header Content-Length ""; }}
    location = /mirror {{ internal; proxy_pass http://app/mirror; }}
    location /hidden/ {{ internal; proxy_golang f1; alias {path}/html/; }}
    location @named {{ proxy_golang f2; return 200 "named"; }}
    {places}
  }}
}}
""", names


# ---- The upstream ----------------------------------------------------------------------------------------------------


def answer(said, connection):
    chance = random.Random(hash(said.path) ^ random.getrandbits(30))
    body = bytes(chance.choices(b"abo<!--# -->\n", k=chance.choice((0, 1, 100, 5000, 40000, 300000))))
    status = chance.choice(("200 OK",) * 8 + ("404 Not Found", "500 Oh", "204 No Content", "304 Not Modified", "403 No"))
    more = "".join(chance.sample(("X-Up: 1\r\n", "Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n", "Cache-Control: max-age=60\r\n",
                                  "Content-Type: text/html\r\n", "ETag: \"e\"\r\nLast-Modified: Mon, 28 Sep 1970 06:00:00 GMT\r\n",
                                  "X-Accel-Redirect: /hidden/a.txt\r\n", "X-Accel-Buffering: no\r\n", "Vary: x-a\r\n",
                                  "Location: /x\r\n", "X-Long: " + "l" * 3000 + "\r\n", "Connection: close\r\n"),
                                 chance.choice((0, 1, 2, 3))))
    way = chance.choice(("length",) * 5 + ("chunked",) * 4 + ("close", "short", "cut", "garbage", "silent"))
    if said.method == "HEAD" or status[:3] in ("204", "304"):
        length = f"Content-Length: {len(body)}\r\n" if status[:3] == "200" else ""
        connection.say(f"HTTP/1.1 {status}\r\n{more}{length}\r\n".encode())
        return "close" not in more
    if way == "silent":
        time.sleep(chance.random())
        return False
    if way == "garbage":
        connection.say(bytes(chance.choices(range(256), k=50)))
        return False
    if way in ("chunked", "cut"):
        connection.say(f"HTTP/1.1 {status}\r\n{more}Transfer-Encoding: chunked\r\n\r\n".encode())
        at = 0
        while at < len(body):
            n = min(len(body) - at, chance.choice((1, 100, 5000, 60000)))
            connection.say(b"%x\r\n%s\r\n" % (n, body[at:at + n]))
            at += n
            if chance.random() < 0.1:
                time.sleep(chance.random() * 0.02)
            if way == "cut" and chance.random() < 0.5:
                return False
        connection.say(b"0\r\n" + chance.choice((b"", b"X-Trailer: t\r\n")) + b"\r\n")
        return "close" not in more
    length = "" if way == "close" else f"Content-Length: {len(body)}\r\n"
    connection.say(f"HTTP/1.1 {status}\r\n{more}{length}\r\n".encode())
    part = chance.randrange(len(body) + 1)
    connection.say(body[:part])
    if way == "short":
        return False
    if chance.random() < 0.2:
        time.sleep(chance.random() * 0.02)
    connection.say(body[part:])
    return way == "length" and "close" not in more


# ---- Clients ---------------------------------------------------------------------------------------------------------


class Player:
    """One thread of requests; `last` says what it was doing when something failed."""

    def __init__(self, path, names, seed, number, until):
        self.path, self.names, self.until = path, names, until
        self.seed, self.chance = seed, random.Random(seed * 1000 + number)
        self.last, self.n, self.fault = [], 0, None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while time.monotonic() < self.until and self.fault is None:
            try:
                (self.http2 if h2 and self.chance.random() < 0.35 else self.http1)()
            except (ConnectionError, BrokenPipeError, socket.timeout, TimeoutError) as e:
                if isinstance(e, TimeoutError):
                    self.fault = f"no answer within {PATIENCE} s: {self.last[-1]}"
            except Exception as e:  # Of the client.
                self.fault = f"{type(e).__name__}: {e}: {self.last[-1:]}"

    def request(self, protocol):
        c = self.chance
        method = c.choice(("GET",) * 5 + ("POST",) * 4 + ("HEAD", "HEAD", "PUT", "OPTIONS"))
        path = c.choice(self.names) + c.choice(("a.txt", "big", "tail", "none", "a%20b", "../x", "./a.txt?x=1", ""))
        fields = [("x-fuzz", str(c.randrange(1 << 40)))]
        fields += c.sample([("accept-encoding", "gzip"), ("range", c.choice(("bytes=0-9", "bytes=5-,0-2", "bytes=99999999-"))),
                            ("te", "trailers"), ("cookie", "a=b"), ("if-modified-since", "Mon, 28 Sep 1970 06:00:00 GMT"),
                            ("if-none-match", "*"), ("content-type", "application/grpc"), ("x-a", "1"), ("authorization", "Basic YTpi")],
                           c.choice((0, 0, 1, 2)))
        body = b""
        if method in ("POST", "PUT"):
            body = bytes(c.choices(b"xyz", k=c.choice((0, 1, 500, 3000, 20000, 100000))))
        self.n += 1
        self.last = [*self.last[-3:], f"{protocol}: {method} {path} {fields} {len(body)}"]
        return method, path, fields, body

    def http1(self):
        c = self.chance
        with Client(f"{self.path}/n.sock", PATIENCE) as client:
            asked = []
            wire = b""
            for _ in range(c.choice((1, 1, 1, 2, 4))):
                method, path, fields, body = self.request("HTTP/1")
                lines = [f"{method} {path} HTTP/{c.choice(('1.1',) * 9 + ('1.0',))}", "Host: e.test"]
                lines += [f"{n}: {v}" for n, v in fields]
                if method in ("POST", "PUT"):
                    if c.random() < 0.2:
                        lines.append("Expect: 100-continue")
                    if c.random() < 0.4 and lines[0].endswith("1.1"):
                        lines.append("Transfer-Encoding: chunked")
                        at, framed = 0, b""
                        while at < len(body):
                            n = min(len(body) - at, c.choice((1, 700, 9000)))
                            framed += b"%x\r\n%s\r\n" % (n, body[at:at + n])
                            at += n
                        body = framed + c.choice((b"0\r\n\r\n",) * 9 + (b"zz\r\n",))
                    else:
                        lines.append(f"Content-Length: {len(body)}")
                wire += "\r\n".join(lines).encode() + b"\r\n\r\n" + body
                asked.append(method)
            fate = c.choice(("read",) * 8 + ("abort", "half", "slow", "torn", "cut"))
            self.last[-1] += f" ({fate})"
            if fate == "cut":
                wire = wire[:c.randrange(len(wire))]
            if fate == "torn":
                sent = 0
                while sent < len(wire):
                    n = c.choice((1, 3, 50, 4000))
                    client.send(wire[sent:sent + n])
                    sent += n
                    if c.random() < 0.05:
                        time.sleep(0.002)
                    if sent > 3000:
                        client.send_aside(wire[sent:])
                        break
            else:
                client.send_aside(wire)
            if fate in ("abort", "cut"):
                time.sleep(c.random() * 0.02)
                return
            if fate == "half":
                time.sleep(c.random() * 0.01)
                with contextlib.suppress(OSError):
                    client.socket.shutdown(socket.SHUT_WR)
            if fate == "slow":
                time.sleep(c.random())
            for method in asked:
                while True:
                    got = client.answer(method)
                    if got is None or got.status != 100:
                        break
                if got is None:
                    return
                if got.head and not re.match(r"HTTP/1\.[01] [2345]\d\d", got.line):
                    raise ValueError(f"what is no response came: {got.line!r}")
                if got.framing == "no chunk size":
                    raise ValueError(f"broken chunks: {got.head} {got.body[-60:]}")

    def http2(self):
        c = self.chance
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(PATIENCE)
            s.connect(f"{self.path}/h2.sock")
            conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None,
                                                                        validate_inbound_headers=True,
                                                                        # Joins fields before it looks at them.
                                                                        normalize_inbound_headers=False))
            conn.initiate_connection()
            if c.random() < 0.3:
                conn.update_settings({4: c.choice((0, 1, 100, 70000))})
            wait, bodies, what = set(), {}, {}
            for _ in range(c.choice((1, 2, 5))):
                method, path, fields, body = self.request("HTTP/2")
                stream = conn.get_next_available_stream_id()
                head = [(":method", method), (":scheme", "http"), (":authority", "e.test"), (":path", path), *fields]
                if body and c.random() < 0.6:
                    head.append(("content-length", str(len(body))))
                conn.send_headers(stream, head, end_stream=not body)
                wait.add(stream)
                what[stream] = self.last[-1]
                if body:
                    bodies[stream] = body
            end = time.monotonic() + PATIENCE
            while wait:
                for stream in list(bodies):
                    room = min(conn.local_flow_control_window(stream), conn.max_outbound_frame_size, len(bodies[stream]))
                    if room > 0:
                        conn.send_data(stream, bodies[stream][:room], end_stream=room == len(bodies[stream]))
                        bodies[stream] = bodies[stream][room:]
                        if not bodies[stream]:
                            del bodies[stream]
                if c.random() < 0.05:
                    stream = c.choice(sorted(wait))
                    with contextlib.suppress(h2.exceptions.StreamClosedError):
                        conn.reset_stream(stream, c.choice((0, 8)))
                    wait.discard(stream)
                    bodies.pop(stream, None)
                s.sendall(conn.data_to_send())
                # nginx need not say anything to a client that waits for nothing: not soon, if a thread was sending a file.
                if c.random() < 0.02 or not wait:
                    return
                try:
                    data = s.recv(65536)
                except TimeoutError:
                    self.last.append(f"waits for {[what[w] for w in wait]}, {len(bodies)} bodies unsent, settings "
                                     f"{dict(conn.local_settings)}")
                    raise
                if not data:
                    return
                for event in conn.receive_data(data):
                    name = type(event).__name__
                    stream = getattr(event, "stream_id", None)
                    if name in ("StreamEnded", "StreamReset"):
                        wait.discard(stream)
                        bodies.pop(stream, None)
                    elif name == "ConnectionTerminated":
                        return
                    elif name == "DataReceived" and c.random() < 0.9:
                        with contextlib.suppress(h2.exceptions.ProtocolError):
                            conn.acknowledge_received_data(event.flow_controlled_length, stream)
                    elif name == "RemoteSettingsChanged" and c.random() < 0.5:
                        with contextlib.suppress(h2.exceptions.ProtocolError):
                            conn.increment_flow_control_window(1 << 16)
                s.sendall(conn.data_to_send())
                if conn.inbound_flow_control_window <= 0 or time.monotonic() > end:
                    return


# ---- One run ---------------------------------------------------------------------------------------------------------


def faults(nginx, path):
    said = [l for l in (nginx.log() + nginx.output()).splitlines() if FAULT.search(l) and not HARMLESS.search(l)]
    for report in glob.glob(f"{path}/logs/san.*"):
        said.append(harness.read(report))
    return said


def run(seed, seconds, clients, filters, guest):
    """What went wrong, as a list of texts."""
    chance = random.Random(seed)
    with folder() as path, Upstream(f"{path}/up.sock", answer):
        text, names = conf(path, guest, chance, filters)
        for name, size in (("a.txt", 100), ("big", 400000), ("tail", 10), ("a b", 3000)):
            with open(f"{path}/html/{name}", "w") as f:
                f.write("o" * size)
        os.environ["ASAN_OPTIONS"] = f"detect_leaks=0:detect_odr_violation=0:log_path={path}/logs/san:abort_on_error=1:handle_abort=1"
        os.environ["UBSAN_OPTIONS"] = f"print_stacktrace=1:log_path={path}/logs/san"
        with Nginx(path, text, f"{path}/n.sock") as nginx:
            workers = wait_for("a worker", nginx.workers)
            players = [Player(path, names, seed, i, time.monotonic() + seconds) for i in range(clients)]
            for p in players:
                p.thread.start()
            for p in players:
                p.thread.join()
            said = [p.fault for p in players if p.fault]
            try:
                if harness.ask(f"{path}/n.sock", "/canary").body != b"alive":
                    said.append("the canary's answer is another")
                if nginx.workers() != workers:
                    said.append(f"workers were {workers}, are {nginx.workers()}")
                nginx.signal(signal.SIGQUIT)
                nginx.ended()
            except (TimeoutError, OSError, AttributeError) as e:
                said.append(f"{type(e).__name__}: {e}")
            said += faults(nginx, path)
            balance = re.findall(r"fuzz balance: .*", nginx.log())
            if not balance or any("ODD" in b for b in balance):
                said.append(f"the guest's balance: {balance or 'none was told'}")
            n = sum(p.n for p in players)
            print(f"seed {seed}: {n} requests, {balance[-1][14:] if balance else ''}", flush=True)
            if said:
                keep = f"{path}/logs/error.log"
                if not os.environ.get("PXG_TEST_KEEP"):
                    text = "".join(l + "\n" for l in text.splitlines() if "proxy_golang_filter" in l)
                print(f"configuration and the end of the error log of seed {seed}:\n{text}\n"
                      + "\n".join(harness.read(keep).splitlines()[-15:]))
                for p in players:
                    print("  ", p.last[-2:])
            return said


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("--seconds", type=float, default=10, help="of one seed")
    parse.add_argument("--runs", type=int, default=1, help="seeds, one after the other")
    parse.add_argument("--seed", type=int)
    parse.add_argument("--clients", type=int, default=8)
    parse.add_argument("--filters", type=int, default=6)
    args = parse.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    guest = harness.build_c(f"{os.path.dirname(os.path.abspath(__file__))}/guest.c", f"{harness.build_folder()}/fuzz.so")
    for i in range(args.runs):
        said = run(seed + i, args.seconds, args.clients, args.filters, guest)
        if said:
            print("\n".join(said))
            sys.exit(f"failed with --seed {seed + i}")


if __name__ == "__main__":
    main()
