#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `nginx -t` says of bad configurations: file and line, what was found, what was expected.

    PXG_NGINX_MODULE=MODULE.so tests/refusals.py [unittest arguments]      Environment: see harness.py.
"""

import concurrent.futures
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import harness
from harness import Nginx, folder

FILTER = "proxy_golang_filter a {{ guest {good}; filter operator; config 'header x'; {} }}"
BAD_GUEST = "proxy_golang_filter a {{{{ guest {{{0}}}; filter operator; config 'header x'; }}}}"


def line(text):
    """A line in the filter's block."""
    return FILTER.replace("{}", text), None


def http(text):
    return FILTER.replace("{}", "") + "\n" + text, None


def server(text, more=""):
    return FILTER.replace("{}", "") + more, text


def guest(name):
    return BAD_GUEST.format(name), None


def config(text):
    return FILTER.replace("{}", "").replace("'header x'", f"'{text}'"), None


# Name: what is wrong, what it says. {here} is the line where `^` stands in the first text, else its last line.
CASES = {
    # Lines of a block.
    "line unknown": (line("pend_limits 1s;"), r'unknown directive "pend_limits" in proxy_golang_filter "a", expected one '
                                              r"of guest, filter, config, config_file, failure_mode, .*all_cpus in"),
    "line of overrides": (line("disabled on;"), r'unknown directive "disabled" in proxy_golang_filter "a", expected one of'),
    "no value": (line("max_body;"), r'"max_body" of "a" has 0 values, expected one in'),
    "two values": (line("max_body 1m 2m;"), r'"max_body" of "a" has 2 values, expected one in'),
    "list without values": (line("clusters;"), r'"clusters" of "a" has 0 values, expected at least one in'),
    "line twice": (line("max_body 1m; max_body 2m;"), r'"max_body" of "a" is duplicate, expected one such line in'),
    "config and config_file": (line("config_file x;"), r'the configuration of "a" is given twice, expected either '
                                                       r'"config" or "config_file" in'),
    "size": (line("max_body lots;"), r'invalid value "lots" in "max_body" directive, expected a size above 0, for '
                                     r"example 64k or 1m in"),
    "size 0": (line("body_default 0;"), r'invalid value "0" in "body_default" directive, expected a size above 0'),
    "time": (line("pend_limit soon;"), r'invalid value "soon" in "pend_limit" directive, expected a time from 1ms to 24d'),
    "time 0": (line("hold_time 0;"), r'invalid value "0" in "hold_time" directive, expected a time from 1ms to 24d'),
    "time too long": (line("hold_limit 60d;"), r'invalid value "60d" in "hold_limit" directive, expected a time from 1ms'),
    "number": (line("max_pending -1;"), r'invalid value "-1" in "max_pending" directive, expected a number from 1 to'),
    "mode": (line("failure_mode ajar;"), r'invalid value "ajar" in "failure_mode" directive, expected open or closed in'),
    "status": (line("failure_status 404;"), r'invalid value "404" in "failure_status" directive, expected a status from '
                                            r"500 to 599 in"),
    "flag": (line("reply_refilter yes;"), r'invalid value "yes" in "reply_refilter" directive, expected on or off in'),
    "size too large": (line("max_body 99999999999g;"), r'invalid value "99999999999g" in "max_body" directive, expected a size'),
    "number too large": (line("max_pending 99999999999;"), r'invalid value "99999999999" in "max_pending" directive, expected a '
                                                            r"number from 1 to 2147483647 in"),
    "time below 0": (line("pend_default -1s;"), r'invalid value "-1s" in "pend_default" directive, expected a time from 1ms'),
    "status too large": (line("failure_status 600;"), r'invalid value "600" in "failure_status" directive, expected a status'),
    "a variable": (line("max_body $size;"), r'invalid value "\$size" in "max_body" directive, expected a size above 0'),
    "default above its limit": (line("pend_default 3s; pend_limit 2s;"),
                                r'"pend_default" of "a" is above its "pend_limit", expected at most that: raise "pend_limit", too in'),
    "default above a preset limit": (line("body_default 65m;"), r'"body_default" of "a" is above its "max_body", expected at most'),
    "default above an outer limit": (server("proxy_golang_override a {{ pend_default 61s; }}"),
                                     r'"pend_default" of "a" is above its "pend_limit", expected at most that'),
    "no block": (("proxy_golang_filter a;", None), r'directive "proxy_golang_filter" has no opening "\{" in'),
    "empty guest": (("proxy_golang_filter a {{ guest ''; }}", None), r'invalid value "" in "guest" directive, expected the path of'),
    "empty filter": (("proxy_golang_filter a {{ guest {good}; filter ''; }}", None),
                     r'invalid value "" in "filter" directive, expected the name of one of the library'),
    "block in a block": (line("guest {{ }}"), r'unexpected "\{" in'),
    # Names.
    "name": (("proxy_golang_filter a.b {{ guest {good}; }}", None),
             r'invalid value "a\.b" in "proxy_golang_filter" directive, expected a name of 1 to 128 characters of '
             r'a-z A-Z 0-9 _ - / that is not "off" in'),
    "name off": (("proxy_golang_filter off {{ guest {good}; }}", None), r'invalid value "off" in "proxy_golang_filter"'),
    "name twice": (http("proxy_golang_filter a {{ guest {good}; }}"),
                   r'proxy_golang_filter "a" is defined twice, expected one block for each NAME; the other one is at '
                   r"\S+nginx\.conf:\d+, seen in"),
    "no guest": (("proxy_golang_filter a {{ filter operator; }}", None),
                 r'proxy_golang_filter "a" has no "guest", expected a line "guest PATH;" with the path of a library'),
    # Use.
    "unknown filter": (server("proxy_golang a b;"), r'unknown filter "b" in "proxy_golang": define it before with '
                                                    r'"proxy_golang_filter b \{ \.\.\. \}" in http in'),
    "chain twice": (server("proxy_golang a; proxy_golang a;"), r'"proxy_golang" directive is duplicate in'),
    "chain without names": (server("proxy_golang;"), r'invalid number of arguments in "proxy_golang" directive in'),
    "chain with a variable": (server("proxy_golang $name;"), r'unknown filter "\$name" in "proxy_golang": define it before'),
    "off beside a name": (server("proxy_golang a off;"), r'"off" stands beside other names in "proxy_golang", expected it alone'),
    "chain in an if": (server("if ($uri) {{ proxy_golang a; }}"), r'"proxy_golang" directive is not allowed here in'),
    "filter after its use": (("server {{ proxy_golang a; }} proxy_golang_filter a {{ guest {good}; }}", None),
                             r'unknown filter "a" in "proxy_golang": define it before'),
    "strip off beside a name": (server("proxy_golang_strip_request_fields x-user off;"),
                                r'"off" stands beside other names in "proxy_golang_strip_request_fields", expected it alone'),
    "strip twice": (server("proxy_golang_strip_request_fields a; proxy_golang_strip_request_fields b;"),
                    r'"proxy_golang_strip_request_fields" directive is duplicate in'),
    "status twice": (server("location /s {{ proxy_golang_status; proxy_golang_status json; }}"),
                     r'"proxy_golang_status" directive is duplicate in'),
    "too many places": (server("proxy_golang" + " a" * 33 + ";"),
                        r'"proxy_golang" names 33 filters, expected at most 32 for one location in'),
    "override of nothing": (server("proxy_golang_override b {{ disabled on; }}"),
                            r'unknown filter "b" in "proxy_golang_override": define it before with'),
    "override twice": (server("proxy_golang_override a {{ disabled on; }} proxy_golang_override a {{ disabled off; }}"),
                       r'"proxy_golang_override a" stands twice here, expected one block for each NAME and location in'),
    "guest in an override": (server("proxy_golang_override a {{ guest x; }}"),
                             r'unknown directive "guest" in proxy_golang_override "a", expected one of config, config_file'),
    "filter in a server": (server("proxy_golang_filter b {{ guest {good}; }}"),
                           r'"proxy_golang_filter" directive is not allowed here in'),
    "strip": (server("proxy_golang_strip_request_fields 'x user';"),
              r'invalid value "x user" in "proxy_golang_strip_request_fields" directive, expected names of header fields'),
    "status format": (server("location /s {{ proxy_golang_status xml; }}"),
                      r'invalid value "xml" in "proxy_golang_status" directive, expected text, json or prometheus, or no '
                      r"value in"),
    "zone": (http("proxy_golang_metrics_zone 1k;"), r'invalid value "1k" in "proxy_golang_metrics_zone" directive, expected '
                                                    r"a size of at least 64k, for example 1m in"),
    "zone twice": (http("proxy_golang_metrics_zone 1m; proxy_golang_metrics_zone 1m;"),
                   r'"proxy_golang_metrics_zone" directive is duplicate in'),
    # Files.
    "no config_file": (("proxy_golang_filter a {{ guest {good}; config_file none.conf; }}", None),
                       r'open\(\) "\S+none\.conf" failed, expected a file with the configuration of "a" \(2: No such file'),
    "config_file is a folder": (("proxy_golang_filter a {{ guest {good}; config_file html; }}", None),
                                r'"\S+html" is no regular file, expected a regular file of at most 64m as "config_file"'),
    "config_file is a FIFO": (("proxy_golang_filter a {{ guest {good}; config_file {fifo}; }}", None),
                              r'"\S+fifo" is no regular file, expected a regular file of at most 64m as "config_file"'),
    "config_file is huge": (("proxy_golang_filter a {{ guest {good}; config_file {huge}; }}", None),
                            r'"\S+huge" is too large, expected a regular file of at most 64m as "config_file"'),
    "config_file unreadable": (("proxy_golang_filter a {{ guest {good}; config_file none/a.conf; }}", None),
                               r'open\(\) "\S+none/a\.conf" failed, expected a file with the configuration of "a"'),
    "no file": (guest("none"), r'with guest "\S+none\.so" is refused, tried as the .*: \S+none\.so: found '
                               r'"No such file or directory", '
                               r"expected a file that can be read \[PXG-LOAD-011\] in"),
    "a folder": (guest("dir"), r"found no regular file, expected an ELF shared object \[PXG-LOAD-011\] in"),
    "empty": (guest("empty"), r"found an empty file, expected an ELF shared object"),
    "text": (guest("text"), r"found a file that is not ELF, expected an ELF shared object"),
    "cut": (guest("cut"), r"found section headers beyond its end, expected a whole file"),
    "architecture": (guest("arch"), r"found an object for AArch64 \(ELF machine 183\), expected one for x86-64 \(62\) \[PXG-LOAD-011\]"),
    "another architecture": (guest("sparc"), r"found an object for another architecture \(ELF machine 2\), expected one for x86"),
    "an executable": (guest("executable"), r"found an executable, expected a shared object: cc -shared -fPIC, or go build "
                                           r"-buildmode=c-shared \[PXG-LOAD-011\]"),
    "a position-independent executable": (guest("pie"), r"it cannot be loaded: .*position-independent executable \[PXG-LOAD-003\]"),
    "an archive": (guest("archive"), r"found a file that is not ELF, expected an ELF shared object"),
    "an object": (guest("object"), r"found an ELF file of another type, expected a shared object"),
    "stripped of sections": (guest("no_sections"), r"found no section headers, expected those of a shared object"),
    "cut in its header": (guest("cut_header"), r"found an ELF file that is cut, expected an ELF shared object"),
    "big-endian": (guest("endian"), r"found a big-endian ELF file, expected a little-endian one"),
    "a FIFO": (guest("fifo"), r"found no regular file, expected an ELF shared object"),
    "a link to nothing": (guest("dangling"), r'dangling\.so: found "No such file or directory", expected a file that can be read'),
    "32 bit": (guest("bits"), r"found an ELF file that is not 64-bit, expected a 64-bit one"),
    "no entry": (guest("no_entry"), r"found no symbol pxg_guest_init_v1, expected a guest, which exports it"),
    "entry is data": (guest("data"), r"found pxg_guest_init_v1 as data, expected a function"),
    "unresolved": (guest("unresolved"), r"it cannot be loaded: \S+ undefined symbol: nobody_has_this \[PXG-LOAD-003\]"),
    "another version": (guest("other_major"), r"found major version 2 in its table, expected 1 \[PXG-LOAD-010\]"),
    "no hook": (guest("no_hook"), r"found on_event null in its table, expected a function \[PXG-LOAD-010\]"),
    "a feature": (guest("needs"), r"it requires features that this host lacks: L4 \[PXG-NEG-003\]"),
    "init says no": (guest("says_no"), r"its init answered INTERNAL \(-9\), expected OK: the licence is in the other coat"),
    "not for the worker": (guest("locked"), r"tried as the worker's user \w+: \S+locked/guest\.so: found "
                                            r'"Permission denied", expected a file that this process may read \[PXG-LOAD-011\]'),
    "not for the worker, the file": (guest("private"), r"tried as the worker's user \w+: \S+private\.so: found "
                                                      r'"Permission denied", expected a file that can be read \[PXG-LOAD-011\]'),
    # Guests.
    "library's filter": (("proxy_golang_filter a {{ guest {good}; filter toast; }}", None),
                         r"NOTFOUND \(-8\): filter: found toast, expected one of operator, other \[PXG-CFG-001\] in"),
    "refusal": (config("refuse the moon is full"), r'proxy_golang_filter "a" with guest "\S+" is refused, tried as the .*: '
                                                   r"guest=operator-test filter=operator config=a file=\S+: ARG \(-3\): "
                                                   r"the moon is full in"),
    "without a word": (config("silent"), r"ARG \(-3\): the guest does not say why in"),
    "no parent": (config("override"), r"ARG \(-3\): found no parent, expected one in"),
    "override is refused": (server("location /o {{ proxy_golang a; proxy_golang_override a {{ config 'refuse here'; }} }}"),
                            r'proxy_golang_override "a" with guest "\S+" is refused, .*ARG \(-3\): here in'),
    "crash": (config("crash"), r"found a crash by signal 6 \(Aborted\) in on_config_new, in the process that validates; "
                               r"expected an answer in"),
    "exit": (config("exit"), r"found the end of the process that validates \(exit status 3\) in on_config_new; expected an "
                             r"answer, and a guest never ends the process \[PXG-RT-007\] in"),
}


class Refusals(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.build = tempfile.mkdtemp(prefix="pxg-refusals-")
        cls.addClassCleanup(shutil.rmtree, cls.build, True)
        os.chmod(cls.build, 0o755)
        cls.files = cls.guests(cls.build)

    @staticmethod
    def guests(build):
        at = {"good": harness.build_c(f"{harness.HERE}/guests/operator.c", f"{build}/operator.so"),
              "none": f"{build}/none.so"}

        def write(name, data):
            at[name] = f"{build}/{name}.so"
            with open(at[name], "wb") as f:
                f.write(data)
        for macro in ("OTHER_MAJOR", "NEEDS", "NO_HOOK", "SAYS_NO", "UNRESOLVED"):
            at[macro.lower()] = f"{build}/{macro.lower()}.so"
            subprocess.run(["cc", "-std=c99", "-fPIC", "-shared", "-fvisibility=hidden", f"-I{harness.ROOT}/include",
                            f"-D{macro}", f"{harness.HERE}/guests/refused.c", "-o", at[macro.lower()]], check=True)
        for name, text in (("no_entry", "int nothing;"), ("data", "int pxg_guest_init_v1 = 1;")):
            at[name] = f"{build}/{name}.so"
            subprocess.run(["cc", "-fPIC", "-shared", "-x", "c", "-", "-o", at[name]], input=text, text=True, check=True)
        with open(at["good"], "rb") as f:
            elf = f.read()
        write("empty", b"")
        write("text", b"#!/bin/sh\necho no library, whatever its name says, and longer than an ELF header is\n")
        write("cut", elf[: len(elf) // 2])
        write("arch", elf[:18] + struct.pack("<H", 183) + elf[20:])
        write("sparc", elf[:18] + struct.pack("<H", 2) + elf[20:])
        write("cut_header", elf[:40])
        write("endian", elf[:5] + b"\x02" + elf[6:])
        write("no_sections", elf[:60] + bytes(4))
        for name, how in (("executable", ("-no-pie",)), ("pie", ("-pie", "-rdynamic")), ("object", ("-c",))):
            at[name] = f"{build}/{name}.so"
            subprocess.run(["cc", *how, "-x", "c", "-", "-o", at[name]], check=True, text=True,
                           input="int pxg_guest_init_v1(void) { return 0; } int main(void) { return 0; }")
        at["archive"] = f"{build}/archive.so"
        subprocess.run(["ar", "rc", at["archive"], at["object"]], check=True)
        at["fifo"], at["huge"], at["dangling"] = f"{build}/fifo", f"{build}/huge", f"{build}/dangling.so"
        os.mkfifo(at["fifo"])
        os.symlink(f"{build}/none.so", at["dangling"])
        with open(at["huge"], "wb") as f:
            f.truncate((64 << 20) + 1)
        at["private"] = shutil.copy(at["good"], f"{build}/private.so")
        os.chmod(at["private"], 0o600)
        write("bits", elf[:4] + b"\x01" + elf[5:])
        at["dir"] = f"{build}/dir.so"
        os.mkdir(at["dir"])
        os.mkdir(f"{build}/locked", 0o700)
        at["locked"] = shutil.copy(at["good"], f"{build}/locked/guest.so")
        return at

    def tried(self, path, wrong, server):
        conf = f"""load_module {harness.MODULE};
{"daemon off;"} pid {path}/nginx.pid; error_log {path}/logs/error.log notice;
events {{ }}
http {{
  {harness.temp_paths(path)}
"""
        first = conf.count("\n") + 1
        text = wrong.format(**self.files)
        conf += text + "\n"
        last = first + text.count("\n")
        if server is not None:
            last = conf.count("\n") + 1
            conf += "server {{ listen unix:{0}/n.sock; {1} }}\n".format(path, server.format(**self.files))
        return Nginx(path, conf + "}\n").test(), first, last

    def test_good(self):
        for name, (wrong, text) in {"http": http(""), "server": server("proxy_golang a;"), "line": line("max_body 1m;"),
                                    "override": server("location /o {{ proxy_golang a; proxy_golang_override a {{ config "
                                                       "override; }} }}"),
                                    "all": line("failure_mode open; failure_status 503; pend_default 1s; pend_limit 2s; "
                                                "hold_limit 1m; hold_time 5ms; max_pending 9; max_body 2m; "
                                                "body_default 1k; clusters a b; metadata_namespaces c d; "
                                                "reply_refilter off; batch_end off; warm_up off; all_cpus off;")}.items():
            with self.subTest(name), folder() as path:
                (ok, said), _, _ = self.tried(path, wrong, text)
                self.assertTrue(ok, said)

    def test_any_byte_in_config_file(self):
        """And as many as 64m."""
        with folder() as path:
            with open(f"{path}/a.conf", "wb") as f:
                f.write(b"length \0\n\xff" + bytes((64 << 20) - 10))
            (ok, said), _, _ = self.tried(path, "proxy_golang_filter a {{ guest {good}; filter operator; config_file a.conf; }}", None)
            self.assertTrue(ok, said)
            self.assertIn(f"life: {64 << 20} bytes, the last NUL is at {(64 << 20) - 1}", said)

    def test_bad(self):
        def one(name):
            with folder() as path:
                return self.tried(path, *CASES[name][0])
        names = [n for n in CASES if os.geteuid() == 0 or not n.startswith("not for the worker")]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            got = dict(zip(names, pool.map(one, names)))
        for name, ((ok, said), first, last) in got.items():
            expected = CASES[name][1]
            with self.subTest(name):
                self.assertFalse(ok, said)
                lines = [l for l in said.splitlines() if "[emerg]" in l]
                self.assertTrue(any(re.search(expected, l) for l in lines), said)
                at = [int(n) for l in lines for n in re.findall(r"nginx\.conf:(\d+)$", l)]
                self.assertTrue(at, said)
                self.assertTrue(all(first <= n <= last for n in at), said)
                self.assertNotIn("[alert]", said)

    def test_override_without_effect(self):
        with folder() as path:
            (ok, said), _, last = self.tried(path, *server("location /o {{ proxy_golang_override a {{ disabled on; }} }}"))
            self.assertTrue(ok, said)
            self.assertRegex(said, rf'\[warn\] .*proxy_golang_override "a" has no effect: no chain of its location has this '
                                   rf'filter, expected it in "proxy_golang" there in \S+nginx\.conf:{last}\n')


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
