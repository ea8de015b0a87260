package cabi

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

type job func()

func (j job) Run() { j() }

// Jobs that wait, for each other or for ever, or that end their goroutine, hold up no other.
func TestQueue(t *testing.T) {
	for _, procs := range []int{1, 4} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		var ran sync.WaitGroup
		last, never := make(chan struct{}), make(chan struct{})
		q := &queue{list: []bridge.Runnable{
			job(func() { <-last; ran.Done() }),
			job(func() { ran.Done() }),
			job(func() { ran.Done(); <-never }),
			job(func() { defer ran.Done(); runtime.Goexit() }),
			job(func() { <-last; ran.Done() }),
			job(func() { close(last); ran.Done() }),
		}}
		ran.Add(len(q.list))
		q.start()
		all := make(chan struct{})
		go func() { ran.Wait(); close(all) }()
		select {
		case <-all:
		case <-time.After(30 * time.Second): // decides only how soon a test that hangs fails
			t.Fatalf("%d of %d jobs have begun", q.next.Load(), len(q.list))
		}
		close(never)
	}
}
