# SPDX-License-Identifier: Apache-2.0
"""Filters of responses: gzip, SSI, sub_filter, additions, charset, fields."""

import gzip

from . import FILES, Subject, chunked, response

LONG = FILES["big.bin"]
HTML = FILES["page.html"]
ZIPPED = gzip.compress(HTML, mtime=0)
NOW = 'Last-Modified: Thu, 24 Sep 1970 04:53:20 GMT'

s = Subject("gzip", """
gzip on; gzip_types text/plain application/octet-stream; gzip_min_length 20; gzip_vary on; gzip_proxied any;
location / { }
location /static/ { alias %D%/zipped/; gzip_static on; }
location /always/ { alias %D%/zipped/; gzip_static always; gunzip on; }
location /up/ { proxy_pass http://%UP%:/; }
location /gunzip/ { gzip off; gunzip on; proxy_pass http://%UP%:/; }
location /http10 { gzip_http_version 1.0; alias %D%/html/page.html; }
location /disabled { gzip_disable "old"; alias %D%/html/page.html; }
location /proxied-off/ { gzip_proxied off; alias %D%/html/; }
location /small-buffers/ { gzip_buffers 2 4k; alias %D%/html/; }
""", needs=("http_gzip_static_module", "http_gunzip_module"), origin={
    "/html": response(HTML, "Content-Type: text/html", 'ETag: "strong"'),
    "/chunked": response(chunked(HTML[:500], HTML[500:]), "Content-Type: text/html", "Transfer-Encoding: chunked", length=False),
    "/zipped": response(ZIPPED, "Content-Type: text/html", "Content-Encoding: gzip", 'ETag: "strong"'),
    "/broken": response(ZIPPED[:50], "Content-Type: text/html", "Content-Encoding: gzip"),
    "/long": response(LONG, "Content-Type: text/plain"),
})
Z = "Accept-Encoding: gzip"
s.get("gzip: file", "/page.html", Z)
s.get("gzip: not asked for", "/page.html")
s.get("gzip: q=0", "/page.html", "Accept-Encoding: gzip;q=0")
s.get("gzip: HEAD", "/page.html", Z, method="HEAD")
s.get("gzip: too short", "/small.txt", Z)
s.get("gzip: large file", "/big.bin", Z)
s.get("gzip: range", "/page.html", Z, "Range: bytes=0-9")
s.get("gzip: 304", "/page.html", Z, "If-Modified-Since: Thu, 24 Sep 1970 04:53:20 GMT")
s.get("gzip: HTTP/1.0 client", "/page.html", Z, protocol="HTTP/1.0")
s.get("gzip: gzip_http_version 1.0", "/http10", Z, protocol="HTTP/1.0")
s.get("gzip: gzip_disable", "/disabled", Z, "User-Agent: old")
s.get("gzip: Via and gzip_proxied off", "/proxied-off/page.html", Z, "Via: 1.1 x")
s.get("gzip: small buffers", "/small-buffers/big.bin", Z)
s.get("gzip: error page", "/none", Z)
for path in ("html", "chunked", "zipped", "long"):
    s.get(f"gzip: upstream's {path}", f"/up/{path}", Z)
    s.get(f"gunzip: upstream's {path}", f"/gunzip/{path}")
s.get("gunzip: broken", "/gunzip/broken")
s.get("gunzip: HEAD", "/gunzip/zipped", method="HEAD")
s.get("gunzip: client takes gzip", "/gunzip/zipped", Z)
s.get("gzip_static", "/static/page.html", Z)
s.get("gzip_static: not asked for", "/static/page.html")
s.get("gzip_static: range", "/static/page.html", Z, "Range: bytes=0-9")
s.get("gzip_static always with gunzip", "/always/only-zipped.html")

s = Subject("ssi", """
location / { ssi on; root %D%/ssi; }
location /up/ { ssi on; proxy_pass http://%UP%:/; }
location /inc/ { root %D%/ssi; }
location /silent/ { ssi on; ssi_silent_errors on; alias %D%/ssi/; }
location /logged/ { ssi on; log_subrequest on; alias %D%/ssi/; }
location /value { return 200 "value $arg_x"; }
""", origin={
    "/page": response(b'up: <!--#include virtual="/inc/part.html" --> <!--#include virtual="/up/part" -->\n', "Content-Type: text/html"),
    "/part": response(b"[part of the upstream]", "Content-Type: text/html"),
})
SSI_FILES = {
    "include.html": b'a <!--#include virtual="/inc/part.html" --> b <!--#include virtual="/value?x=1" --> c\n',
    "several.html": b"".join(b'<!--#include virtual="/up/part?%d" wait="yes" -->\n' % i for i in range(5)),
    "file.html": b'<!--#include file="inc/part.html" -->\n',
    "nested.html": b'<!--#include virtual="/include.html" -->\n',
    "missing.html": b'x <!--#include virtual="/inc/none.html" --> y\n',
    "stub.html": b'<!--#block name="b" -->stub<!--#endblock --><!--#include virtual="/inc/none.html" stub="b" -->\n',
    "set.html": b'<!--#include virtual="/up/part" set="v" --><!--#echo var="v" encoding="none" -->\n',
    "if.html": b'<!--#set var="a" value="1" --><!--#if expr="$a = 1" -->yes<!--#else -->no<!--#endif -->\n',
    "echo.html": b'<!--#echo var="request_method" --> <!--#echo var="none" default="-" -->\n',
    "bad.html": b'x <!--#nonsense --> y\n',
    "large.html": LONG[:100_000] + b'<!--#include virtual="/inc/part.html" -->' + LONG[:100_000],
    "inc/part.html": b"[part]",
}
for name in SSI_FILES:
    if "/" not in name:
        s.get(f"ssi: {name}", f"/{name}")
s.get("ssi: upstream's page", "/up/page")
s.get("ssi: HEAD", "/include.html", method="HEAD")
s.get("ssi: POST to a page", "/up/page", method="POST", body=b"posted" * 3000)
s.get("ssi: silent errors", "/silent/bad.html")
s.get("ssi: logged subrequests", "/logged/include.html")
s.get("ssi: HTTP/1.0", "/include.html", protocol="HTTP/1.0")

s = Subject("substitute", """
location / { sub_filter word "WORD and more"; sub_filter_once off; sub_filter title Title; }
location /once/ { alias %D%/html/; sub_filter word one; sub_filter_last_modified on; }
location /types/ { alias %D%/html/; sub_filter_types text/plain; sub_filter line LINE; sub_filter_once off; }
location /up/ { sub_filter 0000 zero; sub_filter_types *; sub_filter_once off; proxy_pass http://%UP%:/; }
location /add/ { alias %D%/html/; add_before_body /small.txt; add_after_body /text.txt; }
location = /small.txt { }
location /charset/ { alias %D%/html/; charset windows-1251; source_charset utf-8; override_charset on; }
""", "charset_map windows-1251 utf-8 { EF D0BF; }", needs=("http_sub_module", "http_addition_module"),
            origin={"/long": response(LONG, "Content-Type: text/html")})
s.get("sub_filter", "/page.html")
s.get("sub_filter: HEAD", "/page.html", method="HEAD")
s.get("sub_filter: once", "/once/page.html")
s.get("sub_filter: types", "/types/text.txt")
s.get("sub_filter: upstream", "/up/long")
s.get("sub_filter: range", "/page.html", "Range: bytes=0-9")
s.get("addition", "/add/page.html")
s.get("addition: HEAD", "/add/page.html", method="HEAD")
s.get("charset", "/charset/page.html")

s = Subject("fields", """
location / { add_header X-Plain value; add_header X-Variable "$request_method $uri"; add_header X-Always yes always; add_header X-Empty ""; }
location /nested/ { add_header X-Outer yes; location /nested/in/ { add_header X-Inner yes; alias %D%/html/; } }
location /expires/max { expires max; alias %D%/html/small.txt; }
location /expires/off { expires -1; alias %D%/html/small.txt; }
location /expires/epoch { expires epoch; alias %D%/html/small.txt; }
location /expires/hour { expires 1h; alias %D%/html/small.txt; }
location /expires/up { expires 1h; proxy_pass http://%UP%/known; }
location /modified/ { alias %D%/html/; add_header Last-Modified "Thu, 24 Sep 1969 04:53:20 GMT"; }
location /control/ { alias %D%/html/; add_header Cache-Control no-cache; add_header Cache-Control private; }
location /tokens/ { alias %D%/html/; server_tokens off; }
location /userid/ { alias %D%/html/; userid log; }
location /trailer/ { add_trailer X-Trailer "$request_method" always; proxy_pass http://%UP%:/; }
location /trailer-file/ { add_trailer X-Trailer file; alias %D%/html/; gzip on; gzip_types *; }
location /sent/ { add_header X-Sent "$sent_http_content_type|$sent_http_content_length|$sent_http_last_modified|$upstream_http_x_one"; proxy_pass http://%UP%:/; }
""", origin={
    "/known": response(b"known", "Expires: Thu, 24 Sep 1970 04:53:20 GMT", "Cache-Control: public", NOW),
    "/chunked": response(chunked(b"one", b"two"), "Transfer-Encoding: chunked", length=False),
})
s.get("add_header", "/small.txt")
s.get("add_header: 404", "/none")
s.get("add_header: nested", "/nested/in/small.txt")
for how in ("max", "off", "epoch", "hour", "up"):
    s.get(f"expires {how}", f"/expires/{how}")
s.get("add_header Last-Modified", "/modified/small.txt")
s.get("add_header Cache-Control twice", "/control/small.txt")
s.get("server_tokens off: error page", "/tokens/none")
s.get("add_trailer: chunked", "/trailer/chunked", "TE: trailers")
s.get("add_trailer: length", "/trailer/known")
s.get("add_trailer: gzipped file", "/trailer-file/page.html", "Accept-Encoding: gzip")
s.get("variables of the response", "/sent/known")
