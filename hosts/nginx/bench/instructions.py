#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a request costs a whole worker of a real nginx, counted by callgrind: instructions, and lines of the first-level
caches that it has to fetch.

    bench/instructions.py [--only NAME] [--connections N] [--keep FOLDER] [--filter F=GUEST.so]

One process (master_process off) serves kept-alive connections, each of which asks and reads in turn with the others. Two
runs that differ in the number of requests are subtracted, so that the start does not count. The guest is that of
`cargo xtask bench nginx`: bench-noop changes nothing, bench-sync sets a field. A runtime such as Go's does not run under
valgrind; what it adds is measured by `cargo xtask bench boundary`.

Counts of one run, unlike times, may be taken on a busy machine; by proxy_pass they vary by some percent with the number
of events that one turn of the loop finds. PXG_NGINX, PXG_NGINX_MODULE: as for the tests.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests"))
import harness
from harness import NGINX, MODULE, ROOT, build_c, folder, temp_paths, wait_for

# Caches as those of servers: 32 KiB in 8 ways, code and data each.
CACHES = ["--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=33554432,16,64"]
COUNTS = {"instructions": ("Ir",), "code lines": ("I1mr",), "data lines": ("D1mr", "D1mw")}
PLACES = {"file": "/local/small.txt", "proxy_pass": "/"}
REQUEST = "GET {} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
VARIANTS = {"plain": None, "loaded, no filter": "", "C, changes nothing": "bench-noop", "C, sets a field": "bench-sync"}


class Upstream(harness.Upstream):
    """Answers two bytes on as many connections as nginx keeps."""

    def __init__(self, path):
        super().__init__(path, lambda request, connection: connection.say(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok") or True)


def conf(path, guest, name):
    module = f"load_module {MODULE};\n" if name is not None else ""
    define = f"proxy_golang_filter it {{ guest {guest}; filter {name}; }}" if name else ""
    chain = "proxy_golang it;" if name else ""
    return f"""{module}daemon off; master_process off; pid {path}/nginx.pid; error_log {path}/logs/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; default_type text/plain;
  {temp_paths(path)} {define}
  upstream up {{ server unix:{path}/up.sock; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen unix:{path}/n.sock;
    proxy_http_version 1.1; proxy_set_header Connection "";
    location / {{ {chain} proxy_pass http://up; }}
    location /local/ {{ {chain} alias {path}/html/; open_file_cache max=16; open_file_cache_valid 1h; }}
  }}
}}
"""


def ask(to, place, rounds, connections):
    """`rounds` requests on each connection: all ask, then all are read."""
    request = REQUEST.format(place).encode()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(harness.Client(to, 120)) for _ in range(connections)]
        for _ in range(rounds):
            for c in clients:
                c.send(request)
            for c in clients:
                got = c.answer()
                if got is None or got.status != 200:
                    raise RuntimeError(f"{place}: found {got and got.line}, expected 200")


def count(guest, name, place, rounds, connections, keep=None):
    """Events of a whole process that served so many rounds."""
    with folder() as path:
        with open(f"{path}/html/small.txt", "w") as f:
            f.write("0123456789abcdef" * 16)
        with open(f"{path}/nginx.conf", "w") as f:
            f.write(conf(path, guest, name))
        out = keep or f"{path}/callgrind.out"
        command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}", *CACHES, NGINX, "-p", path,
                   "-c", f"{path}/nginx.conf", "-e", f"{path}/logs/error.log"]
        with Upstream(f"{path}/up.sock"), open(f"{path}/logs/out.log", "ab") as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            try:
                def serves():
                    if process.poll() is not None:
                        raise RuntimeError(harness.read(f"{path}/logs/error.log") + harness.read(f"{path}/logs/out.log"))
                    return os.path.exists(f"{path}/n.sock") and os.path.exists(f"{path}/nginx.pid")
                wait_for("nginx serves under valgrind", serves, 120)
                ask(f"{path}/n.sock", place, rounds, connections)
                process.send_signal(signal.SIGQUIT)
                process.wait(120)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        text = harness.read(out)
        names = re.search(r"^events: (.*)$", text, re.M)[1].split()
        sums = re.search(r"^(?:summary|totals): (.*)$", text, re.M)[1].split()
        return dict(zip(names, map(int, sums)))


def measure(guest, name, place, args, keep=None):
    few, many = (count(guest, name, place, n, args.connections, keep and f"{keep}.{n}") for n in (args.rounds, 3 * args.rounds))
    n = 2 * args.rounds * args.connections
    return {what: sum(many[e] - few[e] for e in events) / n for what, events in COUNTS.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--only", action="append", default=[], help="a variant or a place; can be given several times")
    p.add_argument("--connections", type=int, default=32)
    p.add_argument("--rounds", type=int, default=20, help="requests on each connection; the second run has three times as many")
    p.add_argument("--keep", help="a folder for callgrind's files")
    args = p.parse_args()
    if not MODULE:
        sys.exit("PXG_NGINX_MODULE: expected the module's file")
    places = {k: v for k, v in PLACES.items() if not set(args.only) & set(PLACES) or k in args.only}
    variants = {k: v for k, v in VARIANTS.items() if not set(args.only) & set(VARIANTS) or k in args.only}
    with folder() as build:
        guest = build_c(f"{ROOT}/xtask/lab/guests/c/bench.c", f"{build}/bench.so")
        for place, path in places.items():
            print(f"| {place}, {args.connections} connections | " + " | ".join(COUNTS) + " |")
            print("|---|" + "--:|" * len(COUNTS))
            plain = None
            for title, name in variants.items():
                keep = args.keep and f"{args.keep}/{place}.{name}"
                got = measure(guest, name, path, args, keep)
                plain = plain or got
                print(f"| {title} | " + " | ".join(
                    f"{got[c]:.0f}" + ("" if got is plain else f" (+{got[c] - plain[c]:.0f}, {got[c] / plain[c]:.2f})")
                    for c in COUNTS) + " |", flush=True)
            print()


if __name__ == "__main__":
    main()
