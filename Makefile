# One Makefile for people and for CI. `make demo` and `make test` are the two
# commands of the README; both install what they need from Debian.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
export GOTOOLCHAIN := local
export CGO_ENABLED ?= 0

BUF := go tool -modfile=proto/buf.mod buf
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X redoubt.dev/redoubt/cmd/redoubt/cli.Version=$(VERSION)
KEEP ?=

.PHONY: chaos deaths build deps runtimes generate generate-check lint test unit race script net bench fuzz-smoke demo demo-stop mutants clean

deps:
	@deploy/deps.sh

runtimes: deps
	@$(MAKE) --no-print-directory -C deploy/runtimes all

# bin/redoubt is one file that carries its runtimes.
build: runtimes
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/redoubt ./cmd/redoubt

generate: deps
	$(BUF) generate
	go generate ./...

# What is generated is committed, and current.
generate-check: deps
	@integration/generated.sh

lint: deps
	@test -z "$$(gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$'); exit 1; }
	$(BUF) lint
	go vet ./...
	go tool staticcheck ./...

# A program of its own, and in place of the shell: signals must reach it.
demo: build
	@go build -o bin/redoubt-demo ./integration/demo
	@exec bin/redoubt-demo $(if $(KEEP),-keep)

demo-stop:
	@[ -x bin/redoubt-demo ] || go build -o bin/redoubt-demo ./integration/demo
	@exec bin/redoubt-demo -stop

test: build
	@go build -o bin/redoubt-demo ./integration/demo
	@go build -o bin/redoubt-chaos ./integration/chaos
	@integration/test.sh

unit: build
	go test ./...

race: build
	CGO_ENABLED=1 go test -race $(RACE) ./...

script: build
	go test ./integration/script/...

# With real processes in network namespaces; nothing else should run meanwhile.
net: build
	go build -o bin/redoubt-demo ./integration/demo
	go build -o bin/redoubt-chaos ./integration/chaos
	REDOUBT_NET=1 go test -v -p 1 -count=1 -timeout 25m ./integration/net/...

# Kill and stop everything, for so long: make chaos T=20m. From 20 minutes on
# every kind of fault must have been made at least five times.
T ?= 2m
chaos: build
	@go build -o bin/redoubt-chaos ./integration/chaos
	@exec bin/redoubt-chaos -t $(T) $(CHAOS)

# The long run, whose table is a part of docs/deaths.md.
deaths: build
	@go build -o bin/redoubt-chaos ./integration/chaos
	@exec bin/redoubt-chaos -t 20m -page docs/deaths.md $(CHAOS)

# make bench PAGE=docs notes what it measures there, and makes the page and its
# plots anew; BENCH="-quick" or names of benchmarks go with it.
PAGE ?=
BENCH ?=
bench: build
	go run ./integration/bench $(if $(PAGE),-page $(PAGE)) $(BENCH)

fuzz-smoke: deps
	@integration/fuzz.sh

mutants: build
	@go run ./integration/mutants

clean:
	rm -rf bin .test .generated* .mutants deploy/runtimes/out/*.zst deploy/runtimes/out/manifest.json
