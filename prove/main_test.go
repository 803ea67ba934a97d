// Package prove measures, from outside and on real processes, what Highball promises under failure: `make prove` runs
// everything and writes docs/results.json, the pictures and the tables of the README, and `make test` runs short forms
// and checks that README and results agree.
package prove

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/highball-go/highball/internal/rig"
)

var (
	full     = flag.Bool("full", false, "measure in full and write docs/ and the READMEs")
	runs     = flag.Int("runs", 1, "runs of each measurement, with -full")
	instance = flag.String("instance", "", "be an instance, as this JSON says")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *instance != "" {
		var c config
		err := json.Unmarshal([]byte(*instance), &c)
		if err == nil {
			err = serve(c)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "instance:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if *full {
		if err := writeReport(); err != nil {
			fmt.Fprintln(os.Stderr, "report:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// names are those of the runs of one measurement: as many as -runs says, and half as many of a peer, which is for comparison.
func names(of string, peer bool) (all []string) {
	n := 1
	switch {
	case *full && peer:
		n = (*runs + 1) / 2
	case *full:
		n = *runs
	}
	for run := range n {
		all = append(all, fmt.Sprintf("%s/%d", of, run+1))
	}
	return all
}

// start runs an instance as a process of its own.
func start(tb testing.TB, c config) *rig.ProgramServer {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	return rig.Program(tb, exe, func(addr string) []string {
		c.Addr = addr
		text, err := json.Marshal(c)
		if err != nil {
			tb.Fatal(err)
		}
		return []string{"-instance", string(text)}
	})
}

// three starts as many instances with one ledger.
func three(tb testing.TB, c config) (all [3]*rig.ProgramServer, ledger string) {
	tb.Helper()
	c.Ledger = filepath.Join(tb.TempDir(), "ledger")
	for i := range all {
		c.Name = string("abc"[i])
		all[i] = start(tb, c)
	}
	return all, c.Ledger
}

var buildEdge = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "prove")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "edge")
	out, err := exec.Command("go", "build", "-o", path, "../examples/edge").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// edge starts examples/edge.
func edge(tb testing.TB, args ...string) string {
	tb.Helper()
	path, err := buildEdge()
	if err != nil {
		tb.Fatal(err)
	}
	return rig.Program(tb, path, func(addr string) []string { return append([]string{"-listen", addr}, args...) }).Addr
}

// scale is a and in short forms b.
func scale[T any](a, b T) T {
	if *full {
		return a
	}
	return b
}

func split(tb testing.TB, addr string) (host, port string) {
	tb.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	return host, port
}
