# What a Deployment needs so that a rollout, a node drain or an outage of a dependency loses nothing, and a Service so that
# nobody goes around the front.
#
#   opa eval -d examples/deploy/policy -i examples/deploy/kubernetes/deployment.yaml data.highball.deny
package highball

import rego.v1

pod := input.spec.template.spec if input.kind == "Deployment"

deny contains msg if {
	some c in pod.containers
	some probe in ["readinessProbe", "livenessProbe"]
	not c[probe]
	msg := sprintf("%s has no %s", [c.name, probe])
}

# A liveness probe that fails with a dependency restarts every pod when that is away.
deny contains msg if {
	some c in pod.containers
	c.livenessProbe.httpGet.path == c.readinessProbe.httpGet.path
	msg := sprintf("%s: liveness asks what readiness asks, %s", [c.name, c.livenessProbe.httpGet.path])
}

deny contains msg if {
	some c in pod.containers
	some resource in ["requests", "limits"]
	some unit in ["cpu", "memory"]
	not c.resources[resource][unit]
	msg := sprintf("%s has no %s of %s", [c.name, resource, unit])
}

# Of the service's own time to drain, see examples/service.
seconds(c, name, otherwise) := t if {
	some e in c.env
	e.name == name
	t := time.parse_duration_ns(e.value) / 1000000000
} else := otherwise

deny contains msg if {
	some c in pod.containers
	grace := object.get(pod, "terminationGracePeriodSeconds", 30)
	drain := seconds(c, "DRAIN_DELAY", 3) + seconds(c, "GRACE", 25)
	grace <= drain
	msg := sprintf("%s is killed after %d s, and may take %d s to drain", [c.name, grace, drain])
}

# Traffic has to stop before the drain delay is over. The last probe may take all of its timeout to fail.
deny contains msg if {
	some c in pod.containers
	p := c.readinessProbe
	asked := object.get(p, "periodSeconds", 10) * object.get(p, "failureThreshold", 3)
	notices := asked + object.get(p, "timeoutSeconds", 1)
	delay := seconds(c, "DRAIN_DELAY", 3)
	delay <= notices
	msg := sprintf("%s is gone after %d s, and readiness may notice after %d s", [c.name, delay, notices])
}

deny contains msg if {
	pod
	not pod.securityContext.runAsNonRoot
	msg := "the pod may run as root"
}

deny contains msg if {
	pod
	object.get(input.spec, ["strategy", "rollingUpdate", "maxUnavailable"], "25%") != 0
	msg := "a rollout takes instances away before there are new ones"
}

deny contains msg if {
	some c in pod.containers
	not regex.match(`(:[^/:]*[0-9][^/:]*|@sha256:[0-9a-f]{64})$`, c.image)
	msg := sprintf("%s runs an image without a version, %s", [c.name, c.image])
}

# Who wants in comes through the front, which limits and logs.
deny contains msg if {
	input.kind == "Service"
	input.spec.type == "NodePort"
	msg := sprintf("the Service %s opens a port on every node", [input.metadata.name])
}
