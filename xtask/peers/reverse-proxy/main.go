// A reverse proxy with Go's own library: HTTP/1.1 or HTTP/2 without TLS in
// front, HTTP/1.1 behind. It sets one field in each request, as the filters do
// that it is compared with. It prints its address when it listens.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatalf("usage: %s http://UPSTREAM", os.Args[0])
	}
	upstream, err := url.Parse(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.Header.Set("x-bench", "0123456789abcdef")
		},
		Transport: &http.Transport{
			// As many connections as there are requests at a time: the default of 2 would open one for nearly each.
			MaxIdleConnsPerHost: 1024,
			IdleConnTimeout:     time.Hour,
			DisableCompression:  true,
		},
	}
	server := &http.Server{Handler: proxy, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	log.Fatal(server.Serve(listener))
}
