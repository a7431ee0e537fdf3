# Everything a newcomer needs. `make` alone prints what there is.

SHELL := /bin/bash
CARGO ?= cargo
# The demo runs the build that the tests share; PROFILE=release for figures.
PROFILE ?= dev
PROFILE_DIR := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
TARGET := $(or $(CARGO_TARGET_DIR),target)
TANDEM := $(TARGET)/$(PROFILE_DIR)/tandem

.PHONY: help deps build demo clean-demo test test-postgres fmt lint bench soak

help:
	@echo "make demo         build, start three primaries, run the city-bikes workload, compare them, stay up"
	@echo "make demo SMOKE=1 the same in a throw-away directory on free ports; ends after the comparison"
	@echo "make test         formatting, clippy, all tests, doc tests"
	@echo "make deps         install what is missing (PostgreSQL 15, python3-venv) with apt"
	@echo "make build        the tandem program: $(TANDEM)"
	@echo "make fmt lint     format; clippy with warnings as errors"
	@echo "make bench        the benchmarks (release build), about 20 minutes; BENCH_ROUNDS=1 BENCH_SIZE=0.1 shorten the second"
	@echo "make soak         the tests again and again: SOAK_ROUNDS=10"
	@echo "make clean-demo   remove the demo's data"

deps:
	@scripts/deps.sh

build:
	@scripts/estimate.sh $(PROFILE_DIR) 6
	$(CARGO) build --locked --profile $(PROFILE) -p tandem

demo: deps build
	@TANDEM="$(TANDEM)" SMOKE="$(SMOKE)" scripts/demo.sh

clean-demo:
	@scripts/clean-demo.sh

# The pinned builds of PostgreSQL 17 and 18, which the tests of mixed versions use, in advance.
test-postgres: build
	@"$(TANDEM)" postgres 17
	@"$(TANDEM)" postgres 18

test: deps
	@scripts/estimate.sh debug 12
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@$(MAKE) --no-print-directory test-postgres PROFILE=dev
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    set -x; $(CARGO) nextest run --locked --workspace; \
	else \
	    set -x; $(CARGO) test --locked --workspace --lib --bins --tests; \
	fi
	$(CARGO) test --locked --workspace --doc

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

bench: deps
	@scripts/estimate.sh release 20
	$(CARGO) build --locked --release -p tandem-tests -p tandem-bench --bins
	$(TARGET)/release/session-proxy
	$(TARGET)/release/replication

SOAK_ROUNDS ?= 10
soak: deps test-postgres
	@for round in $$(seq $(SOAK_ROUNDS)); do \
	    echo "== round $$round of $(SOAK_ROUNDS)"; \
	    if $(CARGO) nextest --version >/dev/null 2>&1; then \
	        $(CARGO) nextest run --locked --workspace || exit 1; \
	    else \
	        $(CARGO) test --locked --workspace || exit 1; \
	    fi; \
	done
