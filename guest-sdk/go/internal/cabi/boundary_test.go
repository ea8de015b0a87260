package cabi_test

import (
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// These tests load a real library into a real C program: testdata/minihost.c.

func must(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// built holds what is built once per run of the tests.
var built struct {
	sync.Mutex
	dir   string
	files map[string]string
}

func TestMain(m *testing.M) {
	// The go command caches results by what the test itself opens; what the builds
	// below read it does not see.
	if err := filepath.WalkDir("../..", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = os.ReadFile(p)
		}
		return err
	}); err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "proxy_golang-boundary-")
	if err != nil {
		panic(err)
	}
	built.dir, built.files = dir, map[string]string{}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func build(t *testing.T, file string, env []string, name string, args ...string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if p := built.files[file]; p != "" {
		return p
	}
	p := filepath.Join(built.dir, file)
	for i, a := range args {
		if a == "OUT" {
			args[i] = p
		}
	}
	must(t, env, name, args...)
	built.files[file] = p
	return p
}

func minihost(t *testing.T) string {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	return build(t, "minihost", nil, cc, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", "OUT", "testdata/minihost.c", "-ldl", "-lpthread")
}

func library(t *testing.T) string {
	return build(t, "guest.so", nil, "go", "build", "-buildmode=c-shared", "-o", "OUT", "./testdata/guest")
}

func TestHost(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		env        []string
		want       []string
	}{
		{"all", "check", nil, []string{"check: ok", "ring: done (one wake-up per batch)", "GOMAXPROCS 4"}},
		{"no BATCH_END", "nobatch", nil, []string{"nobatch: ok", "batch: skipped (the host has no BATCH_END)", "a wake-up per event"}},
		{"optional entries NULL", "nulls", nil, []string{"nulls: ok"}},
		{"recipe off", "check", []string{"PROXY_GOLANG_GO_RECIPE=-batch,-sysmon,-procs,-ring,-yield"},
			[]string{"check: ok", "batch: off", "sysmon: off", "procs: off", "ring: off", "yield: off"}},
		{"ring off", "check", []string{"PROXY_GOLANG_GO_RECIPE=-ring"}, []string{"check: ok", "ring: off", "yield: skipped (the ring is off)"}},
		{"yield off", "check", []string{"PROXY_GOLANG_GO_RECIPE=-yield,nonsense,-"}, []string{"check: ok", "ring: done", "yield: off"}},
		{"batch off by the library", "check", []string{"TEST_DISABLE_RECIPE=batch"}, []string{"check: ok", "batch: off (DisableRecipe)", "sysmon: done"}},
		{"ring off by the library", "check", []string{"TEST_DISABLE_RECIPE=ring"}, []string{"check: ok", "ring: off (DisableRecipe)"}},
		{"collector busy", "check", []string{"GOGC=1"}, []string{"check: ok"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := must(t, c.env, minihost(t), library(t), c.mode)
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("the host says nothing of %q:\n%s", w, out)
				}
			}
		})
	}
}

// The steps that this machine can do must be done, not only be harmless.
func TestRecipe(t *testing.T) {
	out := must(t, nil, minihost(t), library(t), "recipe")
	if !strings.Contains(out, "have SCHED_BATCH") {
		t.Errorf("SCHED_BATCH was not inherited: %s", out)
	}
	if self, err := os.ReadFile("/proc/thread-self/syscall"); err == nil && len(self) > 0 && !strings.Contains(out, "sysmon: done") {
		t.Errorf("the monitor thread was not found: %s", out)
	}
}

// Go hands C no pointer of its heap: cgocheck2 aborts the process if it does.
func TestCgoCheck2(t *testing.T) {
	if testing.Short() {
		t.Skip("rebuilds the standard library")
	}
	lib := build(t, "cgocheck2.so", []string{"GOEXPERIMENT=cgocheck2"}, "go", "build", "-buildmode=c-shared", "-o", "OUT", "./testdata/guest")
	if out := must(t, []string{"GOGC=5"}, minihost(t), lib, "check"); !strings.Contains(out, "check: ok") {
		t.Errorf("%s", out)
	}
}

func TestPgdebug(t *testing.T) {
	must(t, nil, "go", "test", "-tags", "pgdebug", "../../proxyfilter", "../../proxyfiltertest")
	lib := build(t, "pgdebug.so", nil, "go", "build", "-tags", "pgdebug", "-buildmode=c-shared", "-o", "OUT", "./testdata/guest")
	if out := must(t, nil, minihost(t), lib, "check"); !strings.Contains(out, "check: ok") {
		t.Errorf("%s", out)
	}
}

// The host fails if the header path allocates. What it prints is the benchmark.
func TestNoAllocations(t *testing.T) {
	t.Log("\n" + must(t, nil, minihost(t), library(t), "bench", "20000"))
}

func TestExportsTheEntryOnly(t *testing.T) {
	f, err := elf.Open(library(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF {
			names = append(names, s.Name)
		}
	}
	if len(names) != 1 || names[0] != "pxg_guest_init_v1" {
		t.Errorf("the library exports %v", names)
	}
}
