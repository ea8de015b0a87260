package tokencheck

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/proxyfilter"
)

// failsFirst answers its first request with an error, and all others.
type failsFirst struct {
	err   error
	calls int
}

func (f *failsFirst) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.calls++; f.calls == 1 {
		return nil, f.err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"X-Subject": {"alice"}}, Body: http.NoBody, Request: r}, nil
}

// The death of another stream is no answer to this one.
func TestAnotherStreamDies(t *testing.T) {
	gone := &failsFirst{err: proxyfilter.ErrStreamGone}
	f := newFilter(&Config{Authority: "http://authority.test/"})
	f.client.Transport = gone
	status, subject, err := f.ask(context.Background(), "Bearer good")
	if status != http.StatusOK || subject != "alice" || err != nil || gone.calls != 2 {
		t.Errorf("%d %q %v after %d calls", status, subject, err, gone.calls)
	}

	own, cancel := context.WithCancelCause(context.Background())
	cancel(proxyfilter.ErrStreamGone)
	mine := &failsFirst{err: proxyfilter.ErrStreamGone}
	f.client.Transport = mine
	if _, _, err := f.ask(own, "Bearer good"); !errors.Is(err, proxyfilter.ErrStreamGone) || mine.calls > 1 {
		t.Errorf("%v after %d calls", err, mine.calls)
	}

	down := &failsFirst{err: errors.New("connection refused")}
	f.client.Transport = down
	if _, _, err := f.ask(context.Background(), "Bearer good"); err == nil || down.calls != 1 {
		t.Errorf("%v after %d calls", err, down.calls)
	}
}
