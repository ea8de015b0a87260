#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The do-no-harm run: what nginx does without the module, it does with it, byte for byte.

    PXG_NGINX_MODULE=MODULE.so tests/harmless.py [--json FILE] [--only SUBJECT[:CASE]]... [--variant NAME]...

Each behaviour of behaviours/ runs in an nginx of each variant; its answers, the lines of the access log and the errors of
the error log are compared with those of the first variant. Dates, boundaries and the folder's name are masked, and how a
body was cut into chunks. A difference is red, unless behaviours/known.py names it with a reason; one that is named there
and does not come any more is red, too. The last variant changes one byte of each body, so a run in which it is not seen
is red as well. What differs is run once more, and is red if it differs again; else it is shown as UNSTEADY, and more than
three subjects of that kind are red. Environment: see harness.py.
"""

import argparse
import collections
import concurrent.futures
import difflib
import gzip
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import time

import behaviours
import harness
from behaviours import filters, known

VARIANTS = {
    "plain": "without the module",
    "loaded": "the module, no filter",
    "head": "C guest that reads requests' headers: without a stream",
    "wait": "Go guest, each request suspended at its headers, a goroutine each: without a stream, too",
    "heads": "C guest that reads headers",
    "stream": "C guest that reads headers and bodies",
    "suspend": "Go guest, each message suspended at four places, a goroutine each",
    "ring": "the same on the ring",
    "touch": "C guest that changes a byte: has to be seen",
}
GUEST = {"head": "noop", "wait": "suspend", "heads": "noop", "stream": "noop", "touch": "noop", "suspend": "suspend",
         "ring": "suspend"}
FORMAT = "|".join(f"${v}" for v in """request status body_bytes_sent bytes_sent request_length connection_requests
    request_completion upstream_status upstream_cache_status upstream_response_length sent_http_content_type
    sent_http_content_length sent_http_transfer_encoding uri pipe remote_user""".split())
CODING = 12
# What nginx was about when the upstream was gone, and how far a limit was exceeded, depend on which came first.
TIMING = re.compile(r"(upstream prematurely closed connection while|excess:) (?:reading upstream|sending to client|[\d.]+)")
UNSTEADY = 3  # Subjects that may differ in one run and not in the next.
SLOW = float(os.environ.get("PXG_TEST_SLOW", "0"))  # Names behaviours that take longer, in seconds.


def files(path):
    """What is served, with times that are the same in each run."""
    def put(name, data):
        os.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
        with open(f"{path}/{name}", "wb") as f:
            f.write(data)
    for name, data in behaviours.FILES.items():
        put(f"html/{name}", data)
    for name, data in filters.SSI_FILES.items():
        put(f"ssi/{name}", data)
    put("zipped/page.html", filters.HTML)
    put("zipped/page.html.gz", filters.ZIPPED)
    put("zipped/only-zipped.html.gz", gzip.compress(b"only zipped\n", mtime=0))
    put("users", b"user:{PLAIN}secret\n")
    os.mkdir(f"{path}/dav")
    for folder, _, names in os.walk(path):
        for name in (*names, "."):
            os.utime(f"{folder}/{name}", (behaviours.MTIME, behaviours.MTIME))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=e", "-keyout", f"{path}/key.pem", "-out", f"{path}/cert.pem"], check=True, capture_output=True)


def configuration(path, variant, subjects, guests):
    http = ""
    for s in subjects:
        http += (s.server().replace("%UP%", f"unix:{path}/{s.name}.up").replace("%S%", f"{path}/{s.name}.sock")
                 .replace("%D%", path))
    guest = ""
    if variant in GUEST:
        config = 'config "{\\"micros\\": 100}";' if GUEST[variant] == "suspend" else ""
        guest = f"""proxy_golang_filter it {{
    guest {guests[GUEST[variant]]}; filter {variant}; {config} pend_default 60s; hold_limit 60s; max_body 16m;
  }}
  proxy_golang it;"""
    load = "" if variant == "plain" else f"load_module {harness.MODULE};"
    return harness.head(path, f"{load} user root; worker_processes 1;") + f"""
events {{ worker_connections 512; }}
http {{
  log_format compare '{FORMAT}';
  {harness.temp_paths(path)}
  types {{ text/html html; text/plain txt; application/octet-stream bin; }} default_type application/octet-stream;
  root {path}/html; server_names_hash_bucket_size 128; variables_hash_bucket_size 128; map_hash_bucket_size 128;
  {guest}
  {http}
}}
"""


class Peer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An upstream of another protocol: talk(rfile, wfile)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path, talk):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                talk(self.rfile, self.wfile)
        super().__init__(path, Handler)
        os.chmod(path, 0o666)

    def handle_error(self, request, client_address):
        pass

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def run_subject(path, subject, chosen):
    up = f"{path}/{subject.name}.up"
    server = Peer(up, subject.talk) if hasattr(subject, "talk") else harness.Upstream(up, behaviours.answerer(subject.origin))
    got = {}
    with server as upstream:
        for name, f in subject.cases:
            if not chosen(subject.name, name):
                continue
            r, at = behaviours.Run(path, subject, upstream), time.monotonic()
            try:
                f(r)
            except Exception as e:  # Whatever happens is what this variant did.
                r.note(f"EXCEPTION {type(e).__name__}: {e}")
            got[f"{subject.name}: {name}"] = behaviours.masked("\n".join(r.notes), path)
            if SLOW and time.monotonic() - at > SLOW:
                print(f"{time.monotonic() - at:.1f} s: {subject.name}: {name}", flush=True)
    return got


def errors_of(text, path):
    """The lines of an error log from [error] on, without what differs from run to run."""
    found = []
    for line in text.splitlines():
        m = re.match(r"\S+ \S+ \[(error|crit|alert|emerg)\] \d+#\d+: (?:\*\d+ )?(.*)", line)
        if m:
            found.append(f"[{m[1]}] " + TIMING.sub(r"\1", behaviours.masked(m[2], path)))
    return found


def access_of(text, path):
    found = []
    for line in text.splitlines():
        words = line.split("|")
        if len(words) > CODING and (words[CODING] == "chunked" or words[0].endswith("HTTP/2.0")):
            words[2] = words[3] = "~"
            if words[0].endswith("HTTP/2.0"):
                words[6] = "~"  # Our client goes when it has all, which may be before a guest has let the end go.
        found.append(behaviours.masked("|".join(words), path))
    return found


def run_variant(variant, guests, chosen_names):
    begun = time.monotonic()

    def chosen(subject, case):
        return not chosen_names or any(f"{subject}: {case}" == c or subject == c for c in chosen_names)

    have = harness.configured()
    subjects = [s for s in behaviours.SUBJECTS if all(n in have for n in s.needs) and any(chosen(s.name, n) for n, _ in s.cases)]
    result = {"cases": {}, "access": {}, "errors": {}}
    with harness.folder() as path:
        files(path)
        conf = configuration(path, variant, subjects, guests)
        with harness.Nginx(path, conf, f"{path}/{subjects[-1].name}.sock") as nginx:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                for got in pool.map(lambda s: run_subject(path, s, chosen), subjects):
                    result["cases"] |= got
            nginx.quit()
        for name in sorted(os.listdir(f"{path}/logs")):
            with open(f"{path}/logs/{name}", errors="replace") as f:
                text = f.read()
            if name.endswith(".compare"):
                result["access"][name] = access_of(text, path)
            elif name.endswith((".error", ".log")):
                result["errors"][name] = errors_of(text, path)
    result["left out"] = sorted(s.name for s in behaviours.SUBJECTS if s not in subjects) if not chosen_names else []
    result["seconds"] = time.monotonic() - begun
    return result


def differences(base, got):
    """What of a run is not as in the run without the module: what -> lines of a diff."""
    found = {}
    for case, text in base["cases"].items():
        other = got["cases"].get(case, "(did not run)")
        if other != text:
            found[case] = list(difflib.unified_diff(text.split("\n"), other.split("\n"), "without", "with", n=2, lineterm=""))
    for kind in ("access", "errors"):
        for name in sorted(base[kind].keys() | got[kind].keys()):
            a, b = collections.Counter(base[kind].get(name, [])), collections.Counter(got[kind].get(name, []))
            if a != b:
                found[f"{kind}: {name}"] = [f"-{x}" for x in (a - b).elements()] + [f"+{x}" for x in (b - a).elements()]
    return found


def seen(differ):
    return sum(not f.startswith(("access", "errors")) for f in differ)


def judged(results, variant, only):
    """What is not as it has to be in a run: what -> lines that show it."""
    base = results["plain"]
    if variant == "plain":
        return {case: text.splitlines() for case, text in base["cases"].items() if "EXCEPTION" in text}
    differ = differences(base, results[variant])
    if variant == "touch":
        if seen(differ) >= len(base["cases"]) // 4:
            return {}
        return {"a changed byte": [f"it was seen in {seen(differ)} of {len(base['cases'])} behaviours only"]}
    limits = known.expected(variant)
    wrong = {k: d for k, d in differ.items() if k not in limits}
    for k, reason in limits.items():
        if k not in differ and reason not in known.RACES and not only:
            wrong[k] = [f"behaviours/known.py expects a difference ({reason}), and there is none: take it out"]
    return wrong


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", metavar="FILE", help="the table and all differences, for machines")
    p.add_argument("--only", action="append", default=[], metavar="SUBJECT[: CASE]")
    p.add_argument("--variant", action="append", default=[], choices=VARIANTS)
    p.add_argument("--lines", type=int, default=14, help="of each difference that are shown")
    o = p.parse_args()
    if not harness.MODULE:
        sys.exit("PXG_NGINX_MODULE is not set: it names ngx_http_proxy_golang_module.so for $PXG_NGINX")
    begun = time.monotonic()
    variants = [v for v in VARIANTS if not o.variant or v in o.variant or v == "plain"]
    version = harness.version()
    built = harness.Guests()
    with concurrent.futures.ProcessPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        guests = {"noop": built.noop, "suspend": built.suspend}

        def run(variants):
            results, jobs = {}, {pool.submit(run_variant, v, guests, o.only): v for v in variants}
            for job in concurrent.futures.as_completed(jobs):
                results[jobs[job]] = job.result()
                print(f"{version}: {jobs[job]}: {len(results[jobs[job]]['cases'])} behaviours in "
                      f"{results[jobs[job]]['seconds']:.1f} s", flush=True)
            return results
        results = run(variants)
        found = {v: judged(results, v, o.only) for v in variants}
        doubted = [v for v in variants if found[v]]
        # Limits of time, and peers that are late, can make one run of two differ on a busy machine: what a guest does to
        # nginx, it does in the next run, too.
        second = run(["plain", *(v for v in doubted if v != "plain")]) if doubted else {}
    base, red, unsteady = results["plain"], 0, set()
    for v in doubted:
        again = judged(second, v, o.only)
        for k, lines in found[v].items():
            steady = k in again
            red += steady
            print(f"{'RED' if steady else 'UNSTEADY'} {v}: {k}")
            if not steady:
                unsteady.add(re.sub(r"^(?:access|errors): |[.:].*", "", k))
            for line in lines[:o.lines]:
                print(f"    {''.join(c if c.isprintable() else '.' for c in line[:400])}")
    if len(unsteady) > UNSTEADY:
        red += 1
        print(f"RED: {len(unsteady)} subjects differed in one run of two, expected at most {UNSTEADY}: "
              + ", ".join(sorted(unsteady)))
    table = {}
    for v in variants[1:]:
        differ = differences(base, results[v])
        if v == "touch":
            table[v] = {"seen": seen(differ)}
            continue
        limits = known.expected(v)
        table[v] = {"equal": len(base["cases"]) - sum(k in base["cases"] for k in differ),
                    "limits": {k: limits[k] for k in differ if k in limits}, "different": found[v]}
    subjects = collections.Counter(c.split(":")[0] for c in base["cases"])
    print(f"\nnginx {version}: {len(base['cases'])} behaviours of {len(subjects)} subjects: "
          + ", ".join(f"{s} {n}" for s, n in sorted(subjects.items())))
    if base["left out"]:
        print(f"left out, this nginx is built without their modules: {', '.join(base['left out'])}")
    for v, row in table.items():
        said = (f"changed byte seen in {row['seen']}" if v == "touch" else
                f"{row['equal']:4} equal, {len(row['limits'])} known limits, {len(row['different'])} different")
        print(f"  {v:8} {said:48} {VARIANTS[v]}")
    if o.json:
        with open(o.json, "w") as f:
            json.dump({"nginx": version, "behaviours": len(base["cases"]), "subjects": subjects, "left_out": base["left out"],
                       "variants": table}, f, indent=1)
    print(harness.result_line("harmless", not red, nginx=version, behaviours=len(base["cases"]), red=red,
                              seconds=round(time.monotonic() - begun, 1)))
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
