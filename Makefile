# SPDX-License-Identifier: Apache-2.0
# `make` lists what there is. PYTHON=python3.12 picks the interpreter that makes the environment.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
MODEL  := models/magika/model.onnx

.DEFAULT_GOAL := help
.PHONY: help setup model demo test test-kernel check lint format schema bench-h3 bench-workers bench-link bench-tc bench-datagram bench-streaming bench-hung bench-concurrency bench-overload bench-sim clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the environment in .venv and install both distributions into it

# Once per change of a pyproject.toml: the stamp is written only after a successful install.
$(STAMP): pyproject.toml sdk/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed, and $(PYTHON) is not: try make PYTHON=python3.12'; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV), 1.1 GB with all tools: a minute or two'
	$(BIN)/pip install --quiet --disable-pip-version-check -e ./sdk -e '.[dev]'
	@touch $@

model: $(MODEL)  ## fetch the demo model into models/magika/

$(MODEL): | $(STAMP)
	$(BIN)/python -m proxy.demo.model

demo: $(STAMP)  ## real files through all four transports of a gateway in this terminal, as a table
	$(BIN)/inferlane demo

test: $(STAMP)  ## all tests
	@test -f $(MODEL) || $(MAKE) --no-print-directory model || echo 'without the demo model its tests are skipped'
	$(BIN)/pytest

test-kernel: $(STAMP)  ## only tests/kernel, on Debian's kernel under QEMU, as they run
	INFERLANE_MUST_RUN=qemu $(BIN)/pytest tests/integration/test_full_kernel.py --capture=no

lint: $(STAMP)  ## style, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## what CI runs: lint, then all tests

format: $(STAMP)  ## put all sources into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(STAMP)  ## write proxy/inferlane.schema.json anew from the settings
	$(BIN)/python -m proxy.config.schema

bench-h3: $(STAMP)  ## CPU per HTTP/3 request, handshake and idle connection, beside Envoy and Caddy (needs Debian's nginx)
	$(BIN)/python -m benchmarks.h3

bench-workers: $(STAMP)  ## two workers beside one, and clients that move meanwhile (needs Debian's nginx)
	$(BIN)/python -m benchmarks.workers

bench-link: $(STAMP)  ## what a full link adds to the first class, with one FIFO and under the plan (root)
	$(BIN)/python -m benchmarks.link
	$(BIN)/python -m benchmarks.link_shares

bench-tc: $(STAMP)  ## what planning and applying traffic control costs (root)
	$(BIN)/python -m benchmarks.traffic_control

bench-streaming: $(STAMP)  ## what the gateway adds to a token stream, over HTTP/3 and HTTP/1.1
	$(BIN)/python -m benchmarks.streaming

bench-hung: $(STAMP)  ## one of three backends hangs: who waits, here and at Envoy
	$(BIN)/python -m benchmarks.hung

bench-concurrency: $(STAMP)  ## requests/s with 1, 64, 512 and 1,000 clients (needs Debian's nginx)
	$(BIN)/python -m benchmarks.concurrency

bench-overload: $(STAMP)  ## 1.5 times the capacity: whose request is late, here, at Envoy and at Debian's HAProxy
	$(BIN)/python -m benchmarks.overload

bench-sim: $(STAMP)  ## the published cases of scheduling, in a simulator around our own decisions
	$(BIN)/python -m benchmarks.sim all

bench-datagram: $(STAMP)  ## what the gateway adds to one inference datagram
	$(BIN)/python -m benchmarks.datagram

clean:  ## remove the environment and what was built or fetched
	rm -rf $(VENV) .cache build dist models benchmarks/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
