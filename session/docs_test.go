package session

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

// blocks are the blocks of a language in docs/sessions.md.
func blocks(t *testing.T, language string) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/sessions.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(text), "```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "```\n")
		all = append(all, block)
	}
	return all
}

func TestTheGoOfTheDocumentationIsThatOfTheExamples(t *testing.T) {
	examples, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	all := blocks(t, "go")
	if len(all) != 3 {
		t.Fatalf("%d blocks, want 3", len(all))
	}
	for _, block := range all {
		var indented strings.Builder
		for line := range strings.Lines(block) {
			indented.WriteString("\t" + line)
		}
		if !strings.Contains(string(examples), indented.String()) {
			t.Errorf("no example has\n%s", block)
		}
	}
}

func TestTheNginxOfTheDocumentationKeepsClientsWhereTheyAre(t *testing.T) {
	names := []string{"a", "b", "c"}
	var servers []*httptest.Server
	for _, name := range names {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "instance", Value: name})
			_, _ = io.WriteString(w, name)
		}))
		defer s.Close()
		servers = append(servers, s)
	}
	for i, conf := range blocks(t, "nginx") {
		for n, s := range servers {
			conf = strings.ReplaceAll(conf, fmt.Sprintf("10.0.0.%d:8080", n+1), s.Listener.Addr().String())
		}
		ng := rig.Nginx(t, strings.ReplaceAll(conf, "listen 80;", "listen ADDR;"))
		seen := map[string]bool{}
		for range 20 {
			var cookie *http.Cookie
			first := ""
			for n := range 5 {
				name, set := visit(t, ng.Addr, cookie)
				if n == 0 {
					first = name
				}
				if name != first {
					t.Errorf("configuration %d: a client of %s was sent to %s", i, first, name)
				}
				cookie = set
			}
			seen[first] = true
		}
		if sticky := strings.Contains(conf, "map "); sticky && len(seen) != 2 || !sticky && len(seen) != 1 {
			t.Errorf("configuration %d: clients were sent to %v", i, seen)
		}
		if _, set := visit(t, ng.Addr, &http.Cookie{Name: "instance", Value: "made up"}); set == nil {
			t.Errorf("configuration %d: a client with a made up cookie is not served", i)
		}
	}
}

func visit(t *testing.T, addr string, cookie *http.Cookie) (body string, set *http.Cookie) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if cookie != nil {
		req.AddCookie(cookie)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	for _, c := range resp.Cookies() {
		set = c
	}
	return string(b), set
}
