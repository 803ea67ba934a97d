package cache_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/highball-go/highball/degrade/cache"
)

func Example() {
	server, err := miniredis.Run() // in place of a real one
	if err != nil {
		fmt.Println(err)
		return
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), ContextTimeoutEnabled: true, DialerRetries: 1})
	defer client.Close()

	names := cache.New(client, cache.Options[string]{
		Timeout: 2 * time.Second, // for a machine that runs tests; the default is for a service
		Prefix:  "name:",
		Default: func(string) (string, bool) { return "somebody", true },
	})
	database := map[string]string{"1": "Ann"}
	var down error
	ask := func(id string) {
		name, origin, err := names.Get(context.Background(), id, func(context.Context) (string, error) {
			if name, ok := database[id]; ok {
				return name, down
			}
			return "", errors.Join(cache.ErrNotFound, down)
		})
		fmt.Printf("%s: %q, %v, %v\n", id, name, origin, err)
	}

	ask("1")
	ask("1")
	ask("2")
	server.Close() // Redis is away
	ask("1")
	down = errors.New("the database is down") // and so is what is behind it
	ask("1")

	// Output:
	// 1: "Ann", miss, <nil>
	// 1: "Ann", hit, <nil>
	// 2: "", miss, cache: not found
	// 1: "Ann", miss, <nil>
	// 1: "somebody", degraded, <nil>
}
