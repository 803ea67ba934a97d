package idempotency

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

func TestASentinelFailoverForgetsNoKeyThatWasReplicated(t *testing.T) {
	g := rig.Sentinel(t)
	client := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: g.MasterName, SentinelAddrs: g.SentinelAddrs, ContextTimeoutEnabled: true, DialerRetries: 1, PoolSize: 256,
	})
	defer client.Close()
	runs := map[string]int{}
	h := engine(New(client, patient), func(c *gin.Context) { runs[Key(c)]++; c.String(200, "done %d", runs[Key(c)]) })
	post := func(key string) (w *httptest.ResponseRecorder) {
		rig.Poll(t, 20*time.Second, func() error {
			if w = send(h, "POST", "/run", key, ""); w.Code == 200 {
				return nil
			}
			wantProblem(t, w, 503, "1") // never run without a lock, never taken for another's
			return fmt.Errorf("%d %s", w.Code, w.Body)
		})
		return w
	}
	post("before")
	rig.Poll(t, 10*time.Second, func() error {
		n, err := client.Wait(t.Context(), 1, time.Second).Result()
		if err == nil && n == 0 {
			err = fmt.Errorf("no replica has it")
		}
		return err
	})

	g.Primary.Kill()
	if w := send(h, "POST", "/run", "during", ""); w.Code != 503 {
		t.Errorf("without a primary: %d", w.Code)
	}
	for range 2 {
		if w := post("during"); w.Body.String() != "done 1" {
			t.Errorf("a key that was refused: %s", w.Body)
		}
	}
	if w := post("before"); w.Body.String() != "done 1" || w.Header().Get("Idempotency-Replayed") != "true" {
		t.Errorf("a key of before: %s %v", w.Body, w.Header())
	}
	if runs["before"] != 1 || runs["during"] != 1 {
		t.Errorf("runs: %v", runs)
	}
}
