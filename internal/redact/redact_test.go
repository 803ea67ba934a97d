package redact

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSecretsInAQueryAreMaskedByName(t *testing.T) {
	for raw, want := range map[string]string{
		"":                         "",
		"a=1&b=2":                  "a=1&b=2",
		"token=abc":                "token=***",
		"TOKEN=abc&a=1":            "TOKEN=***&a=1",
		"a=1&access_token=x&b=2":   "a=1&access_token=***&b=2",
		"to%6ben=abc":              "to%6ben=***",
		"%54oken=abc":              "%54oken=***",
		"api-key=k&apiKey=k":       "api-key=***&apiKey=***",
		"refresh_token=a;sig=b":    "refresh_token=***;sig=***",
		"user[password]=x":         "user[password]=***",
		"user%5Bpassword%5D=x":     "user%5Bpassword%5D=***",
		"token[]=x":                "token[]=***",
		"token=":                   "token=",
		"token":                    "token",
		"q=token=x":                "q=token=x", // the value of q
		"code=a=b&z":               "code=***&z",
		"tokens=1&keyword=2&cod=3": "tokens=1&keyword=2&cod=3",
		"to%6=x&%=y&=z&&":          "to%6=x&%=y&=z&&",
		"id_token=a&client_secret=b&passwd=c&secret=d&apikey=e&key=f&signature=g&password=h": "id_token=***&client_secret=***&passwd=***&secret=***&apikey=***&key=***&signature=***&password=***",
	} {
		if got := Query(raw); got != want {
			t.Errorf("Query(%q) = %q, want %q", raw, got, want)
		}
	}
}

func TestSecretsInFreeTextAreMasked(t *testing.T) {
	for s, want := range map[string]string{
		`Get "http://h/p?a=1&token=abc": EOF`: `Get "http://h/p?a=1&token=***": EOF`,
		"dial user=bob password=hunter2 now":  "dial user=bob password=*** now",
		"x=password=hunter2":                  "x=password=***",
		"nothing = here":                      "nothing = here",
		"login failed:\ntoken=hunter2":        "login failed:\ntoken=***",
		`quoted "a\ntoken=hunter2"`:           `quoted "a\ntoken=***"`,
		"error:token=hunter2":                 "error:token=***",
		"\x1btoken=hunter2":                   "\x1btoken=***",
		"été,é:key=a monkey=b ünkey=c":        "été,é:key=*** monkey=b ünkey=c",
	} {
		if got := Text(s); got != want {
			t.Errorf("Text(%q) = %q, want %q", s, got, want)
		}
	}
}

func TestUnprintableTextIsEscaped(t *testing.T) {
	for s, want := range map[string]string{
		"plain ~":           "plain ~",
		"größe 世界":          "größe 世界",
		"a\nb\r\tc\x00":     `a\nb\r\tc\x00`,
		"\x1b[31mred":       `\x1b[31mred`,
		"\u009b31mred":      `\u009b31mred`,
		"line\u2028sep":     `line\u2028sep`,
		"\u202etxt.exe":     `\u202etxt.exe`,
		"\x7f":              `\x7f`,
		"bad \xff\xc0 utf8": `bad \xff\xc0 utf8`,
	} {
		if got := Clean(s, 100); got != want {
			t.Errorf("Clean(%q) = %q, want %q", s, got, want)
		}
	}
	if got := Clean(strings.Repeat("x", 50), 10); got != "xxxxxxxxxx…" {
		t.Errorf("Clean of 50 bytes to 10 = %q", got)
	}
}

func TestAMessageIsMaskedBeforeItIsEscapedAndCut(t *testing.T) {
	for _, tt := range []struct{ s, want string }{
		{"plain", "plain"},
		{"bad\ntoken=hunter2\nend", `bad\ntoken=***\nend`},
		{"0123456789012345678901234", "012345678901234567890123…"},
		{"the password=hunter2 is no longer shown", "the password=*** is …"},
		{strings.Repeat("\x00", 10), `\x00\x00\x00\x00\x00\x00…`},
	} {
		if got := Message(tt.s, 24); got != tt.want {
			t.Errorf("Message(%q) = %q, want %q", tt.s, got, tt.want)
		}
	}
}

func TestNothingToChangeAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Query("page=3&sort=name&q=a%20b"); Clean("/orders/42", 100) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"token=a&b=c", "to%6ben=x", "user[password]=y;z", "%", "=&=", "a=\x1b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got := Query(raw)
		values, err := url.ParseQuery(got)
		if err != nil {
			return // as broken as it was
		}
		for name, vs := range values {
			for _, v := range vs {
				if Secret(url.QueryEscape(name)) && v != "" && v != mask {
					t.Errorf("Query(%q) = %q still has %s=%s", raw, got, name, v)
				}
			}
		}
		if strings.Count(got, "&") > strings.Count(raw, "&") || Query(got) != got {
			t.Errorf("Query(%q) = %q is no longer the same query", raw, got)
		}
		Text(raw)
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\nb\x1b[31m\u2028\xff", 10)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = min(max(limit, 0), 4096)
		got := Clean(s, limit)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 }) {
			t.Errorf("Clean(%q) = %q", s, got)
		}
		if len(got) > limit+len(`\U0010ffff`)+len(ellipsis) {
			t.Errorf("Clean(%q, %d) has %d bytes", s, limit, len(got))
		}
	})
}
