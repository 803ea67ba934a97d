package jwtauth

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/internal/rig"
)

// inRedis is the function of the package documentation.
func inRedis(rdb redis.UniversalClient) func(context.Context, *Token) (bool, error) {
	return func(ctx context.Context, t *Token) (bool, error) {
		v, err := rdb.MGet(ctx, "revoked:jti:"+t.ID, "revoked:before:"+t.Subject).Result()
		if err != nil {
			return false, err // 503; return false, nil to go on without Redis
		}
		before, _ := v[1].(string)
		s, _ := strconv.ParseInt(before, 10, 64)
		return v[0] != nil || t.IssuedAt.Unix() < s, nil
	}
}

func TestRevocationInRedis(t *testing.T) {
	server := rig.Redis(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr, ContextTimeoutEnabled: true, MaxRetries: -1})
	defer rdb.Close()
	o := options
	o.Revoked = inRedis(rdb)
	a := auth(t, o)
	one, two := fresh(t, nil), fresh(t, nil)
	verify := func(raw string, want error) *Token {
		t.Helper()
		tok, err := a.Verify(t.Context(), raw)
		if !errors.Is(err, want) {
			t.Errorf("Verify = %v, want %v", err, want)
		}
		return tok
	}
	set := func(key string, value any) {
		t.Helper()
		if err := rdb.Set(t.Context(), key, value, 15*time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
	}
	tok := verify(one, nil)
	verify(two, nil)
	set("revoked:jti:"+tok.ID, 1)
	verify(one, ErrInvalid)
	verify(two, nil)
	set("revoked:before:bob", time.Now().Unix()+1)
	verify(two, ErrInvalid)

	server.Kill()
	verify(two, ErrUnavailable)
}
