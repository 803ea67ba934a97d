# `make test` is the whole of CI. Everything it needs it installs or builds itself.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GOLANGCI_LINT := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BENCHSTAT     := go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

# Nested modules keep what only benchmarks or test servers need out of go.mod.
MODULES := $(patsubst %/,%,$(dir $(shell git ls-files '*go.mod')))
CODE    := . $(wildcard benchmarks)
each     = for m in $(1); do echo "[$$m]"; (cd $$m && $(2)); done

BENCH ?= .
COUNT ?= 10

# A number and not a time: at its end the fuzzer of Go 1.26 now and then fails with "context deadline exceeded" (golang/go#75804).
FUZZTIME ?= 50000x

RUNS  ?= 1
PROVE ?= .

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: servers tidy lint race allocs fuzz demo ## All that CI runs, in the same order

.PHONY: servers
servers: ## Install or build the real servers that the tests start
	scripts/servers.sh

.PHONY: tidy
tidy: ## Fail if a go.mod or go.sum is out of date
	$(call each,$(MODULES),go mod tidy -diff)

.PHONY: lint
lint: ## golangci-lint: vet, staticcheck, gofumpt and more
	$(call each,$(CODE),$(GOLANGCI_LINT) run ./...)

.PHONY: race
race: ## Every test under the race detector, in random order, against real servers
	$(call each,$(CODE),HIGHBALL_SERVERS=required PATH="$(CURDIR)/.bin:$$PATH" go test -race -shuffle=on -timeout 20m ./...)

.PHONY: fuzz
fuzz: ## Fuzz every target, FUZZTIME inputs each
	@grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r p; do \
	  go test -list '^Fuzz' $$p | { grep '^Fuzz' || true; } | while read -r f; do \
	    go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p; done; done

.PHONY: allocs
allocs: ## What the race detector would falsify (allocations), and each benchmark once
	go test -run 'Alloc' ./...
	cd benchmarks && PATH="$(CURDIR)/.bin:$$PATH" go test -run '^$$' -bench . -benchtime 1x ./... >/dev/null

.PHONY: prove
prove: servers ## Measure everything under failure, RUNS times (as root: it drops packets), and write docs/ and the READMEs
	PATH="$(CURDIR)/.bin:$$PATH" go test ./prove -count=1 -timeout 3h -v -full -runs $(RUNS) -run '$(PROVE)'

.PHONY: demo
demo: ## The README's first command, on ports of its own
	go run ./examples/quickstart -listen 127.0.0.1:18080

.PHONY: fmt
fmt: ## Rewrite files to the house format
	$(call each,$(CODE),$(GOLANGCI_LINT) fmt ./...)

.PHONY: bench
bench: ## Benchmarks that match BENCH beside their peers, COUNT runs, summarised
	@mkdir -p .tmp
	cd benchmarks && PATH="$(CURDIR)/.bin:$$PATH" go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./... | tee $(CURDIR)/.tmp/bench.txt
	$(BENCHSTAT) -col /impl .tmp/bench.txt
