package refusal

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
)

func TestRetryAfterIsWholeSecondsRoundedUp(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "1", 0: "1", time.Millisecond: "1", time.Second: "1",
		time.Second + 1: "2", 1500 * time.Millisecond: "2", 90 * time.Second: "90",
		1<<63 - 1: "9223372037",
	} {
		if got := RetryAfter(d); got != want {
			t.Errorf("RetryAfter(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestAnswerIsMarkedAndSaysWhenToComeBack(t *testing.T) {
	gin.SetMode(gin.TestMode)
	w := httptest.NewRecorder()
	c, _ := gin.CreateTestContext(w)
	c.Request = httptest.NewRequest(http.MethodGet, "/", nil)
	if by := By(c); by != "" {
		t.Errorf("By before Answer = %q, want none", by)
	}
	Answer(c, "breaker", Problem{Status: http.StatusServiceUnavailable, Detail: `it's "open"`, RetryAfter: 1200 * time.Millisecond})
	c.Writer.WriteHeaderNow()

	if by := By(c); by != "breaker" || !c.IsAborted() {
		t.Errorf("By = %q, aborted %v; want breaker, true", by, c.IsAborted())
	}
	if got := w.Header().Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After = %q, want 2", got)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type = %q", got)
	}
	const want = `{"title":"Service Unavailable","status":503,"detail":"it's \"open\""}`
	if got := w.Body.String(); w.Code != http.StatusServiceUnavailable || got != want {
		t.Errorf("answer = %d %s, want 503 %s", w.Code, got, want)
	}
}

func TestNegativeRetryAfterSendsNone(t *testing.T) {
	gin.SetMode(gin.TestMode)
	w := httptest.NewRecorder()
	c, _ := gin.CreateTestContext(w)
	Answer(c, "ratelimit", Problem{Status: http.StatusTooManyRequests, RetryAfter: -1})
	if got, ok := w.Header()["Retry-After"]; ok {
		t.Errorf("Retry-After = %q, want none", got)
	}
}

func TestAnswerAfterTheHeadersWritesNothing(t *testing.T) {
	gin.SetMode(gin.TestMode)
	w := httptest.NewRecorder()
	c, _ := gin.CreateTestContext(w)
	c.String(http.StatusOK, "hello")
	Answer(c, "breaker", Problem{Status: http.StatusServiceUnavailable})
	if got := w.Body.String(); w.Code != http.StatusOK || got != "hello" {
		t.Errorf("answer = %d %q, want 200 hello", w.Code, got)
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add(int64(0))
	f.Add(int64(-1))
	f.Add(int64(1500 * time.Millisecond))
	f.Add(int64(1<<63 - 1))
	f.Fuzz(func(t *testing.T, d int64) {
		s, err := strconv.ParseInt(RetryAfter(time.Duration(d)), 10, 64)
		over := float64(s) - time.Duration(d).Seconds() // what the client waits too long
		if err != nil || s < 1 || over < -1e-6 || d > int64(time.Second) && over > 1+1e-6 {
			t.Errorf("RetryAfter(%d ns) = %d, %v", d, s, err)
		}
	})
}
