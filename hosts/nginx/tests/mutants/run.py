#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does the host suite see faults in a real C host? Puts each fault of mutants.toml into a copy of the module, builds it, and
runs the cases that must find it on nginx. A fault is found if a case reports a break of its rule.

    run.py --suite target/release/pxg-conformance          # all of them; about two minutes
    run.py --suite ... --only resumed-twice --only lost-*  # names or globs
    run.py --check                                         # only whether each fault still fits the sources

NGINX is an nginx binary (/usr/sbin/nginx), NGINX_SRC its sources (/usr/share/nginx/src: Debian's nginx-dev)."""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[3]
MODULE = "ngx_http_proxy_golang_module.so"


def mutants():
    with open(HERE / "mutants.toml", "rb") as f:
        return tomllib.load(f)["mutant"]


def misfits(all_mutants, nginx):
    """What of the list does not fit the sources or the suite's rules."""
    rules = "".join(p.read_text() for p in (ROOT / "spec/rules").glob("*.toml"))
    for m in all_mutants:
        n = (nginx / m["file"]).read_text().count(m["find"])
        if n != 1:
            yield f"{m['name']}: `find` stands {n} times in {m['file']}, expected once: bring it up to date"
        if f'"{m["rule"]}"' not in rules:
            yield f"{m['name']}: there is no rule {m['rule']}"


class Bench:
    def __init__(self, args, work):
        self.suite = pathlib.Path(args.suite).resolve()
        self.work = work
        self.nginx = work / "hosts/nginx"
        shutil.copytree(ROOT / "include", work / "include")
        shutil.copytree(ROOT / "hosts/nginx", self.nginx, ignore=shutil.ignore_patterns("debian", "tests"))
        self.sources = os.environ.get("NGINX_SRC", "/usr/share/nginx/src")
        self.binary = os.environ.get("NGINX", "/usr/sbin/nginx")
        self.probe = None

    def build(self, name):
        command = ["make", "-s", "-C", self.nginx, "-f", "Makefile.module", f"NGINX={self.sources}", f"BUILD={self.work}/build"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} does not build:\n{(done.stdout + done.stderr)[-3000:]}")
        to = self.work / f"{name}.so"
        shutil.copy(self.work / "build/out" / MODULE, to)
        return to

    def mutated(self, m):
        file = self.nginx / m["file"]
        before = file.read_text()
        file.write_text(before.replace(m["find"], m["replace"]))
        try:
            return self.build(m["name"])
        finally:
            file.write_text(before)

    def run(self, module, cases, mutant=True):
        """The results of the cases, as the suite writes them."""
        command = [self.suite, "host", "--adapter", ROOT / "conformance/adapters/nginx-debian.toml", "--json"]
        # What never comes is waited for: a mutant costs that, and not the patience of a report.
        command += ["--timeout-scale", "0.3"] if mutant else []
        command += [x for c in cases for x in ("--only", c)]
        env = os.environ | {"NGINX_DEBIAN": self.binary, "NGINX_DEBIAN_MODULE": str(module)}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        results = []
        for line in done.stdout.splitlines():
            try:
                r = json.loads(line)
            except ValueError:
                continue
            if "case" in r:
                results.append(r)
        return results, done.stderr


    def judge(self, m, module):
        """The cases that find a mutant, and what there is to say of it."""
        results, errors = self.run(module, m["cases"])
        lines = [
            f"{r['status']} {r['case']} {f['rule']} {f['title'][:160]}" for r in results for f in r.get("findings", [])
        ]
        return found_by(m, results), lines or errors[-1500:].splitlines()


def found_by(m, results):
    """The cases that report a break of the mutant's rule."""
    bare = re.compile("unknown: |the host ended")
    cases = {
        r["case"]
        for r in results
        for f in r.get("findings", [])
        if f["rule"] == m["rule"] and (m.get("ends") or not bare.match(f["title"]))
        # WARN: a rule that only says SHOULD.
        if r["status"] in ("FAIL", "WARN", "CRASH", "TIMEOUT")
    }
    return sorted(cases)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--suite", help="pxg-conformance")
    p.add_argument("--only", action="append", default=[], metavar="NAME", help="a mutant's name or a glob")
    p.add_argument("--check", action="store_true", help="build and run nothing")
    p.add_argument("--verbose", action="store_true")
    args = p.parse_args()
    chosen = [m for m in mutants() if not args.only or any(fnmatch.fnmatch(m["name"], o) for o in args.only)]
    wrong = list(misfits(chosen, ROOT / "hosts/nginx"))
    if wrong or not chosen:
        raise SystemExit("\n".join(wrong) or "no mutant is called so")
    if args.check:
        return print(f"{len(chosen)} mutants fit the sources")
    if not args.suite:
        p.error("--suite names the pxg-conformance to run")

    survivors = []
    with tempfile.TemporaryDirectory() as work, concurrent.futures.ThreadPoolExecutor(4) as pool:
        bench = Bench(args, pathlib.Path(work))
        clean = bench.build("clean")
        # A case that fails on the module as it is proves nothing.
        results, errors = bench.run(clean, sorted({c for m in chosen for c in m["cases"]}), mutant=False)
        red = [r["case"] for r in results if r["status"] in ("FAIL", "CRASH", "TIMEOUT", "SUITE-ERROR")]
        if red or not results:
            raise SystemExit(f"the module as it is fails {red}\n{errors[-3000:]}")
        print(f"clean: {len(results)} cases pass or do not apply", flush=True)
        # Runs wait more than they work: the next mutants are built and run meanwhile.
        running = [pool.submit(bench.judge, m, bench.mutated(m)) for m in chosen]
        for m, verdict in zip(chosen, running):
            cases, lines = verdict.result()
            if not cases:
                survivors.append(m["name"])
            print(f"{m['rule']}  {m['name']:32}  {', '.join(cases) or 'SURVIVES'}", flush=True)
            if args.verbose or not cases:
                print("\n".join("    " + line for line in lines), flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants found by their own rule")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
