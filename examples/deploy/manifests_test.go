package deploy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/highball-go/highball/internal/rig"
)

func parse[T any](tb testing.TB, name string) (v T) {
	tb.Helper()
	if err := yaml.Unmarshal([]byte(read(tb, name)), &v); err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return v
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// A deployment is what of Kubernetes' Deployment has to agree with the service.
type deployment struct {
	Metadata struct{ Name string }
	Spec     struct {
		Replicas *int
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		Template struct {
			Metadata struct{ Labels, Annotations map[string]string }
			Spec     struct {
				Grace           int `yaml:"terminationGracePeriodSeconds"`
				SecurityContext struct {
					User string `yaml:"runAsUser"`
				} `yaml:"securityContext"`
				Containers []struct {
					Ports []struct {
						Name string
						Port string `yaml:"containerPort"`
					}
					Env       []struct{ Name, Value string }
					Startup   probe `yaml:"startupProbe"`
					Readiness probe `yaml:"readinessProbe"`
					Liveness  probe `yaml:"livenessProbe"`
				}
			}
		}
	}
}

func (d *deployment) env(tb testing.TB, name string) string {
	tb.Helper()
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		if e.Name == name {
			return e.Value
		}
	}
	tb.Fatalf("the Deployment does not set %s", name)
	return ""
}

func TestKubernetesTakesTheManifests(t *testing.T) {
	t.Parallel()
	tool(t, "kubectl-validate", "kubernetes")
}

func TestThePolicyHoldsAndIsTested(t *testing.T) {
	t.Parallel()
	tool(t, "opa", "check", "--strict", "policy")
	tool(t, "opa", "test", "policy")
	for _, file := range []string{"deployment", "service"} {
		out := tool(t, "opa", "eval", "-f", "raw", "-d", "policy", "-i", "kubernetes/"+file+".yaml", "data.highball.deny")
		if strings.TrimSpace(out) != "[]" {
			t.Errorf("%s.yaml breaks the policy: %s", file, out)
		}
	}
}

// TestTheServiceDrainsAsKubernetesIsTold starts the service as the Deployment does, and ends it.
func TestTheServiceDrainsAsKubernetesIsTold(t *testing.T) {
	t.Parallel()
	d := parse[deployment](t, "kubernetes/deployment.yaml")
	delay, err1 := time.ParseDuration(d.env(t, "DRAIN_DELAY"))
	grace, err2 := time.ParseDuration(d.env(t, "GRACE"))
	killed := time.Duration(d.Spec.Template.Spec.Grace) * time.Second
	if err1 != nil || err2 != nil || killed <= delay+grace {
		t.Errorf("killed after %v, while DRAIN_DELAY is %v and GRACE %v (%v, %v)", killed, delay, grace, err1, err2)
	}
	s := start(t, rig.Redis(t), "DRAIN_DELAY="+delay.String(), "GRACE="+grace.String())
	c := d.Spec.Template.Spec.Containers[0]
	probes := map[string]string{"startup": c.Startup.HTTPGet.Path, "readiness": c.Readiness.HTTPGet.Path, "liveness": c.Liveness.HTTPGet.Path}
	for name, path := range probes {
		rig.Poll(t, 5*time.Second, func() error { return wants(t, name, "http://"+s.Addr+path, http.StatusOK) })
	}
	begin, ended := time.Now(), make(chan struct{})
	go func() {
		defer close(ended)
		s.Terminate()
	}()
	base := "http://" + s.Addr
	rig.Poll(t, delay/2, func() error {
		return wants(t, "readiness", base+c.Readiness.HTTPGet.Path, http.StatusServiceUnavailable)
	})
	for path, name := range map[string]string{c.Liveness.HTTPGet.Path: "liveness", "/prices/tea": "a request"} {
		if err := wants(t, name, base+path, http.StatusOK); err != nil {
			t.Error("while it drains: ", err)
		}
	}
	<-ended
	if took := time.Since(begin); took < delay || took >= killed {
		t.Errorf("it went after %v, want %v to %v", took, delay, killed)
	}
}

func wants(tb testing.TB, name, url string, status int) error {
	tb.Helper()
	got, body := get(tb, url)
	if got != status {
		return fmt.Errorf("%s: %s answers %d %s, want %d", name, url, got, body, status)
	}
	return nil
}

func TestTheManifestsAgree(t *testing.T) {
	t.Parallel()
	d := parse[deployment](t, "kubernetes/deployment.yaml")
	pod, name := d.Spec.Template.Spec, d.Metadata.Name
	c := pod.Containers[0]
	labels := d.Spec.Template.Metadata.Labels
	_, port := split(t, d.env(t, "LISTEN"))
	if c.Ports[0].Port != port || !strings.HasSuffix(d.env(t, "ADVERTISE"), ":"+port) {
		t.Errorf("it listens on %s, the container has %s and ADVERTISE is %s", port, c.Ports[0].Port, d.env(t, "ADVERTISE"))
	}
	for _, p := range []probe{c.Startup, c.Readiness, c.Liveness} {
		if p.HTTPGet.Port != c.Ports[0].Name {
			t.Errorf("a probe asks at port %s, want %s", p.HTTPGet.Port, c.Ports[0].Name)
		}
	}
	notes := d.Spec.Template.Metadata.Annotations
	if notes["prometheus.io/port"] != port || notes["prometheus.io/path"] != "/metrics" {
		t.Errorf("Prometheus is sent elsewhere: %v", notes)
	}

	service := parse[struct {
		Spec struct {
			Selector map[string]string
			Ports    []struct {
				Target string `yaml:"targetPort"`
			}
		}
	}](t, "kubernetes/service.yaml")
	if service.Spec.Ports[0].Target != c.Ports[0].Name || !subset(service.Spec.Selector, labels) {
		t.Errorf("the Service finds nobody: %+v", service)
	}
	pdb := parse[struct {
		Spec struct {
			Max      int `yaml:"maxUnavailable"`
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
		}
	}](t, "kubernetes/pdb.yaml")
	hpa := parse[struct {
		Spec struct {
			Ref struct{ Kind, Name string } `yaml:"scaleTargetRef"`
			Min int                         `yaml:"minReplicas"`
		}
	}](t, "kubernetes/hpa.yaml")
	if !subset(pdb.Spec.Selector.MatchLabels, labels) || !subset(d.Spec.Selector.MatchLabels, labels) || hpa.Spec.Min-pdb.Spec.Max < 2 {
		t.Errorf("too few are left when a node is drained: %+v, %+v", pdb, hpa)
	}
	if hpa.Spec.Ref.Kind != "Deployment" || hpa.Spec.Ref.Name != name || d.Spec.Replicas != nil {
		t.Errorf("the autoscaler and the Deployment are at odds: %+v", hpa)
	}
	app := parse[struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Spec       struct {
			Project     string
			Source      struct{ Path string }
			Destination struct{ Namespace string }
		}
	}](t, "argocd/application.yaml")
	if files, err := os.ReadDir("../../" + app.Spec.Source.Path); err != nil || len(files) != 4 {
		t.Errorf("Argo CD finds no manifests in %s: %v", app.Spec.Source.Path, err)
	}
	if app.APIVersion != "argoproj.io/v1alpha1" || app.Kind != "Application" || app.Spec.Project == "" || app.Spec.Destination.Namespace == "" {
		t.Errorf("not an Application: %+v", app)
	}
}

func subset(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) > 0
}

func TestTheServiceKnowsEveryVariable(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	for _, m := range regexp.MustCompile(`env\("([A-Z_]+)"`).FindAllStringSubmatch(read(t, "../service/main.go"), -1) {
		known[m[1]] = true
	}
	documented := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)`").FindAllStringSubmatch(read(t, "../service/README.md"), -1) {
		documented[m[1]] = true
	}
	for name := range known {
		if !documented[name] {
			t.Errorf("examples/service/README.md does not have %s", name)
		}
	}
	for name := range documented {
		if !known[name] {
			t.Errorf("examples/service does not know %s", name)
		}
	}
	d := parse[deployment](t, "kubernetes/deployment.yaml")
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		if !known[e.Name] && !strings.Contains(read(t, "kubernetes/deployment.yaml"), "$("+e.Name+")") {
			t.Errorf("the Deployment sets %s, which nobody reads", e.Name)
		}
	}
}

func TestTheDockerfileFitsTheService(t *testing.T) {
	t.Parallel()
	file := read(t, "Dockerfile")
	line := func(pattern string) string {
		t.Helper()
		m := regexp.MustCompile("(?m)^"+pattern+"$").FindAllStringSubmatch(file, -1)
		if len(m) != 1 {
			t.Fatalf("the Dockerfile has %d lines that match %s", len(m), pattern)
		}
		return m[0][1]
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../../go.mod"))
	if got := line(`FROM golang:(\S+) AS build`); got != version[1] {
		t.Errorf("it is built with Go %s, go.mod wants %s", got, version[1])
	}
	if got := line(`ENTRYPOINT \["(\S+)"\]`); !strings.HasSuffix(line(`COPY --from=build (\S+ \S+)`), " "+got) {
		t.Errorf("%s is not what is copied", got)
	}
	if built := line(`RUN CGO_ENABLED=0 go build .* -o (\S+) \./examples/service`); !strings.HasPrefix(line(`COPY --from=build (\S+ \S+)`), built+" ") {
		t.Errorf("%s is built and not copied", built)
	}
	d := parse[deployment](t, "kubernetes/deployment.yaml")
	_, port := split(t, line(`ENV LISTEN=(\S+)`))
	if port != line(`EXPOSE (\d+)`) || port != d.Spec.Template.Spec.Containers[0].Ports[0].Port {
		t.Errorf("it listens on %s, which is not what is exposed", port)
	}
	if user := line(`USER (\d+):\d+`); user == "0" || user != d.Spec.Template.Spec.SecurityContext.User {
		t.Errorf("it runs as user %s, the Deployment says %s", user, d.Spec.Template.Spec.SecurityContext.User)
	}
	if regexp.MustCompile(`(?m)^HEALTHCHECK`).MatchString(file) {
		t.Error("a HEALTHCHECK needs a program that the image does not have")
	}
}

// TestFilebeatKnowsEveryKey compares its configuration with lines that the service has written.
func TestFilebeatKnowsEveryKey(t *testing.T) {
	t.Parallel()
	s := start(t, rig.Redis(t))
	get(t, "http://"+s.Addr+"/prices/tea?token=secret")
	get(t, "http://"+s.Addr+"/prices/tea", "Authorization", "Bearer nonsense") // its line has an error
	conf := parse[struct {
		Processors []struct {
			Timestamp struct {
				Field   string
				Layouts []string
			}
			Rename struct {
				Fields []struct{ From, To string }
			}
		}
	}](t, "filebeat/filebeat.yml")
	stamp, rename := conf.Processors[0].Timestamp, conf.Processors[1].Rename.Fields
	from, to := []string{stamp.Field}, make(map[string]bool)
	for _, f := range rename {
		from = append(from, f.From)
		if to[f.To] {
			t.Errorf("two fields become %s", f.To)
		}
		to[f.To] = true
	}
	seen := map[string]bool{"slow": true, "aborted": true} // by accesslog's documentation
	for line := range strings.Lines(s.Log()) {
		var keys map[string]any
		if json.Unmarshal([]byte(line), &keys) != nil || keys["msg"] != "request" {
			continue
		}
		for key := range keys {
			if seen[key] = true; !slices.Contains(from, key) {
				t.Errorf("filebeat.yml does not know %s", key)
			}
		}
		if _, err := time.Parse(stamp.Layouts[0], keys["ts"].(string)); err != nil {
			t.Errorf("the layout of time: %v", err)
		}
	}
	for _, key := range from {
		if !seen[key] {
			t.Errorf("filebeat.yml has %s, which is in no line", key)
		}
	}
}
