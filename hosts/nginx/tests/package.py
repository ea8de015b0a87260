#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Debian's package: what is in it, and its life beside a running nginx: installed, used, upgraded, removed, purged.

    PXG_NGINX_MODULE=MODULE.so tests/package.py [unittest arguments]

For Debian's nginx; elsewhere there is nothing to test. The packages' tools work in a copy of the file system that is
thrown away (unshare, overlayfs), so nothing of this machine changes; that part needs root. The module is the given one, not
compiled anew. Environment: see harness.py.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import harness

NAME = "libnginx-mod-http-proxy-golang"
FILES = {"/usr/lib/nginx/modules/ngx_http_proxy_golang_module.so", f"/usr/share/doc/{NAME}/README.md.gz",
         f"/usr/share/doc/{NAME}/changelog.gz", f"/usr/share/doc/{NAME}/copyright",
         "/usr/share/nginx/modules-available/mod-http-proxy-golang.conf"}
ENABLED = "/etc/nginx/modules-enabled/50-mod-http-proxy-golang.conf"

SITE = """
proxy_golang_filter a { guest /run/guest.so; filter operator; config 'header on'; }
server { listen unix:/run/pxg.sock; root /run/pxg;
  location / { proxy_golang a; }
  location = /status { proxy_golang_status json; } }
"""

# What an administrator types. `ask` prints the guest's field, and the number of workers so far.
LIFE = r"""
ask() { python3 - "$1" <<'END'
import http.client, json, socket, sys
class Local(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect("/run/pxg.sock")
def get(path):
    c = Local("localhost")
    c.request("GET", path, headers={"Connection": "close"})
    return c.getresponse()
print(sys.argv[1] + ":", get("/x").getheader("x-guest"), json.load(get("/status"))["workers"]["pxg_worker_starts_total"])
END
}
until_ready() { n=0; until [ "$(grep -c 'worker ready' /var/log/nginx/error.log)" -ge "$1" ]; do
  n=$((n + 1)); [ $n -lt 1200 ] || { echo "no worker"; cat /var/log/nginx/error.log; exit 1; }; sleep 0.05; done; }
tested() { nginx -t >/run/said 2>&1 && echo "$1: good" || { echo "$1: bad"; sed 's/^/  /' /run/said; }; }
enabled() { [ -L ENABLED ] && echo "$1: enabled" || echo "$1: not enabled"; }
quietly() { "$@" >/run/said 2>&1 || { echo "failed: $*"; cat /run/said; exit 1; }; }

rm -f /etc/nginx/sites-enabled/* /etc/nginx/modules-enabled/*
sed -i 's/^worker_processes .*/worker_processes 1;/; s/^error_log .*/error_log \/var\/log\/nginx\/error.log notice;/' /etc/nginx/nginx.conf
grep -q '^error_log' /etc/nginx/nginx.conf || sed -i '1i error_log /var/log/nginx/error.log notice;' /etc/nginx/nginx.conf
: >/var/log/nginx/error.log
mkdir /run/pxg && echo text >/run/pxg/x && chmod 644 /run/guest.so
quietly dpkg -i /run/one.deb
enabled installed
cp /run/site.conf /etc/nginx/conf.d/pxg.conf
tested configured
/usr/sbin/nginx; until_ready 1; ask started
quietly dpkg -i /run/two.deb
ask upgraded
nginx -s reload; until_ready 2; ask reloaded
grep -c 'another file than the one that nginx has loaded' /var/log/nginx/error.log
old=$(cat /run/nginx.pid); kill -USR2 $old; until_ready 3; kill -QUIT $old
while [ -e /proc/$old ] && ! grep -q '^State:.Z' /proc/$old/status; do sleep 0.05; done
ask "new binary"
quietly dpkg -r NAME
enabled removed; ask removed; tested removed
rm /etc/nginx/conf.d/pxg.conf
tested "without its lines"
quietly dpkg -i /run/two.deb
enabled "installed again"
rm ENABLED
quietly dpkg -i /run/one.deb
enabled "disabled and installed again"
quietly dpkg -P NAME
ls -a /etc/nginx/modules-enabled /usr/lib/nginx/modules /usr/share/nginx/modules-available | grep proxy-golang
grep -E '\[(alert|crit|emerg)\]|exited on signal' /var/log/nginx/error.log
nginx -s stop
while [ -e /run/nginx.pid ]; do sleep 0.05; done
echo end
""".replace("ENABLED", ENABLED).replace("NAME", NAME)

EXPECTED = """installed: enabled
configured: good
started: on 1
upgraded: on 1
reloaded: on 2
1
new binary: on 1
removed: not enabled
removed: on 1
removed: bad
  UNKNOWN
without its lines: good
installed again: enabled
disabled and installed again: not enabled
end
"""


def said(*command, **how):
    return subprocess.run(command, check=True, capture_output=True, text=True, **how).stdout


class Package(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        if harness.NGINX != "/usr/sbin/nginx" or not shutil.which("dh_nginx") or not shutil.which("dpkg-buildpackage"):
            raise unittest.SkipTest("no nginx of Debian's, or no nginx-dev")
        cls.dir = tempfile.mkdtemp(prefix="pxg-package-")
        cls.addClassCleanup(shutil.rmtree, cls.dir, True)
        got = subprocess.run(["make", "-C", f"{harness.HERE}/..", "-f", "Makefile.module", "deb", f"BUILD={cls.dir}/build"],
                             capture_output=True, text=True, env=os.environ | {"PXG_PREBUILT": harness.MODULE})
        if got.returncode:
            raise RuntimeError(got.stdout[-4000:] + got.stderr[-4000:])
        found = [f for f in os.listdir(f"{cls.dir}/build/deb/hosts") if f.startswith(NAME + "_") and f.endswith(".deb")]
        cls.deb = shutil.copy(f"{cls.dir}/build/deb/hosts/{found[0]}", f"{cls.dir}/one.deb")
        # The next version: another file of the same name.
        said("dpkg-deb", "-R", cls.deb, f"{cls.dir}/next")
        with open(f"{cls.dir}/next/DEBIAN/control") as f:
            text = re.sub(r"(?m)^Version: (.*)$", r"Version: \1+next", f.read())
        with open(f"{cls.dir}/next/DEBIAN/control", "w") as f:
            f.write(text)
        said("dpkg-deb", "-b", f"{cls.dir}/next", f"{cls.dir}/two.deb")

    def test_contents(self):
        files = {line.split()[5][1:] for line in said("dpkg-deb", "-c", self.deb).splitlines() if not line.startswith("d")}
        self.assertEqual(files, FILES)
        abi = re.search(r"nginx-abi-[\w.-]+", said("dpkg-query", "-W", "-f", "${Provides}", "nginx"))[0]
        self.assertIn(abi, said("dpkg-deb", "-f", self.deb, "Depends"))
        said("dpkg-deb", "-x", self.deb, f"{self.dir}/x")
        with open(f"{self.dir}/x/usr/share/nginx/modules-available/mod-http-proxy-golang.conf") as f:
            self.assertEqual(f.read(), "load_module modules/ngx_http_proxy_golang_module.so;\n")
        module = f"{self.dir}/x/usr/lib/nginx/modules/ngx_http_proxy_golang_module.so"
        self.assertEqual(os.stat(module).st_mode & 0o777, 0o644)
        self.assertNotIn(".debug_info", said("readelf", "-SW", module))

    def test_life(self):
        layers = f"{self.dir}/layers"
        os.mkdir(layers)
        # Layers cannot lie on an overlay themselves, a tmpfs can; /run is new for its sockets and pid files.
        enter = (f"mount -t tmpfs none {layers} && mkdir {layers}/upper {layers}/work {layers}/root && "
                 f"mount -t overlay overlay -o lowerdir=/,upperdir={layers}/upper,workdir={layers}/work {layers}/root && "
                 f"mount -t tmpfs none {layers}/root/run && mount -t proc proc {layers}/root/proc && "
                 f"mount --rbind /dev {layers}/root/dev && ")
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]
        if subprocess.run([*unshare, enter + "true"], capture_output=True).returncode:
            self.skipTest("this process may not mount an overlay")
        with open(f"{self.dir}/site.conf", "w") as f:
            f.write(SITE)
        guest = harness.build_c("operator.c")
        with open(f"{self.dir}/life.sh", "w") as f:
            f.write(LIFE)
        copies = "".join(f"cp {self.dir}/{name} {layers}/root/run/; " for name in ("one.deb", "two.deb", "site.conf", "life.sh"))
        got = subprocess.run([*unshare, f"{enter} {copies} cp {guest} {layers}/root/run/guest.so; "
                                        f"chroot {layers}/root sh /run/life.sh"],
                             capture_output=True, text=True, timeout=harness.DEADLINE * 10,
                             env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        text = re.sub(r'(?m)^  .*unknown directive "proxy_golang_filter" in /etc/nginx/conf.d/pxg.conf:2\n(  .*\n)*', "  UNKNOWN\n",
                      got.stdout)
        self.assertEqual(text, EXPECTED, got.stderr)


if __name__ == "__main__":
    if not harness.MODULE:
        sys.exit(__doc__)
    unittest.main()
