package memnet_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/highball-go/highball/internal/memnet"
)

func TestServeKeepsFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			w.WriteHeader(http.StatusNoContent)
		})
		client := http.Client{Transport: memnet.Serve(t, slow)}

		start := time.Now()
		res, err := client.Get("http://slow.test/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := time.Since(start); got != time.Hour {
			t.Errorf("the answer took %v, want 1h", got)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://slow.test/", nil)
		if res, err := client.Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v, %v, want DeadlineExceeded", res, err)
		}
	})
}
