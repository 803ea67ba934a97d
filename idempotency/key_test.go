package idempotency

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAKeyIsAStringOrBareText(t *testing.T) {
	for in, want := range map[string]string{
		`"8e03978e-40d5-43e8-bc93-6894a57f9324"`: "8e03978e-40d5-43e8-bc93-6894a57f9324",
		`8e03978e-40d5-43e8-bc93-6894a57f9324`:   "8e03978e-40d5-43e8-bc93-6894a57f9324",
		` "a b" `:                                "a b",
		`"a\"b\\c"`:                              `a"b\c`,
		`"a";v=1`:                                "a",
		`order:7/x=`:                             "order:7/x=",
		strings.Repeat("x", 255):                 strings.Repeat("x", 255),
		`"` + strings.Repeat("x", 255) + `"`:     strings.Repeat("x", 255),
	} {
		if got, ok := parseKey(in); got != want || !ok {
			t.Errorf("parseKey(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{
		"", " ", `""`, `"`, `"a`, `a"`, `"a\x"`, `"a\`, `"a" "b"`, `"a", "b"`, `"a";x,y`, "a b", "a,b", "a\x00b", "\"a\nb\"", "a\x7f", "ä", `"ä"`,
		strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`,
	} {
		if got, ok := parseKey(in); ok {
			t.Errorf("parseKey(%q) = %q, want none", in, got)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"", "a", `"a"`, `"a\"b"`, `"a";x`, "a,b", `"\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		key, ok := parseKey(in)
		if !ok {
			return
		}
		if key == "" || len(key) > maxKey || strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
			t.Fatalf("parseKey(%q) = %q", in, key)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if again, ok := parseKey(quoted); again != key || !ok {
			t.Errorf("parseKey(%q) = %q, %v; want %q", quoted, again, ok, key)
		}
	})
}

func TestNoScopeAndKeyNameAnothers(t *testing.T) {
	s := New(nil, Options{})
	names := make(map[string]string)
	for _, c := range [][2]string{{"", "ab"}, {"a", "b"}, {"ab", ""}, {"a\x00b", ""}, {"a:", "b"}, {"a", ":b"}} {
		name := s.nameOf(c[0], c[1])
		if other, ok := names[name]; ok {
			t.Errorf("%q and %q are the same", c, other)
		}
		names[name] = c[0] + "|" + c[1]
		if len(name) != len("highball:idempotency:")+43 {
			t.Errorf("a name of %d bytes", len(name))
		}
	}
}

func TestAFingerprintIsOfMethodPathQueryTypeAndBody(t *testing.T) {
	of := func(method, target, kind, body string) [32]byte {
		r := httptest.NewRequest(method, target, nil)
		r.Header.Set("Content-Type", kind)
		return fingerprintOf(r, []byte(body))
	}
	same := of("POST", "/a?x=1", "text/plain", "body")
	if of("POST", "/a?x=1", "text/plain", "body") != same {
		t.Error("the same request has another fingerprint")
	}
	for _, c := range [][4]string{
		{"PATCH", "/a?x=1", "text/plain", "body"},
		{"POST", "/b?x=1", "text/plain", "body"},
		{"POST", "/%61?x=1", "text/plain", "body"},
		{"POST", "/a?x=2", "text/plain", "body"},
		{"POST", "/a?x=1", "text/html", "body"},
		{"POST", "/a?x=1", "text/plain", "bodz"},
		{"POST", "/a?x=1", "text/plainb", "ody"},
	} {
		if of(c[0], c[1], c[2], c[3]) == same {
			t.Errorf("%q has the fingerprint of another", c)
		}
	}
}
