// Package conformancetest checks a guest library from go test: it builds the library and runs the conformance suite,
// pxg-conformance, on it.
//
//	func TestConformance(t *testing.T) {
//		conformancetest.Check(t, ".")
//	}
//
// The program is looked for in the variable PXG_CONFORMANCE, then in PATH. Where there is none the test is skipped, and
// says so; a wrong PXG_CONFORMANCE fails it.
package conformancetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Settings is the name of the file with the suite's settings (filters, their configurations, known failures). Check
// passes it on where it lies beside the package.
const Settings = "pxg-conformance.toml"

const (
	variable = "PXG_CONFORMANCE"
	program  = "pxg-conformance"
)

// Check builds the main package in the folder pkg as a shared library, with -buildmode=c-shared, and fails t unless the
// suite calls it conformant. Further arguments go to pxg-conformance guest, such as "--level", "L4".
//
// It needs cgo's C compiler. The test's context ends the suite, too.
func Check(t testing.TB, pkg string, args ...string) {
	t.Helper()
	suite, ok := find(t)
	if !ok {
		return
	}
	library := filepath.Join(t.TempDir(), "guest.so")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildmode=c-shared", "-o", library, ".")
	build.Dir = pkg
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build -buildmode=c-shared in %s: %v\n%s", pkg, err, out)
	}
	CheckLibrary(t, suite, library, append(settings(t, pkg), args...)...)
}

// CheckLibrary is Check for a library that has been built. suite is the program; empty: as Check finds it.
func CheckLibrary(t testing.TB, suite, library string, args ...string) {
	t.Helper()
	if suite == "" {
		var ok bool
		if suite, ok = find(t); !ok {
			return
		}
	}
	run := exec.CommandContext(t.Context(), suite, append([]string{"guest", library}, args...)...)
	out, err := run.CombinedOutput()
	text := strings.TrimSpace(string(out))
	var exit *exec.ExitError
	switch {
	case err == nil:
		t.Log(text[strings.LastIndexByte(text, '\n')+1:])
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		t.Errorf("the guest is not conformant:\n%s", text)
	case errors.As(err, &exit) && exit.ExitCode() == 4:
		t.Errorf("nothing was found, and not everything was checked; %s beside the package can give filters their configurations:\n%s", Settings, text)
	default:
		t.Fatalf("%s: %v\n%s", suite, err, text)
	}
}

func find(t testing.TB) (string, bool) {
	t.Helper()
	if named := os.Getenv(variable); named != "" {
		path, err := exec.LookPath(named)
		if err != nil {
			t.Fatalf("%s=%s: %v; name the program pxg-conformance, or unset the variable", variable, named, err)
		}
		return path, true
	}
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("%s is not in PATH, and %s is not set: the guest was not checked (cargo build -p proxy-golang-conformance makes it)", program, variable)
		return "", false
	}
	return path, true
}

func settings(t testing.TB, pkg string) []string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(pkg, Settings))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		return nil
	}
	return []string{"--config", file}
}
