# SPDX-License-Identifier: Apache-2.0
"""Files: ranges, conditional requests, indexes, try_files, alias, DAV."""

from harness import request

from . import FILES, Subject

# ---- Ranges ----------------------------------------------------------------------------------------------------------

s = Subject("ranges", """
location / { }
location /one/ { alias %D%/html/; max_ranges 1; }
location /none/ { alias %D%/html/; max_ranges 0; }
location /mem/ { alias %D%/html/; sendfile off; }
location /direct/ { alias %D%/html/; directio 4k; output_buffers 2 64k; }
location /limited/ { alias %D%/html/; limit_rate 900k; limit_rate_after 800k; }
""")
for name, spec in {
    "first bytes": "0-99", "middle": "500-599", "last byte": "1699-1699", "open end": "1000-", "suffix": "-100",
    "suffix larger than the file": "-99999", "end beyond the file": "1600-99999", "unsatisfiable": "99999-",
    "reversed": "20-10", "no number": "a-b", "empty": "", "spaces": " 0 - 9 ", "two": "0-9,20-29",
    "three with suffix": "0-9,20-29,-5", "overlapping": "0-99,50-149", "whole file twice": "0-,0-",
    "one of two unsatisfiable": "0-9,99999-", "all unsatisfiable": "99999-,100000-", "many": ",".join(f"{i}-{i}" for i in range(40)),
}.items():
    s.get(f"range: {name}", "/text.txt", f"Range: bytes={spec}")
s.get("range: other unit", "/text.txt", "Range: lines=0-9")
s.get("range: HEAD", "/text.txt", "Range: bytes=0-9", method="HEAD")
s.get("range: POST is none", "/text.txt", "Range: bytes=0-9", method="POST", body=b"x")
s.get("range: of an empty file", "/empty.txt", "Range: bytes=0-9")
s.get("range: of a large file", "/big.bin", "Range: bytes=100000-900000")
s.get("range: two of a large file", "/big.bin", "Range: bytes=100000-200000,500000-900000")
s.get("range: If-Range with the etag", "/text.txt", "Range: bytes=0-9", 'If-Range: "15ef3c0-6a4"')
s.get("range: If-Range with another etag", "/text.txt", "Range: bytes=0-9", 'If-Range: "nope"')
s.get("range: If-Range with the time", "/text.txt", "Range: bytes=0-9", "If-Range: Thu, 24 Sep 1970 04:53:20 GMT")
s.get("range: If-Range with another time", "/text.txt", "Range: bytes=0-9", "If-Range: Thu, 24 Sep 1980 04:53:20 GMT")
s.get("max_ranges 1: one", "/one/text.txt", "Range: bytes=0-9")
s.get("max_ranges 1: two", "/one/text.txt", "Range: bytes=0-9,20-29")
s.get("max_ranges 0", "/none/text.txt", "Range: bytes=0-9")
s.get("sendfile off: whole", "/mem/big.bin")
s.get("sendfile off: range", "/mem/big.bin", "Range: bytes=70000-")
s.get("directio: whole", "/direct/big.bin")
s.get("directio: range", "/direct/big.bin", "Range: bytes=12345-77777")
s.get("limit_rate: whole", "/limited/big.bin")
s.get("limit_rate: range", "/limited/big.bin", "Range: bytes=-100000")

# ---- Files and conditions --------------------------------------------------------------------------------------------

s = Subject("files", """
location / { }
location /exact/ { alias %D%/html/; if_modified_since exact; }
location /before/ { alias %D%/html/; if_modified_since before; }
location /ims-off/ { alias %D%/html/; if_modified_since off; }
location /no-etag/ { alias %D%/html/; etag off; }
location /typed/ { alias %D%/html/; types { text/x-test txt; } default_type application/x-none; charset utf-8; charset_types text/x-test; }
""")
THEN, LATER, EARLIER = ("Thu, 24 Sep 1970 04:53:20 GMT", "Thu, 24 Sep 1980 04:53:20 GMT", "Thu, 24 Sep 1969 04:53:20 GMT")
s.get("file", "/text.txt")
s.get("file: HEAD", "/text.txt", method="HEAD")
s.get("file: empty", "/empty.txt")
s.get("file: large", "/big.bin")
s.get("file: HTTP/1.0", "/text.txt", protocol="HTTP/1.0")
s.get("file: missing", "/missing.txt")
s.get("file: missing, HEAD", "/missing.txt", method="HEAD")
s.get("file: POST", "/text.txt", method="POST", body=b"a=b")
s.get("file: PUT", "/text.txt", method="PUT", body=b"a=b")
s.get("file: DELETE", "/text.txt", method="DELETE")
s.get("file: OPTIONS", "/text.txt", method="OPTIONS")
s.get("file: TRACE", "/text.txt", method="TRACE")
s.get("file: PROPFIND", "/text.txt", method="PROPFIND")
s.get("file: unknown method", "/text.txt", method="BREW")
s.get("file: escaped path", "/%74ext.txt?a=b%20c")
s.get("file: dots in the path", "/dir/../text.txt")
s.get("file: above the root", "/../../etc/passwd")
s.get("file: NUL in the path", "/text%00.txt")
s.get("directory without a slash", "/dir")
s.get("directory without a slash, with arguments", "/dir?x=y")
s.get("directory with an index", "/dir/")
s.get("directory without an index", "/no-index/")
for name, field in {
    "If-Modified-Since: the same": f"If-Modified-Since: {THEN}",
    "If-Modified-Since: later": f"If-Modified-Since: {LATER}",
    "If-Modified-Since: earlier": f"If-Modified-Since: {EARLIER}",
    "If-Modified-Since: no date": "If-Modified-Since: whenever",
    "If-Unmodified-Since: the same": f"If-Unmodified-Since: {THEN}",
    "If-Unmodified-Since: earlier": f"If-Unmodified-Since: {EARLIER}",
    "If-None-Match: star": "If-None-Match: *",
    "If-None-Match: another": 'If-None-Match: "x"',
    "If-Match: star": "If-Match: *",
    "If-Match: another": 'If-Match: "x"',
}.items():
    s.get(f"condition: {name}", "/text.txt", field)


@s.case("condition: If-None-Match and If-Match with the etag")
def etag(r):
    tag = r.ask("/text.txt", method="HEAD").get("etag")[0]
    for field in ("If-None-Match: ", "If-None-Match: W/", 'If-None-Match: "x", ', "If-Match: ", "If-Match: W/"):
        r.ask("/text.txt", field + tag)
    r.ask("/text.txt", f"If-None-Match: {tag}", "If-Modified-Since: " + EARLIER)
    r.ask("/text.txt", f"If-None-Match: {tag}", method="HEAD")


s.get("if_modified_since exact: later", "/exact/text.txt", f"If-Modified-Since: {LATER}")
s.get("if_modified_since before: later", "/before/text.txt", f"If-Modified-Since: {LATER}")
s.get("if_modified_since off", "/ims-off/text.txt", f"If-Modified-Since: {THEN}")
s.get("etag off", "/no-etag/text.txt", "If-None-Match: *")
s.get("types and charset", "/typed/text.txt")
s.get("default type", "/typed/page.html")


@s.case("files one after the other on one connection")
def keepalive(r):
    with r.connect() as c:
        for path in ("/text.txt", "/missing.txt", "/big.bin", "/dir", "/empty.txt", "/small.txt"):
            c.send(request("GET", path))
            r.take(c)


# ---- Indexes, try_files ----------------------------------------------------------------------------------------------

s = Subject("indexes", """
location /list/ { autoindex on; }
location /json/ { alias %D%/html/list/; autoindex on; autoindex_format json; }
location /xml/ { alias %D%/html/list/; autoindex on; autoindex_format xml; autoindex_exact_size off; }
location /several/ { alias %D%/html/no-index/; index none.html x.txt; }
location /absolute/ { alias %D%/html/no-index/; index none.html /small.txt; }
location /try/ { try_files $uri /text.txt; }
location /try-code/ { try_files $uri =418; }
location /try-named/ { try_files $uri @named; }
location /try-dir/ { try_files /dir/ =404; }
location @named { return 200 "named $uri\\n"; }
location /alias-regex { location ~ ^/alias-regex/(.*)$ { alias %D%/html/$1; } }
location = /exact { return 200 exact; }
location ^~ /prefix { return 200 prefix; }
location ~ \\.txt$ { return 200 regex; }
location /secret/ { internal; alias %D%/html/; }
location /links/ { disable_symlinks on; alias %D%/html/; }
location /cached/ { alias %D%/html/; open_file_cache max=10; open_file_cache_errors on; }
""")
s.get("autoindex: html", "/list/")
s.get("autoindex: json", "/json/")
s.get("autoindex: xml", "/xml/")
s.get("autoindex: HEAD", "/list/", method="HEAD")
s.get("index: second of several", "/several/")
s.get("index: absolute", "/absolute/")
s.get("try_files: file", "/try/x")
s.get("try_files: code", "/try-code/x")
s.get("try_files: named location", "/try-named/x")
s.get("try_files: directory", "/try-dir/")
s.get("alias in a regex location", "/alias-regex/small.txt")
s.get("location: exact", "/exact")
s.get("location: prefix without regex", "/prefix/x.txt")
s.get("location: regex", "/any/x.txt")
s.get("location: internal", "/secret/page.html")
s.get("disable_symlinks", "/links/page.html")
s.get("open_file_cache", "/cached/page.html", times=3)
s.get("open_file_cache: errors", "/cached/none.html", times=2)

s = Subject("random-index", "location / { alias %D%/html/no-index/; random_index on; }", needs=("http_random_index_module",))
s.get("random_index", "/")

# ---- DAV -------------------------------------------------------------------------------------------------------------

s = Subject("dav", """
root %D%/dav; client_max_body_size 4m;
location / { dav_methods PUT DELETE MKCOL COPY MOVE; create_full_put_path on; }
""", needs=("http_dav_module",))
BIG = FILES["big.bin"]


@s.case("dav: PUT, MKCOL, COPY, MOVE, DELETE")
def dav(r):
    r.ask("/a.txt", "Date: Thu, 24 Sep 1970 04:53:20 GMT", method="PUT", body=b"one\n")
    with open(f"{r.dir}/dav/a.txt", "rb") as f:
        r.note(f.read())
    r.ask("/a.txt", method="PUT", body=b"two\n")
    r.ask("/folder/", method="MKCOL")
    r.ask("/folder/", method="MKCOL")
    r.ask("/a.txt", "Destination: http://e/b.txt", method="COPY")
    r.ask("/b.txt", "Destination: http://e/folder/c.txt", method="MOVE")
    r.ask("/folder/", "Depth: infinity", method="DELETE")
    r.ask("/a.txt", method="DELETE")
    r.ask("/a.txt", method="DELETE")


@s.case("dav: PUT of a body that goes to a file")
def dav_big(r):
    r.ask("/deep/er/big.bin", method="PUT", body=BIG)
    with open(f"{r.dir}/dav/deep/er/big.bin", "rb") as f:
        r.note(f.read() == BIG)


@s.case("dav: PUT in chunks")
def dav_chunks(r):
    with r.connect() as c:
        c.send(request("PUT", "/chunks.bin", ("Transfer-Encoding: chunked", "Connection: close")))
        for at in range(0, 300_000, 30_000):
            c.send(b"7530\r\n" + BIG[at:at + 30_000] + b"\r\n")
        c.send(b"0\r\n\r\n")
        r.take_all(c, ["PUT"])
    with open(f"{r.dir}/dav/chunks.bin", "rb") as f:
        r.note(f.read() == BIG[:300_000])


s.get("dav: PUT with a range is refused", "/r.txt", "Content-Range: bytes 0-1/2", method="PUT", body=b"xy")
s.get("dav: PUT onto a folder", "/deep/", method="PUT", body=b"xy")
s.get("dav: COPY without a destination", "/chunks.bin", method="COPY")
