package conformancetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that only notes how it ended.
type recorder struct {
	testing.TB
	said, how string
}

func (r *recorder) Helper() {}
func (r *recorder) end(how, format string, args []any) {
	r.how, r.said = how, fmt.Sprintf(format, args...)
}
func (r *recorder) Log(args ...any)                { r.end("log", "%s", []any{fmt.Sprint(args...)}) }
func (r *recorder) Errorf(format string, a ...any) { r.end("error", format, a) }
func (r *recorder) Fatalf(format string, a ...any) { r.end("fatal", format, a); runtime.Goexit() }
func (r *recorder) Skipf(format string, a ...any)  { r.end("skip", format, a) }

// check runs Check to its end, also one that stops its goroutine.
func check(t *testing.T, f func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestWithoutTheProgramItIsSkippedAndSaysSo(t *testing.T) {
	t.Setenv(variable, "")
	t.Setenv("PATH", t.TempDir())
	r := check(t, func(t testing.TB) { Check(t, "../examples/hello") })
	if r.how != "skip" || !strings.Contains(r.said, "was not checked") {
		t.Errorf("%s: %s", r.how, r.said)
	}
}

func TestAWrongNameIsNoSkip(t *testing.T) {
	t.Setenv(variable, filepath.Join(t.TempDir(), "none"))
	r := check(t, func(t testing.TB) { Check(t, "../examples/hello") })
	if r.how != "fatal" || !strings.Contains(r.said, "unset the variable") {
		t.Errorf("%s: %s", r.how, r.said)
	}
}

// A program that ends as pxg-conformance does, for what Check makes of it.
func TestEachExitCodeIsUnderstood(t *testing.T) {
	for code, want := range map[int]string{0: "log", 1: "error", 2: "fatal", 3: "fatal", 4: "error"} {
		suite := filepath.Join(t.TempDir(), "suite")
		script := fmt.Sprintf("#!/bin/sh\necho first\necho \"$@\"\nexit %d\n", code)
		if err := os.WriteFile(suite, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		r := check(t, func(t testing.TB) { CheckLibrary(t, suite, "x.so", "--level", "L4") })
		if r.how != want || !strings.Contains(r.said, "guest x.so --level L4") {
			t.Errorf("exit code %d: %s: %s", code, r.how, r.said)
		}
	}
}

// The real program on a real filter, and on what is none.
func TestHello(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a library")
	}
	Check(t, "../examples/hello", "--level", "L2")

	suite := os.Getenv(variable)
	if suite == "" {
		var err error
		if suite, err = exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	none := filepath.Join(t.TempDir(), "none.so")
	if err := os.WriteFile(none, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := check(t, func(t testing.TB) { CheckLibrary(t, suite, none) })
	if r.how != "error" || !strings.Contains(r.said, "PXG-LOAD-001") {
		t.Errorf("%s: %s", r.how, r.said)
	}
}
