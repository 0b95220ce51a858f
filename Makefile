# Every command a newcomer needs. `make help` lists them.
# Run, not only looked up: a version manager's shim may exist for a version that is not installed.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
  $$each $(NEW_ENOUGH) 2>/dev/null && { echo $$each; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := protos/ecdiff_v1.proto protos/orchestrator_v1.proto protos/edge_agent_v1.proto
export GRPC_ENABLE_FORK_SUPPORT := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ray check protos protos-check lint types imports bench train-smoke slow fuzz up down logs up-local down-local wheels hadolint clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## .venv with everything, from nothing; quick when nothing changed

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || "$(PYTHON)" $(NEW_ENOUGH) 2>/dev/null || \
	  { echo "error: ecdiff needs Python 3.11 or newer: say PYTHON=/path/to/python make setup"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench,lora,train,video]'
	@touch $@

demo: setup  ## three prompts in every mode through the real services: out/demo/compare.png and report.json
	@mkdir -p out/demo
	$(BIN)/edge-client compare --no-agent "red apple, fluent style" "spiral shell, blob style" "dolphin, fluent style" \
	  --seed 3 -o out/demo/compare.png --report out/demo/report.json

test: setup  ## the tests that CI runs: CPU only, offline, about 20 minutes
	$(BIN)/python -m pytest -q

slow: setup  ## the long fault, churn and fuzz tests; those of images and Compose too where a Docker Engine answers
	$(BIN)/python -m pytest -q -m slow

fuzz: setup  ## coverage-guided fuzzing of the decoder, some minutes; wants atheris: .venv/bin/pip install -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.decoder -runs=1000000 -max_total_time=600

RAY_TESTS := $(addprefix tests/integration/test_, cloud_service_stream.py cloud_service_sessions.py cloud_service_corrections.py \
  cloud_service_refusals.py cloud_service_access.py cloud_service_openings.py refresh_over_grpc.py solver_handoff.py \
  adaptive_handoff.py adaptive_parity.py python_api.py)
test-ray: setup  ## the same tests of the service on Ray Serve, and those of several replicas (docs/ray.md); about 5 minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -q --cloud-on ray $(RAY_TESTS)
	$(BIN)/python -m pytest -q -m ray tests/ray_serve

check: setup protos-check lint types imports test  ## everything a change must pass

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

hadolint:  ## the linter of Dockerfiles
	$(BIN)/hadolint deploy/Dockerfile

imports:
	$(BIN)/lint-imports

protos: setup  ## regenerate the modules beside the schema
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
	  --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

protos-check: setup
	@rm -rf out/protos && mkdir -p out/protos
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --python_out=out/protos --grpc_python_out=out/protos \
	  --mypy_out=quiet:out/protos --mypy_grpc_out=quiet:out/protos $(PROTOS)
	@for f in out/protos/protos/*; do cmp -s $$f protos/$$(basename $$f) || { echo "$$f: run make protos and commit the result"; exit 1; }; done

bench: setup  ## every published number; hours on two cores
	$(BIN)/python -m bench.overhead
	$(BIN)/python -m bench.pair
	$(BIN)/python -m bench.decisions
	$(BIN)/python -m bench.quality --num-prompts 64 --num-seeds 2
	$(BIN)/python -m bench.headline --num-prompts 64 --num-seeds 2 --repeats 10
	$(BIN)/python -m bench.deadline
	$(BIN)/python -m bench.shadow
	$(BIN)/python -m bench.agent
	$(BIN)/python -m bench.scrape
	$(BIN)/python -m bench.codec
	$(BIN)/python -m bench.codec --video
	$(BIN)/python -m bench.pairs
	$(BIN)/python -m bench.parity
	$(BIN)/python -m bench.links
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.capacity

SMOKE := --out out/train-smoke --batch-size 8 --sheet-pictures 8 --styles fluent,noto --groups food-drink
train-smoke: setup  ## the training recipe end to end in miniature, a few minutes; fetches the icons with npm
	rm -rf out/train-smoke
	$(BIN)/python -m models.train autoencoder --steps 60 $(SMOKE)
	$(BIN)/python -m models.train cloud --steps 40 $(SMOKE)
	$(BIN)/python -m models.train edge --steps 80 $(SMOKE)
	$(BIN)/python -m models.train scorer --steps 20 $(SMOKE)
	$(BIN)/python -m models.train export --out out/train-smoke --pair out/train-smoke/pair
	$(BIN)/python -m bench.pair --pair out/train-smoke/pair --num-prompts 16 --steps 20 --groups food-drink \
	  --output out/train-smoke

up:  ## everything by Compose: cloud, edge agent, orchestrator, Prometheus, Grafana (docs/deploy.md)
	@deploy/compose.sh up

down:  ## stop what make up started; its data stays
	@deploy/compose.sh down

logs:  ## follow what the services of make up say
	@deploy/compose.sh logs

up-local: setup  ## without Docker: the bundled cloud service in the background on 127.0.0.1:50051
	@deploy/local.sh up

down-local:  ## stop what make up-local started
	@deploy/local.sh down

wheels:  ## fill deploy/wheels, so that images are built without a network: PIP_NO_INDEX=1 make up
	@mkdir -p out
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
	  >out/requirements.txt
	$(PYTHON) -m pip download --quiet --dest deploy/wheels --only-binary=:all: --python-version 3.11 \
	  -c constraints.txt 'setuptools>=77' -r out/requirements.txt

clean: down-local
	rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache
