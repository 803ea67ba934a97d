package highball_test

import rego.v1

import data.highball

container := {
	"name": "orders", "image": "registry.example.com/orders:1.0.0",
	"env": [{"name": "DRAIN_DELAY", "value": "8s"}, {"name": "GRACE", "value": "25s"}],
	"readinessProbe": {"httpGet": {"path": "/readyz"}, "periodSeconds": 2, "failureThreshold": 2},
	"livenessProbe": {"httpGet": {"path": "/livez"}},
	"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
}

# with_patches is what the policy says of a good Deployment after these JSON patches.
good := {
	"kind": "Deployment",
	"spec": {
		"strategy": {"rollingUpdate": {"maxUnavailable": 0}},
		"template": {"spec": {
			"terminationGracePeriodSeconds": 40,
			"securityContext": {"runAsNonRoot": true},
			"containers": [container],
		}},
	},
}

with_patches(patches) := msgs if msgs := highball.deny with input as json.patch(good, patches)

pod := "/spec/template/spec/"

first := "/spec/template/spec/containers/0/"

test_a_good_one_passes if count(with_patches([])) == 0

test_another_kind_is_none_of_our_business if count(highball.deny) == 0 with input as {"kind": "Service"}

test_probes_are_required if {
	with_patches([{"op": "remove", "path": concat("", [first, "readinessProbe"])}]) == {"orders has no readinessProbe"}
	with_patches([{"op": "remove", "path": concat("", [first, "livenessProbe"])}]) == {"orders has no livenessProbe"}
}

test_liveness_is_not_readiness if {
	with_patches([{"op": "replace", "path": concat("", [first, "livenessProbe/httpGet/path"]), "value": "/readyz"}]) == {"orders: liveness asks what readiness asks, /readyz"}
}

test_resources_are_required if {
	with_patches([{"op": "remove", "path": concat("", [first, "resources/limits/memory"])}]) == {"orders has no limits of memory"}
	count(with_patches([{"op": "remove", "path": concat("", [first, "resources"])}])) == 4
}

test_the_grace_period_covers_the_drain if {
	with_patches([{"op": "replace", "path": concat("", [pod, "terminationGracePeriodSeconds"]), "value": 33}]) == {"orders is killed after 33 s, and may take 33 s to drain"}
	with_patches([{"op": "remove", "path": concat("", [pod, "terminationGracePeriodSeconds"])}]) == {"orders is killed after 30 s, and may take 33 s to drain"}
}

test_readiness_is_noticed_within_the_drain_delay if {
	with_patches([{"op": "replace", "path": concat("", [first, "readinessProbe/periodSeconds"]), "value": 4}]) == {"orders is gone after 8 s, and readiness may notice after 9 s"}
	with_patches([{"op": "remove", "path": concat("", [first, "env"])}]) == {"orders is gone after 3 s, and readiness may notice after 5 s"}
}

test_no_root if {
	with_patches([{"op": "remove", "path": concat("", [pod, "securityContext"])}]) == {"the pod may run as root"}
}

test_a_rollout_adds_before_it_takes_away if {
	with_patches([{"op": "remove", "path": "/spec/strategy"}]) == {"a rollout takes instances away before there are new ones"}
}

test_images_have_versions if {
	every image in ["registry.example.com:5000/orders", "orders:latest"] {
		with_patches([{"op": "replace", "path": concat("", [first, "image"]), "value": image}]) == {sprintf("orders runs an image without a version, %s", [image])}
	}
	digest := concat("", ["orders@sha256:", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"])
	count(with_patches([{"op": "replace", "path": concat("", [first, "image"]), "value": digest}])) == 0
}

test_no_node_port if {
	service := {"kind": "Service", "metadata": {"name": "orders"}, "spec": {"type": "NodePort"}}
	highball.deny == {"the Service orders opens a port on every node"} with input as service
	count(highball.deny) == 0 with input as json.patch(service, [{"op": "remove", "path": "/spec/type"}])
}
