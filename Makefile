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
	@echo "make deps         install what is missing (PostgreSQL 15, python3-venv, libclang-dev) with apt"
	@echo "make build        the tandem program: $(TANDEM)"
	@echo "make fmt lint     format; clippy with warnings as errors"
	@echo "make bench        the benchmarks (release build), about 40 minutes; BENCH_ROUNDS=1 BENCH_SIZE=0.1 shorten the second"
	@echo "make soak         random outages (SOAK_RUNS=100), random histories for an hour (SOAK_MINUTES=60), from SOAK_SEED= on, and the"
	@echo "                  large scenarios"
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
	BENCH_ROUNDS=1 $(TARGET)/release/proxy idle
	BENCH_ROUNDS=1 $(TARGET)/release/proxy idle-tls
	$(TARGET)/release/proxy select-8 select-32 tpcb rate churn logins crowd storm
	$(TARGET)/release/replication
	$(TARGET)/release/decision
	$(TARGET)/release/routing
	$(TARGET)/release/failover

# The scenarios whose full size is too much for `make test`; then the seeds that follow each other from SOAK_SEED on (random
# where none is given): SOAK_RUNS of outages, and histories for SOAK_MINUTES. Stops at the first finding and says how to see it again.
SOAK_MINUTES ?= 60
SOAK_RUNS ?= 100
SOAK_SEED ?=
SCENARIO := $(CARGO) test --locked -p tandem-tests --test replication -- --exact --nocapture --test-threads=1
PROXY_SCENARIO := $(CARGO) test --locked -p tandem-tests --test proxy -- --exact --nocapture --test-threads=1
soak: deps test-postgres
	TANDEM_TEST_CAUSALITY_READS=1000000 TANDEM_TEST_BACKLOG_MB=1024 TANDEM_TEST_PGBENCH_SECONDS=60 $(SCENARIO) \
	    causality::nobody_ever_reads_a_step_without_the_one_before_it \
	    journal::a_long_absence_costs_the_others_no_wal_and_the_daemon_no_memory \
	    counters::pgbenchs_balances_add_up_over_three_majors_although_daemon_and_node_are_killed
	TANDEM_TEST_OWN_READS=1000000 $(PROXY_SCENARIO) \
	    own_reads::a_session_never_misses_its_own_write_on_another_node \
	    own_reads::in_the_databases_scope_no_session_misses_what_another_was_told
	SOAK_RUNS=$(SOAK_RUNS) SOAK_SEED=$(SOAK_SEED) $(PROXY_SCENARIO) \
	    outages::whatever_befalls_the_nodes_no_acknowledged_write_is_lost_and_none_is_done_twice
	SOAK_MINUTES=$(SOAK_MINUTES) SOAK_SEED=$(SOAK_SEED) $(SCENARIO) \
	    histories::random_histories_with_every_fault_end_as_the_model_says
