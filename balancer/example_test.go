package balancer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/balancer"
	"github.com/highball-go/highball/discovery"
)

// start starts an instance that says its name.
func start(name string) (discovery.Instance, *httptest.Server) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s from %s", r.URL.Path, r.Host, name)
	}))
	return discovery.Instance{ID: name, Addr: s.Listener.Addr().String()}, s
}

func ExampleBalancer() {
	a, server := start("a")
	defer server.Close()
	dead := discovery.Instance{ID: "dead", Addr: "127.0.0.1:1"} // nobody listens there

	lb := balancer.New(discovery.Static{"orders": {a, dead}}, balancer.Options{})
	defer lb.Close()

	client := &http.Client{Transport: lb}
	for range 3 {
		resp, err := client.Post("http://orders/v1", "text/plain", strings.NewReader("x"))
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(string(body))
	}
	// Output:
	// /v1 of orders from a
	// /v1 of orders from a
	// /v1 of orders from a
}

func ExampleProxy() {
	a, server := start("a")
	defer server.Close()
	lb := balancer.New(discovery.Static{"orders": {a}}, balancer.Options{})
	defer lb.Close()

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Any("/orders/*path", balancer.Proxy(lb, "orders", balancer.WithAffinity((*gin.Context).ClientIP)))

	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/orders/42", nil))
	fmt.Println(w.Code, w.Body)
	// Output: 200 /orders/42 of orders from a
}

// A strategy of one's own: the instances of the newest version only.
func ExampleStrategy() {
	newest := func(nodes []*balancer.Node) balancer.Picker {
		var best []*balancer.Node
		for _, n := range nodes {
			if v := n.Instance().Meta["version"]; len(best) == 0 || v > best[0].Instance().Meta["version"] {
				best = []*balancer.Node{n}
			} else if v == best[0].Instance().Meta["version"] {
				best = append(best, n)
			}
		}
		return func(balancer.Call) *balancer.Node { return best[rand.IntN(len(best))] }
	}

	lb := balancer.New(discovery.Static{"orders": {
		{ID: "a", Addr: "10.0.0.1:80", Meta: map[string]string{"version": "1.8"}},
		{ID: "b", Addr: "10.0.0.2:80", Meta: map[string]string{"version": "1.9"}},
	}}, balancer.Options{Strategy: newest})
	defer lb.Close()

	sel, err := lb.Select(context.Background(), "orders")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(sel.Instance().ID)
	sel.Done(nil)
	// Output: b
}

// A client that is not HTTP: fn is called again, with another instance, when it fails.
func ExampleDo() {
	lb := balancer.New(discovery.Static{"cache": {
		{ID: "a", Addr: "10.0.0.1:11211"}, {ID: "b", Addr: "10.0.0.2:11211"},
	}}, balancer.Options{})
	defer lb.Close()

	v, err := balancer.Do(context.Background(), lb, "cache", func(_ context.Context, addr string) (string, error) {
		if addr == "10.0.0.1:11211" {
			return "", errors.New("connection reset")
		}
		return "value from " + addr, nil
	})
	fmt.Println(v, err)
	// Output: value from 10.0.0.2:11211 <nil>
}

func ExampleBalancer_Status() {
	lb := balancer.New(discovery.Static{"orders": {{ID: "a", Addr: "10.0.0.1:80"}}}, balancer.Options{})
	defer lb.Close()
	for range 3 {
		sel, err := lb.Select(context.Background(), "orders")
		if err != nil {
			fmt.Println(err)
			return
		}
		sel.Done(errors.New("connection reset"))
	}
	for _, s := range lb.Status("orders") {
		fmt.Printf("%s: %d calls, %d failed, ejected: %v\n", s.ID, s.Requests, s.Failures, s.Ejected)
	}
	// Output: a: 3 calls, 3 failed, ejected: true
}
