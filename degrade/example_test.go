package degrade_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/degrade"
)

func ExampleMiddleware() {
	gin.SetMode(gin.ReleaseMode)
	d := degrade.New(degrade.Options{
		Scoring: degrade.SumWeights, // any two of latency, errors and CPU
		OnChange: func(c degrade.Change) {
			fmt.Println("degraded:", c.Degraded, "by hand:", c.Forced)
		},
	})
	defer d.Close()

	r := gin.New()
	r.Use(degrade.Middleware(d,
		degrade.WithEssential(func(c *gin.Context) bool { return c.FullPath() == "/pay" }),
		degrade.WithFallback(func(c *gin.Context) { c.String(http.StatusOK, "the same for everybody") }),
	))
	r.GET("/pay", func(c *gin.Context) { c.String(http.StatusOK, "paid") })
	r.GET("/recommended", func(c *gin.Context) { c.String(http.StatusOK, "just for you") })

	ask := func() {
		for _, path := range []string{"/pay", "/recommended"} {
			w := httptest.NewRecorder()
			r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			fmt.Printf("%s: %s, degraded %q\n", path, w.Body, w.Header().Get("X-Degraded"))
		}
	}
	ask()
	d.Force(true, time.Hour) // the operator knows better; else the score decides
	ask()

	// Output:
	// /pay: paid, degraded ""
	// /recommended: just for you, degraded ""
	// degraded: true by hand: true
	// /pay: paid, degraded ""
	// /recommended: the same for everybody, degraded "true"
}

func ExampleController_Score() {
	queue := func() (float64, bool) { return 120, true }
	changed := make(chan degrade.Change)
	d := degrade.New(degrade.Options{
		Rules: []degrade.Rule{
			degrade.InFlight(1000, 40, 40),
			{Name: "queue", Value: queue, Over: 100, Score: 60, Weight: 60},
		},
		OnChange: func(c degrade.Change) { changed <- c },
	})
	defer d.Close()
	<-changed // within a quarter of a second

	score, why := d.Score()
	fmt.Println("score", score, "degraded", d.Degraded())
	for _, c := range why {
		fmt.Println(c.Rule, c.Value, c.Fired, c.Points)
	}

	// Output:
	// score 60 degraded true
	// in_flight 0 false 0
	// queue 120 true 60
}
