package prove

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/highball-go/highball/internal/rig"
)

// answers waits until url does with 200.
func answers(tb testing.TB, url string) {
	tb.Helper()
	rig.Poll(tb, 30*time.Second, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	})
}

func TestTheConsulLeaderIsKilled(t *testing.T) {
	for _, name := range names("run", false) {
		t.Run(name, killTheConsulLeader)
	}
}

func killTheConsulLeader(t *testing.T) {
	t.Helper()
	servers := rig.ConsulCluster(t)
	agent := servers.Agent(t)
	all, ledger := three(t, config{Work: 20 * time.Millisecond, Consul: agent.Addr})
	addr := edge(t, "-consul", agent.Addr, "-service", "orders")
	answers(t, "http://"+addr+"/work")
	leader := servers.Leader(t)

	l := load{base: "http://" + addr, rate: scale(1000, 100), during: scale(15*time.Second, 7*time.Second), timeout: 5 * time.Second, next: mix("/work")}
	l.events = []event{{faultAt, leader.Kill}, {2 * faultAt, all[2].Kill}} // an instance too: nobody says so but the balancer's own eyes
	records := l.run(t)
	res := summarise("consul", "Highball", l, faultAt, records)
	res.audit(t, ledger, records)
	res.add(t)
	if res.FailedGET > 0 || res.Twice > 0 {
		t.Errorf("%d GETs lost, %d POSTs run twice", res.FailedGET, res.Twice)
	}
}
