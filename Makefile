# Every target installs what it needs by itself: the development environment in .venv, engines and the demo model in
# tracekit's cache folder ($TRACEKIT_CACHE, else ~/.cache/tracekit).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test accuracy faults test-long lint docs proto assets picture bench clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tracekit needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[replay,dev]'
	@touch $@

demo: $(VENV)/.installed  ## Record a real vLLM engine twice, replay both, tell the story.
	$(BIN)/tracekit demo

picture: $(VENV)/.installed  ## Make docs/verdict.png, the page of the demo's first run (needs Chromium).
	@folder=$$(mktemp -d) && $(BIN)/tracekit demo --keep $$folder && $(BIN)/python scripts/picture.py $$folder/defaults.replay.arrow

# two at a time: an engine's start keeps one core busy; tests/helpers/sharing.py says which stay together
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=15

test: $(VENV)/.installed  ## Run all tests, engines included (GPU tests skip where there is none).
	@begin=$$(date +%s); $(PYTEST) -m "not engine and not long" && echo "tests without engines: $$(($$(date +%s) - begin)) s"
	@begin=$$(date +%s); $(PYTEST) -m "engine and not long" && echo "tests on engines: $$(($$(date +%s) - begin)) s"

ACCURACY := PYTHONPATH=.:daemon:tests OMP_NUM_THREADS=1
accuracy: $(VENV)/.installed  ## Record faults with known answers, replay, write docs/accuracy.md (hours; SHORT=1: minutes, no page).
ifdef SHORT
	$(BIN)/python -m pytest tests/engine/test_accuracy.py
else
	$(ACCURACY) $(BIN)/python -m corpus all
endif

test-long: $(VENV)/.installed  ## Run what fetches more: the larger real model, engines in Ray actors (400 MB, fifteen minutes).
	$(BIN)/python -m pytest -m long

faults: $(VENV)/.installed  ## Kill daemons 10,000 times while engines send, and judge what lies on the disk (half an hour; KILLS=100 for less; SOAK=3600: kill none, watch memory).
	PYTHONPATH=tests $(BIN)/python -m helpers.oracle $(if $(SOAK),--soak $(SOAK),--kills $(or $(KILLS),10000))

lint: $(VENV)/.installed  ## ruff and mypy --strict on our own code.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## Make docs/trace-format.md and docs/result.schema.json from the code.
	$(BIN)/python scripts/gen_trace_format.py
	$(BIN)/python scripts/gen_schema.py

proto: $(VENV)/.installed  ## Regenerate the wire messages from proto/.
	$(BIN)/python scripts/gen_proto.py

assets:  ## Fetch what the page of a replay carries from the npm registry (uPlot, MIT).
	cd tracekit/report/page/assets && npm pack uplot@1.6.32 --silent && tar xzf uplot-1.6.32.tgz --strip-components 2 package/dist/uPlot.iife.min.js package/dist/uPlot.min.css && rm uplot-1.6.32.tgz

bench: $(VENV)/.installed  ## Print the benchmark ratios (recorder, trace, daemon, scorer).
	$(BIN)/python bench/trace.py
	$(BIN)/python bench/ingest.py
	$(BIN)/python bench/scorer.py
	$(BIN)/python bench/recorder.py

clean:  ## Remove the development environment and caches of tools, not the engines.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
