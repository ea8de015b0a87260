// Package tokencheck asks an authority over HTTP whether a request's token is
// good, while the proxy goes on with other requests.
package tokencheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// Name is the filter's name.
const Name = "token-check"

// Config is the filter's configuration.
//
// The authority gets a GET of its path with the request's authorization field. 200
// lets the request through, with the answer's field x-subject as SubjectHeader.
// 401 and 403 are passed on to the client. All else, and no answer within the
// timeout, is 503.
type Config struct {
	// Authority is its URL, such as http://127.0.0.1:9000/check.
	Authority string `json:"authority"`
	// TimeoutMillis is how long it may take; 1000 by default.
	TimeoutMillis int `json:"timeout_ms"`
	// SubjectHeader is set for the upstream; x-subject by default. A client's own
	// field of this name never gets through.
	SubjectHeader string `json:"subject_header"`
	// Connections is how many connections to the authority are kept; 16 by default.
	Connections int `json:"connections"`
}

// Provision sets the defaults.
func (c *Config) Provision(*proxyfilter.Env) error {
	if c.TimeoutMillis == 0 {
		c.TimeoutMillis = 1000
	}
	if c.SubjectHeader == "" {
		c.SubjectHeader = "x-subject"
	}
	if c.Connections == 0 {
		c.Connections = 16
	}
	return nil
}

// Validate refuses a configuration that could not work.
func (c *Config) Validate() error {
	u, err := url.Parse(c.Authority)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("authority %q: it must be a URL such as http://127.0.0.1:9000/check", c.Authority)
	}
	if c.TimeoutMillis < 0 || c.Connections < 0 {
		return errors.New("timeout_ms and connections must not be negative")
	}
	return nil
}

type filter struct {
	cfg       *Config
	client    *http.Client
	transport *http.Transport
}

func newFilter(c *Config) *filter {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Duration(c.TimeoutMillis) * time.Millisecond}).DialContext,
		MaxIdleConns:        c.Connections,
		MaxIdleConnsPerHost: c.Connections,
		IdleConnTimeout:     time.Minute,
	}
	return &filter{cfg: c, transport: t, client: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends the idle connections when the configuration is dropped.
func (f *filter) Close() error {
	f.transport.CloseIdleConnections()
	return nil
}

func (f *filter) OnRequestHeaders(s proxyfilter.Stream, h proxyfilter.Headers) proxyfilter.Action {
	// Without a token there is nothing to ask: no goroutine, no wait.
	if v, ok := h.GetView("authorization"); !ok || v == "" {
		return s.Reply(reply(http.StatusUnauthorized, "no token"))
	}
	return s.Async(f.check)
}

func (f *filter) check(ctx context.Context, a *proxyfilter.AsyncStream) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(f.cfg.TimeoutMillis)*time.Millisecond)
	defer cancel()
	status, subject, err := f.ask(ctx, a.Get("authorization"))
	switch {
	case errors.Is(context.Cause(ctx), proxyfilter.ErrStreamGone):
		return // nobody waits any more
	case err != nil:
		a.Log().Warn("the authority did not answer", "error", err)
		_ = a.Reply(reply(http.StatusServiceUnavailable, "authority unavailable"))
	case status == http.StatusOK:
		if subject == "" {
			a.Del(f.cfg.SubjectHeader)
		} else {
			a.Set(f.cfg.SubjectHeader, subject)
		}
		_ = a.Continue()
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		_ = a.Reply(reply(status, "token refused"))
	default:
		a.Log().Warn("the authority answered what it should not", "status", status)
		_ = a.Reply(reply(http.StatusServiceUnavailable, "authority unavailable"))
	}
}

func (f *filter) ask(ctx context.Context, token string) (status int, subject string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.cfg.Authority, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", token)
	resp, err := f.client.Do(req)
	for tries := 0; tries < 3 && errors.Is(err, proxyfilter.ErrStreamGone) && ctx.Err() == nil; tries++ {
		// Another stream died, not this one. net/http passes a connection on before it has delivered an answer without
		// a body, and a request cancelled in that moment closes it under its next user, with its own cause.
		resp, err = f.client.Do(req)
	}
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	// The connection is used again only if the body was read.
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return 0, "", err
	}
	return resp.StatusCode, strings.TrimSpace(resp.Header.Get("X-Subject")), nil
}

func reply(status int, details string) proxyfilter.Reply {
	r := proxyfilter.Reply{Status: status, Details: Name + ": " + details,
		Header: []proxyfilter.Field{proxyfilter.F("content-type", "text/plain; charset=utf-8")},
		Body:   []byte(http.StatusText(status) + "\n")}
	if status == http.StatusUnauthorized {
		r.Header = append(r.Header, proxyfilter.F("www-authenticate", "Bearer"))
	}
	return r
}

func init() {
	proxyfilter.Register(Name, func(c *Config, _ *proxyfilter.Env) (proxyfilter.Filter, error) {
		return newFilter(c), nil
	}, proxyfilter.MayPend(proxyfilter.PhaseRequestHeaders))
}
