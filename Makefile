# Each target sets up what it needs; a second run's set-up is nearly instant. Run as root.
SHELL := /bin/bash
PY := .venv/bin/python
FUZZ_SECONDS ?= 15
export GOSSAMER_HEADERS ?= /var/cache/gossamer/headers

.PHONY: lab lab-down test unit kernel-test lab-test sanitize fuzz bench lint setup setup-test

lab: setup            ## bring up the bookinfo lab, show that it works, leave it running
	@.venv/bin/gossamer lab demo

lab-down: setup       ## remove every trace of the lab
	@.venv/bin/gossamer lab down

test: setup-test lint ## everything: lint, unit, kernel, lab
	$(PY) -m pytest tests/unit tests/fuzz
	$(PY) -m pytest tests/kernel tests/lab tests/bench

unit: setup-test
	$(PY) -m pytest tests/unit

kernel-test: setup-test
	$(PY) -m pytest tests/kernel

lab-test: setup-test
	$(PY) -m pytest tests/lab

sanitize: setup-test  ## the compiled parts' tests under AddressSanitizer and UBSan
	@deploy/setup/sanitize.sh

fuzz: setup-test      ## what peers can send, made up by libFuzzer; FUZZ_SECONDS of each target
	@deploy/setup/fuzz.sh run $(FUZZ_SECONDS)

bench: setup-test     ## side by side with no mesh and with Envoy
	.venv/bin/gossamer bench tunnel

lint: setup-test      ## ruff, mypy --strict on mesh/, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

setup:
	@deploy/setup/setup.sh runtime

setup-test:
	@deploy/setup/setup.sh test
