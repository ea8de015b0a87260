# SPDX-License-Identifier: Apache-2.0
"""What tests with the guest operator.c share: its filters, an nginx with one server, what it says and counts."""

import contextlib
import functools
import re
import unittest

import harness
from harness import Client, Nginx, folder


@functools.cache
def guest():
    return harness.build_c("operator.c")


def filter_of(name, config, inside=""):
    return f'proxy_golang_filter {name} {{ guest {guest()}; filter operator; config "{config}"; {inside} }}\n'


LIMITS = "pend_default {0}ms; pend_limit {0}ms; hold_limit 90s;"  # For what nobody ends but the host.
FORMAT = "$uri $status $proxy_golang_verdict [$proxy_golang_details] $proxy_golang_time $proxy_golang_time_a_b"


class Served:
    """An nginx with one server, and what it is asked."""

    def __init__(self, path, http, server, main="", workers=1, level="notice", module=None):
        self.path, self.module = path, module or harness.MODULE
        self.nginx = Nginx(path, "", listens=f"{path}/n.sock")
        self.set(http, server, main, workers, level)

    def set(self, http, server, main="", workers=1, level="notice", encoding=None):
        path = self.path
        daemon = "" if "daemon" in main else "daemon off; "
        self.nginx.write(f"""load_module {self.module};
{daemon}pid {path}/nginx.pid; error_log {path}/logs/error.log {level}; worker_processes {workers};
{main}
events {{ worker_connections 64; }}
http {{
  {harness.temp_paths(path)}
  log_format pxg "{FORMAT}";
  access_log {path}/logs/access.log pxg;
{http}
  server {{
    listen unix:{path}/n.sock;
    root {path}/html;
{server}
    location /status {{ proxy_golang off; proxy_golang_status; }}
  }}
}}
""", encoding)

    def ask(self, uri, fields=()):
        with Client(f"{self.path}/n.sock") as c:
            lines = [f"GET {uri} HTTP/1.1", "Host: e", "Connection: close", *fields]
            c.send("\r\n".join(lines).encode() + b"\r\n\r\n")
            return c.answer()

    def numbers(self):
        """What Prometheus reads, by name and labels."""
        text = self.ask("/status?format=prometheus").body.decode()
        found = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
        return found

    def number(self, name, **labels):
        """The sum of all series of a name that have the labels."""
        want = [f'{k}="{v}"' for k, v in labels.items()]
        return sum(v for k, v in self.numbers().items()
                   if k.partition("{")[0] == name and all(w in k for w in want))

    def life(self):
        return re.findall(r"(\d+)#\d+: proxy_golang: .*life: (.*)", self.nginx.log())


class Test(unittest.TestCase):
    @contextlib.contextmanager
    def served(self, http, server, **more):
        with folder() as path:
            with open(f"{path}/html/x", "w") as f:
                f.write("text\n")
            s = Served(path, http, server.replace("HTML", f"{path}/html"), **more)
            with s.nginx:
                yield s
                bad = [l for l in s.nginx.log().splitlines() if "[alert]" in l or "exited on signal" in l]
                self.assertEqual(bad, [])
