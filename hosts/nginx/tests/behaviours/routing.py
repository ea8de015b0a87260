# SPDX-License-Identifier: Apache-2.0
"""return, rewrite, error_page, redirects, maps, mirrors, the real address, small content handlers."""

import time

from harness import request

from . import Subject, response

s = Subject("rewrite", """
location /200 { return 200 "two hundred $uri\\n"; }
location /204 { return 204; }
location /301 { return 301 /else; }
location /302 { return 302 http://other.example/x?y; }
location /307 { return 307 $scheme://$host$request_uri; }
location /418 { return 418; }
location /404-text { return 404 "text"; }
location /url-only { return https://only.example/; }
location /typed { default_type application/json; return 200 '{"a":1}'; }
location /empty { return 200; }
location /last { rewrite ^/last/(.*)$ /200/$1 last; }
location /break { rewrite ^/break/(.*)$ /$1 break; }
location /redirect { rewrite ^/redirect/(.*)$ /new/$1 redirect; }
location /permanent { rewrite ^/permanent/(.*)$ http://other.example/$1? permanent; }
location /loop { rewrite ^ /loop last; }
location /if { if ($arg_a = b) { return 200 "is b\\n"; } if ($request_method = POST) { return 405; } return 200 "is not b\\n"; }
location /set { set $x "$arg_a-$arg_b"; return 200 "$x\\n"; }
location /absolute { absolute_redirect off; return 301 /else; }
location /port { port_in_redirect off; return 301 /else; }
location /name { server_name_in_redirect on; return 301 /else; }
location /map { return 200 "$mapped $split\\n"; }
location /uninitialised { return 200 "[$never_set]\\n"; }
location /gif { empty_gif; }
location /off/ { return 200 "off\\n"; }
""", """
map $arg_a $mapped { default none; ~^x(.+)$ regex; hostnames; 1 one; }
split_clients $arg_a $split { 50% half; * other; }
server { access_log %D%/logs/rewrite.compare compare; listen unix:%S%; server_name other.example *.wild.example ~^re(?<n>\\d+)\\.example$; location / { return 200 "server $server_name $n\\n"; } }
map $host $never_set { default ""; }
""")
for path in ("200/x", "204", "301", "302", "307?a=b", "418", "404-text", "url-only", "typed", "empty", "last/y", "break/small.txt",
             "redirect/z?a=b", "permanent/z?a=b", "loop", "if?a=b", "if", "set?a=1&b=2", "absolute", "port", "name", "map?a=1",
             "map?a=xyz", "map?a=q", "uninitialised", "gif", "off/"):
    s.get(f"GET /{path}", f"/{path}")
s.get("HEAD of a return", "/200/x", method="HEAD")
s.get("POST to a return", "/200/x", method="POST", body=b"x" * 20_000)
s.get("POST in an if", "/if", method="POST", body=b"x")
s.get("range of a return", "/200/x", "Range: bytes=0-2")
s.get("range of empty_gif", "/gif", "Range: bytes=0-2")
s.get("HEAD of empty_gif", "/gif", method="HEAD")
s.get("server by name", "/", host="other.example")
s.get("server by wildcard", "/", host="a.wild.example")
s.get("server by regex", "/", host="re42.example")
s.get("redirect to the name asked for", "/301", host="e:8080")

s = Subject("errors", """
error_page 404 /404.html; error_page 403 =200 /ok; error_page 500 502 503 504 /50x; error_page 410 http://other.example/gone;
error_page 409 @named; error_page 402 =402 /small.txt; error_page 406 /missing-page; error_page 411 =411 /up/page411;
error_page 405 =204 /ok;
location / { }
location = /404.html { internal; return 404 "page for $request_uri\\n"; }
location = /ok { return 200 "ok\\n"; }
location = /50x { return 500 "fifty\\n"; }
location @named { add_header X-Named yes always; return 409 "named\\n"; }
location /403 { return 403; }
location /410 { return 410; }
location /409 { return 409; }
location /402 { return 402; }
location /406 { return 406; }
location /411 { return 411; }
location /500 { return 500; }
location /up/ { proxy_pass http://%UP%; }
location /recursive/ { recursive_error_pages on; error_page 404 = @first; alias %D%/nowhere/; }
location @first { recursive_error_pages on; error_page 404 = @second; return 404; }
location @second { return 200 "second\\n"; }
location /msie/ { msie_padding on; msie_refresh on; return 301 /x; }
location /unreadable { alias %D%/unreadable.txt; }
location /log-off/ { log_not_found off; }
location /directory-as-file { alias %D%/html/dir; index none; }
""")
for path in ("none", "403", "410", "409", "402", "406", "411", "500", "up/x", "recursive/x", "directory-as-file"):
    s.get(f"error_page: /{path}", f"/{path}")
s.get("error_page: HEAD", "/none", method="HEAD")
s.get("error_page: POST", "/411", method="POST", body=b"x" * 20_000)
s.get("error_page: 405 of a file", "/small.txt", method="POST", body=b"x" * 20_000)
s.get("error_page: range", "/none", "Range: bytes=0-1")
s.get("error_page: 402 is a file", "/402", "Range: bytes=0-1")
s.get("redirect for MSIE", "/msie/", "User-Agent: Mozilla/4.0 (compatible; MSIE 6.0)")


@s.case("errors one after the other on one connection")
def several(r):
    with r.connect() as c:
        for path in ("/none", "/403", "/409", "/up/x", "/small.txt", "/500"):
            c.send(request("POST" if path == "/409" else "GET", path, body=b"b" * 3000 if path == "/409" else None))
            r.take(c)


s = Subject("mirror", """
location / { mirror /copy; proxy_pass http://%UP%; }
location /off/ { mirror /copy-off; mirror_request_body off; proxy_pass http://%UP%; }
location = /copy { internal; proxy_pass http://%UP%:/copied; proxy_set_header X-Original $request_uri; }
location = /copy-off { internal; proxy_pass http://%UP%:/copied; proxy_pass_request_body off; proxy_set_header Content-Length ""; proxy_set_header X-Original $request_uri; }
location /file/ { mirror /copy; alias %D%/html/; }
location /seen { proxy_pass http://%UP%:/seen; }
""")


def copied(req, connection):
    connection.server.copies = getattr(connection.server, "copies", []) + [(req.method, req.get("x-original"), len(req.body))]
    connection.say(response(b""))
    return False


s.origin["/copied"] = copied


def mirrored(path, method="GET", body=None):
    def run(r):
        r.upstream.copies = []
        r.ask(path, method=method, body=body)
        end = time.monotonic() + 20
        while not r.upstream.copies and time.monotonic() < end:
            time.sleep(0.005)
        r.note(r.upstream.copies)
    return run


s.add("mirror: GET", mirrored("/x"))
s.add("mirror: POST", mirrored("/x", "POST", b"m" * 30_000))
s.add("mirror: body off", mirrored("/off/x", "POST", b"m" * 30_000))
s.add("mirror: file", mirrored("/file/small.txt"))

s = Subject("real", """
set_real_ip_from unix:; real_ip_header X-Real; real_ip_recursive on;
location / { return 200 "$remote_addr $geo\\n"; }
location /up/ { proxy_set_header X-Addr "$remote_addr|$proxy_add_x_forwarded_for"; proxy_pass http://%UP%; }
location /deny/ { deny 10.0.0.1; allow all; alias %D%/html/; }
location /file/ { alias %D%/html/; add_header X-Addr "$remote_addr $geo"; }
location /status { stub_status; access_log off; }
location /status/ { alias %D%/html/; add_header X-Active "$connections_writing"; }
""", "geo $geo { default far; 10.0.0.0/8 near; }", needs=("http_realip_module", "http_stub_status_module"))
s.get("realip: return", "/", "X-Real: 10.0.0.1")
s.get("realip: upstream", "/up/", "X-Real: 10.0.0.1")
s.get("realip: file", "/file/small.txt", "X-Real: 11.0.0.1, 10.0.0.2")
s.get("realip: deny", "/deny/small.txt", "X-Real: 10.0.0.1")
s.get("realip: not denied", "/deny/small.txt", "X-Real: 10.0.0.2")
s.get("realip: garbage", "/file/small.txt", "X-Real: nobody")


@s.case("stub_status")
def stub_status(r):
    with r.connect() as c:
        c.send(request("GET", "/status", ("Connection: close",)))
        r.note([line.split(":")[0] for line in c.answer().body.decode().splitlines() if not line.strip()[:1].isdigit()])


s = Subject("log", """
access_log off;
location / { }
location /some/ { access_log %D%/logs/some.compare compare if=$arg_log; alias %D%/html/; }
location /two/ { access_log %D%/logs/two-a.compare compare; access_log %D%/logs/two-b.compare compare; alias %D%/html/; }
location /buffered/ { access_log %D%/logs/buffered.compare compare buffer=4k flush=20ms; alias %D%/html/; }
location /up/ { access_log %D%/logs/up.compare compare; proxy_pass http://%UP%; }
location /variables { add_header X-All "$request_method|$uri|$args|$scheme|$server_protocol|$request_length|$content_length|$http_host|$host|$is_args|$document_uri|$request_filename|$limit_rate|$https|$pipe" always; return 200 "x\\n"; }
""")
s.get("log: off", "/small.txt")
s.get("log: if", "/some/small.txt?log=1")
s.get("log: if not", "/some/small.txt")
s.get("log: two", "/two/small.txt")
s.get("log: buffered", "/buffered/small.txt")
s.get("log: upstream", "/up/x?y", method="POST", body=b"z" * 20_000)
s.get("variables", "/variables?a=b")
