package ratelimit

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/refusal"
)

func init() { gin.SetMode(gin.TestMode) }

// get asks h for path, as a client at addr.
func get(h http.Handler, path, addr string, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodGet, path, nil)
	req.RemoteAddr = addr
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// limited is an engine with one route behind l.
func limited(l Limiter, opts ...Option) *gin.Engine {
	r := gin.New()
	_ = r.SetTrustedProxies([]string{"10.0.0.0/8"})
	r.Use(Middleware(l, opts...))
	r.GET("/x/:id", func(c *gin.Context) { c.String(http.StatusOK, "hello") })
	return r
}

const client = "192.0.2.1:1234"

// wantFields checks the status and the three fields of an answer; "-": it must not have one.
func wantFields(t *testing.T, w *httptest.ResponseRecorder, status int, retry, limit, policy string) {
	t.Helper()
	field := func(name string) string {
		if v := w.Header().Values(name); len(v) > 0 {
			return strings.Join(v, "|")
		}
		return "-"
	}
	if w.Code != status || field("Retry-After") != retry || field("RateLimit") != limit || field("RateLimit-Policy") != policy {
		t.Errorf("%d, Retry-After %s, RateLimit %s, RateLimit-Policy %s; want %d, %s, %s, %s",
			w.Code, field("Retry-After"), field("RateLimit"), field("RateLimit-Policy"), status, retry, limit, policy)
	}
}

func TestAnswersCarryTheFieldsOfTheDraft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := limited(New(Every(time.Minute, 2, 2), Options{}))
		const policy = `"default";q=2;w=60`
		wantFields(t, get(r, "/x/1", client), 200, "-", `"default";r=1;t=30`, policy)
		time.Sleep(500 * time.Millisecond)
		wantFields(t, get(r, "/x/1", client), 200, "-", `"default";r=0;t=30`, policy)
		w := get(r, "/x/1", client)
		wantFields(t, w, 429, "30", `"default";r=0;t=30`, policy)
		const body = `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded",` +
			`"title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"violated-policies":["default"]}`
		if w.Header().Get("Content-Type") != "application/problem+json" || w.Body.String() != body {
			t.Errorf("answer = %s, want %s", w.Body, body)
		}
		wantFields(t, get(r, "/x/1", "192.0.2.2:1"), 200, "-", `"default";r=1;t=30`, policy)
	})
}

func TestNoRetryAfterWhereNoWaitWouldHelp(t *testing.T) {
	cost := WithCost(func(*gin.Context) int { return 3 })
	wantFields(t, get(limited(New(PerSecond(1, 2), Options{}), cost), "/x/1", client), 429, "-", `"default";r=2`, `"default";q=2;w=2`)
	wantFields(t, get(limited(New(PerSecond(0, 2), Options{}), cost), "/x/1", client), 429, "-", `"default";r=2`, `"default";q=2`)
	wantFields(t, get(limited(New(PerSecond(1, 0), Options{})), "/x/1", client), 429, "-", `"default";r=0`, `"default";q=0`)
}

func TestNoTimeWhereNoTokenIsToCome(t *testing.T) {
	none := WithCost(func(*gin.Context) int { return 0 })
	wantFields(t, get(limited(New(Every(time.Minute, 2, 2), Options{}), none), "/x/1", client), 200, "-", `"default";r=2`, `"default";q=2;w=60`)
	wantFields(t, get(limited(New(Every(0, 1, 5), Options{})), "/x/1", client), 200, "-", `"default";r=5`, `"default";q=5`)
	wantFields(t, get(limited(New(PerSecond(0, 5), Options{})), "/x/1", client), 200, "-", `"default";r=4`, `"default";q=5`)
}

func TestWhenNobodyCanDecideTheAnswerIs503(t *testing.T) {
	w := get(limited(failing{}), "/x/1", client)
	wantFields(t, w, 503, "1", "-", "-")
	if !strings.Contains(w.Body.String(), "#temporary-reduced-capacity") {
		t.Errorf("answer = %s", w.Body)
	}
	wantFields(t, get(limited(failing{}, WithShadow()), "/x/1", client), 200, "-", "-", "-")
}

func TestARefusalIsMarkedAndEndsTheChain(t *testing.T) {
	var by string
	r := gin.New()
	r.Use(func(c *gin.Context) {
		c.Next()
		by = refusal.By(c)
	}, Middleware(New(PerSecond(1, 0), Options{}), WithDenied(func(c *gin.Context) { c.String(http.StatusTeapot, "later") })))
	r.GET("/", func(*gin.Context) { t.Error("the handler ran") })
	w := get(r, "/", client)
	if w.Code != http.StatusTeapot || by != "ratelimit" {
		t.Errorf("%d by %q, want the denied handler's answer, marked", w.Code, by)
	}
}

func TestTheDeniedHandlerFindsTheFieldsSet(t *testing.T) {
	r := limited(New(Every(time.Hour, 1, 1), Options{}), WithDenied(func(c *gin.Context) { c.Status(http.StatusTeapot) }))
	get(r, "/x/1", client)
	wantFields(t, get(r, "/x/1", client), http.StatusTeapot, "3600", `"default";r=0;t=3600`, `"default";q=1;w=3600`)
}

func TestShadowDecidesAndReportsButNeverRefuses(t *testing.T) {
	denied := 0
	l := New(PerSecond(0, 1), Options{OnDeny: func(string, Decision) { denied++ }})
	r := limited(l, WithShadow())
	for range 3 {
		wantFields(t, get(r, "/x/1", client), 200, "-", "-", "-")
	}
	if denied != 2 {
		t.Errorf("%d refusals reported, want 2", denied)
	}
}

func TestSkipAndCost(t *testing.T) {
	l := New(PerSecond(0, 10), Options{})
	r := limited(l, WithSkip(func(c *gin.Context) bool { return c.Param("id") == "skip" }),
		WithCost(func(c *gin.Context) int { return len(c.Param("id")) - 3 }))
	for path, left := range map[string]int{"/x/skip": 10, "/x/a": 10, "/x/abc": 10} {
		get(r, path, client)
		if n := ask(l, "192.0.2.1", 0).Remaining; n != left {
			t.Errorf("%s: %d tokens left, want %d", path, n, left)
		}
	}
	get(r, "/x/abcdefg", client)
	if n := ask(l, "192.0.2.1", 0).Remaining; n != 6 {
		t.Errorf("%d tokens left after a cost of 4, want 6", n)
	}
}

func TestOptionsThatAreNilAreTheDefaults(t *testing.T) {
	l := New(PerSecond(0, 1), Options{})
	r := limited(l, WithKey(nil), WithCost(nil), WithRefund(nil), WithDenied(nil), WithSkip(nil))
	for _, want := range []int{http.StatusOK, http.StatusTooManyRequests} {
		if w := get(r, "/x/1", client); w.Code != want {
			t.Errorf("status %d, want %d", w.Code, want)
		}
	}
}

func TestRefundIsDecidedAfterTheHandler(t *testing.T) {
	l := New(PerSecond(0, 10), Options{})
	r := limited(l, WithRefund(func(c *gin.Context) bool { return c.Writer.Status() == http.StatusOK && c.Param("id") == "back" }))
	get(r, "/x/back", client)
	get(r, "/x/keep", client)
	if n := ask(l, "192.0.2.1", 0).Remaining; n != 9 {
		t.Errorf("%d tokens left, want 9", n)
	}
}

func TestWhatWasNotTakenIsNotGivenBack(t *testing.T) {
	l := New(PerSecond(0, 2), Options{})
	given := func(c *gin.Context) bool { return c.Param("id") == "back" }
	r := limited(l, WithShadow(), WithRefund(given))
	for _, path := range []string{"/x/keep", "/x/keep", "/x/back"} { // the last is over the limit
		get(r, path, client)
	}
	if n := ask(l, "192.0.2.1", 0).Remaining; n != 0 {
		t.Errorf("%d tokens left, want 0", n)
	}
	back := 0
	get(limited(lending{failing{}, &back}, WithShadow(), WithRefund(given)), "/x/back", client)
	if back != 0 {
		t.Errorf("%d tokens given back to a limiter that could not decide", back)
	}
}

// lending is a Limiter to which back is given back.
type lending struct {
	Limiter
	back *int
}

func (l lending) Refund(_ string, n int) { *l.back += n }

func TestClientsAreToldApartByTheirAddress(t *testing.T) {
	for _, tt := range []struct{ addr, forwarded, want string }{
		{"192.0.2.1:80", "", "192.0.2.1"},
		{"192.0.2.1:80", "203.0.113.9", "192.0.2.1"}, // not a trusted proxy: its header is its own invention
		{"10.0.0.1:80", "203.0.113.9", "203.0.113.9"},
		{"10.0.0.1:80", "evil, 203.0.113.9", "203.0.113.9"},
		{"[2001:db8:1:2:3:4:5:6]:80", "", "2001:db8:1:2::/64"},
		{"[2001:db8:1:2::7]:80", "", "2001:db8:1:2::/64"},
		{"[::ffff:192.0.2.1]:80", "", "192.0.2.1"},
		{"[fe80::1%eth0]:80", "", "unknown"}, // gin knows no zones
		{"@", "", "unknown"},
	} {
		var got string
		r := gin.New()
		_ = r.SetTrustedProxies([]string{"10.0.0.0/8"})
		r.GET("/", func(c *gin.Context) { got = ByClientIP(c) })
		get(r, "/", tt.addr, "X-Forwarded-For", tt.forwarded)
		if got != tt.want {
			t.Errorf("ByClientIP of %s forwarded for %q = %q, want %q", tt.addr, tt.forwarded, got, tt.want)
		}
	}
}

func TestKeysByRouteAndHeader(t *testing.T) {
	var got []string
	r := gin.New()
	r.Use(func(c *gin.Context) { got = append(got, ByRoute(c), ByHeader("X-Key")(c)) })
	r.GET("/x/:id", func(*gin.Context) {})
	long := strings.Repeat("k", 65)
	sum := sha256.Sum256([]byte(long))
	get(r, "/x/1", client, "X-Key", long[:64])
	get(r, "/nowhere", client, "X-Key", long)
	if want := []string{"GET /x/:id", long[:64], "unmatched", "sha256:" + hex.EncodeToString(sum[:])}; !slices.Equal(got, want) {
		t.Errorf("keys = %q, want %q", got, want)
	}
}

func TestTheMiddlewareAllocatesLittle(t *testing.T) {
	limit := Middleware(New(PerSecond(1e6, 1e6), Options{}), WithKey(func(*gin.Context) string { return "k" }))
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	c.Request = httptest.NewRequest(http.MethodGet, "/", nil)
	if n := testing.AllocsPerRun(200, func() { limit(c) }); n > 3 { // the value of RateLimit, and two slices
		t.Errorf("%v allocations, want at most 3", n)
	}
}
