package highball_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/highball-go/highball"
	gin    = "github.com/gin-gonic/gin"
)

// uses lists what each package may import besides the standard library and, in files named gin.go, gin
// and what internal/ has for it. Examples may import anything; nobody may import metrics.
var uses = map[string][]string{
	".":                 {},
	"accesslog":         {"internal/redact", "go.uber.org/zap", "go.uber.org/zap/zapcore"},
	"balancer":          {"discovery"},
	"breaker":           {},
	"breaker/hystrixgo": {"breaker", "github.com/afex/hystrix-go/hystrix"},
	"cluster":           {"github.com/redis/go-redis/v9"},
	"degrade":           {},
	"degrade/cache":     {"internal/outage", "github.com/redis/go-redis/v9"},
	"discovery":         {},
	"discovery/consul":  {"discovery", "github.com/hashicorp/consul/api"},
	"health":            {},
	"idempotency":       {"internal/outage", "github.com/redis/go-redis/v9"},
	"jwtauth":           {},
	"metrics": {
		"balancer", "breaker", "degrade", "ratelimit",
		"github.com/prometheus/client_golang/prometheus", "github.com/prometheus/client_golang/prometheus/promhttp",
	},
	"ratelimit":            {},
	"ratelimit/redislimit": {"internal/outage", "ratelimit", "github.com/redis/go-redis/v9"},
	"recovery":             {"internal/redact", "go.uber.org/zap", "go.uber.org/zap/zapcore"},
	"session": {
		"internal/outage", "github.com/boj/redistore", "github.com/gin-contrib/sessions", "github.com/gomodule/redigo/redis",
		"github.com/gorilla/securecookie", "github.com/gorilla/sessions", "github.com/redis/go-redis/v9",
	},

	"internal/hijack":  {},
	"internal/memnet":  {},
	"internal/outage":  {"github.com/redis/go-redis/v9"},
	"internal/redact":  {},
	"internal/refusal": {},
	"internal/rig":     {},
}

// TestLayout keeps the one rule of the house: engines know the standard library and internal/, only
// gin.go imports gin, a driver lives in a folder named for what it drives, and the one edge between
// siblings is balancer → discovery.
func TestLayout(t *testing.T) {
	fsys := os.DirFS(".")
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." {
			if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); err == nil || strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir // another module, or not code
			}
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "examples/") {
			return nil
		}
		if _, ok := uses[path.Dir(name)]; !ok {
			t.Errorf("%s is in a package that the layout does not have", name)
		}
		for _, imp := range imports(t, fsys, name) {
			if !allowed(name, imp) {
				t.Errorf("%s may not import %s", name, imp)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func imports(t *testing.T, fsys fs.FS, name string) []string {
	t.Helper()
	src, err := fs.ReadFile(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, spec := range f.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		all = append(all, imp)
	}
	return all
}

func allowed(file, imp string) bool {
	if host, _, _ := strings.Cut(imp, "/"); !strings.Contains(host, ".") {
		return true // standard library
	}
	if imp == gin || imp == module+"/internal/hijack" || imp == module+"/internal/refusal" {
		return path.Base(file) == "gin.go"
	}
	imp = strings.TrimPrefix(imp, module+"/")
	return slices.Contains(uses[path.Dir(file)], imp)
}

func TestTheRuleIsNotEmpty(t *testing.T) {
	for file, imp := range map[string]string{
		"balancer/pick.go":      gin,
		"balancer/balancer.go":  "github.com/hashicorp/consul/api",
		"discovery/memory.go":   module + "/balancer",
		"breaker/gin.go":        module + "/ratelimit",
		"balancer/transport.go": module + "/metrics",
	} {
		if allowed(file, imp) {
			t.Errorf("%s may import %s", file, imp)
		}
	}
	if !allowed("balancer/gin.go", gin) || !allowed("balancer/pick.go", module+"/discovery") {
		t.Error("what the house is built on is forbidden")
	}
}

// TestTheBalancerNeedsNothingButTheStandardLibrary but for its gin.go: whoever has another framework, or
// none, can take it as it is.
func TestTheBalancerNeedsNothingButTheStandardLibrary(t *testing.T) {
	seen := make(map[string]bool)
	var visit func(pkg string)
	visit = func(pkg string) {
		if seen[pkg] {
			return
		}
		seen[pkg] = true
		files, err := fs.Glob(os.DirFS("."), pkg+"/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no files: %v", pkg, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") || path.Base(name) == "gin.go" {
				continue
			}
			for _, imp := range imports(t, os.DirFS("."), name) {
				if sibling, ok := strings.CutPrefix(imp, module+"/"); ok {
					visit(sibling)
				} else if host, _, _ := strings.Cut(imp, "/"); strings.Contains(host, ".") {
					t.Errorf("%s imports %s", name, imp)
				}
			}
		}
	}
	visit("balancer")
}
