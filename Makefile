# `make` or `make help` lists the targets.
SHELL := /bin/bash -eu -o pipefail
.DEFAULT_GOAL := help
.PHONY: help run test test-api simulate mutants soak chaos fuzz lint audit fleet bench-accept bench-backup bench-delivery bench-exhaustion bench-imaging bench-queue bench-suite

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

run: ## build Safelight and run it in one process; installs what the build needs
	@scripts/setup.sh build
	cargo build --release
	target/release/safelight serve

test: ## run all tests; installs the engines that they use. ARGS="--help", ARGS="-E 'test(upload)'"
	@scripts/setup.sh build test nextest
	cargo build --workspace --tests --bin with-engines
	PATH="$(CURDIR)/target/tools/bin:$$PATH" target/debug/with-engines cargo nextest run --workspace $(ARGS)

test-api: ## compare a running server with its OpenAPI document (schemathesis)
	@scripts/setup.sh build test-api
	cargo test --workspace --test e2e -- e2e::openapi --nocapture

simulate: ## run seeded schedules of faults; SEEDS=20000 is their number, FROM=0 the first
	@scripts/setup.sh build
	SAFELIGHT_SIM_SEEDS=$(or $(SEEDS),20000) SAFELIGHT_SIM_FROM=$(or $(FROM),0) \
		cargo test --workspace --lib -- simulation --nocapture

fuzz: ## send arbitrary bytes to the imaging code, SECONDS per target; needs a nightly toolchain
	@scripts/setup.sh build fuzz
	@scripts/fuzz.sh $(or $(SECONDS),60)

lint: ## check format, lints, dependencies, shell scripts, container files, manifests, dashboard
	@scripts/setup.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items
	@scripts/lint-files.sh
	@scripts/audit.sh

audit: ## check licenses, sources, bans and known vulnerabilities of the dependencies; SAFELIGHT_AUDIT_OFFLINE=1 without GitHub
	@scripts/setup.sh build
	@scripts/audit.sh

fleet: ## run two API nodes, two workers, RabbitMQ, PostgreSQL, S3 and HAProxy, without Docker
	@scripts/setup.sh build test
	cargo build --release --workspace --bins
	target/release/fleet

soak: ## load with random kills for MINUTES on one process and on a fleet, an import of 10,000 images, an audit; ARGS="--help"
	@scripts/setup.sh build test
	cargo build --release --workspace --bins
	target/release/soak --minutes $(or $(MINUTES),10) $(ARGS)

chaos: ## every fault of docs/reliability.md "Chaos" in turn, and a table of what it cost; needs root; ARGS="--help"
	@scripts/setup.sh build test
	cargo build --release --workspace --bins
	target/release/chaos $(ARGS)

bench-accept: ## rate and latency of uploads compared with this machine's ceiling; ARGS="--help"
	@scripts/setup.sh build test
	cargo build --release --workspace --bins
	target/release/bench $(ARGS)

bench-delivery: ## reads compared with nginx, collapsed requests, bounded memory, cold reads by tier; ARGS="--help"
	@scripts/setup.sh build test bench-delivery
	cargo build --release --workspace --bins
	target/release/delivery $(ARGS)

bench-exhaustion: ## memory of a node, and what others notice, while one client takes all it can; ARGS="--help"
	@scripts/setup.sh build
	cargo build --release --bin safelight
	benches/exhaustion/run $(ARGS)

bench-backup: ## backup of 10,000 images during uploads, restore, comparison of all bytes; ARGS="--help"
	@scripts/setup.sh build test
	cargo build --release --workspace --bins
	target/release/backup $(ARGS)

bench-imaging: ## CPU, quality and memory of renditions compared with sharp and libvips; CORPUS=dir, ARGS="--help"
	@[[ -n "$(CORPUS)" ]] || { echo 'usage: make bench-imaging CORPUS=directory-of-images' >&2; exit 2; }
	@scripts/setup.sh build bench-imaging
	cargo build --release --workspace --bins
	benches/imaging/run $(CORPUS) $(ARGS)

bench-suite: ## each image of DIR in Safelight, sharp and Pillow: what differs, and a contact sheet; ARGS="--help"
	@[[ -n "$(DIR)" ]] || { echo 'usage: make bench-suite DIR=directory-of-images' >&2; exit 2; }
	@scripts/setup.sh build bench-imaging
	cargo build --release --bin safelight
	benches/suite/run $(DIR) $(ARGS)

bench-queue: ## empty jobs compared with Celery and BullMQ, more workers, uploads during a backfill; ARGS="--help"
	@scripts/setup.sh build test bench-queue
	cargo build --release --workspace --bins
	benches/queue/run $(ARGS)

mutants: ## break the lines that docs/reliability.md relies on, and expect a failing test; NAMES="settle claim" selects
	@scripts/setup.sh build test
	cargo build --workspace --bins
	target/debug/mutants $(NAMES)
