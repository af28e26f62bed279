# Everything runs in .venv, made from pyproject.toml. `make quickstart` and `make test` need nothing before them.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
STAMP := $(VENV)/.installed
JOBS ?= 2
SIDE_BY_SIDE := -n $(JOBS) --dist worksteal

unexport PYTHONDONTWRITEBYTECODE # the tests are compiled once, and not by every worker that collects them

.PHONY: help setup quickstart test test-fast test-all check docs format gpu-check bench bench-peers bench-quick soak lock audit screenshots tables clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## install PruneGPT and its tools into .venv (TORCH=torch==X.Y picks another build)

$(PACKAGE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install --editable .
	touch $(PACKAGE)

$(STAMP): $(PACKAGE)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps sweeps==0.3.0  # it asks for numpy 1, and works with 2
	touch $(STAMP)

quickstart: $(PACKAGE) ## install PruneGPT alone and run the study in small: minutes on two cores, no download but packages
	$(BIN)/prunegpt quickstart --slots 2
	@echo
	@echo "Next:"
	@echo "  source $(BIN)/activate       # then 'prunegpt' is a command of this shell"
	@echo "  prunegpt serve               # the dashboard, at http://127.0.0.1:8000"
	@echo "  prunegpt report quickstart --out report"
	@echo "  prunegpt init oneshot        # a spec of your own; sweeps/README.md lists every field"

test: $(STAMP) ## the tests, without the slow ones
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: $(STAMP) ## some tests of every room, in under a minute: for the loop of writing and trying
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $$(cat tests/fast.txt)

test-all: $(STAMP) ## all tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m ''

check: $(STAMP) ## what CI runs beside the tests: lint, types, import rule, words, README, the site, the wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_readme.py tests/test_words.py
	$(MAKE) --no-print-directory docs
	$(BIN)/python tests/check_wheel.py

docs: $(STAMP) ## build the documentation into build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu-check: $(STAMP) ## what to look at first on a GPU, about 8 minutes
	$(BIN)/python -m tests.bench.gpu_check

bench: $(STAMP) ## measure against the alternatives, about 15 minutes (MODEL=FOLDER TEXT=FOLDER); the table goes into docs/results/benchmarks.md
	$(BIN)/python -m tests.bench --check $(if $(MODEL),--model $(MODEL)) $(if $(TEXT),--text $(TEXT)); status=$$?; \
	$(BIN)/python -m tests.bench.table --update docs/results/benchmarks.md && exit $$status

bench-peers: $(STAMP) ## measure beside llm-compressor, lm-eval and Ray Tune, each installed for itself (MODEL=FOLDER TEXT=FOLDER)
	$(BIN)/python -m tests.bench --peers --check $(if $(MODEL),--model $(MODEL)) $(if $(TEXT),--text $(TEXT)); status=$$?; \
	$(BIN)/python -m tests.bench.table --peers --update docs/results/benchmarks.md && exit $$status

bench-quick: $(STAMP) ## every benchmark in small, to see that it runs: its figures mean nothing
	$(BIN)/python -m tests.bench --quick --out build/bench

soak: $(STAMP) ## up to 20 minutes of 2,000 small trials with the dashboard open: memory and file handles must stay flat
	$(BIN)/python -m tests.robust.soak --seconds 1200 --real

lock: $(STAMP) ## write down what is installed and was tested: .ci/requirements.lock
	$(BIN)/python -m tests.robust.lock

audit: $(STAMP) ## known holes in what was tested, asked of the package index; exit status 3 where it cannot be reached
	$(BIN)/python -m tests.robust.audit

screenshots: $(STAMP) ## pictures of the dashboard on the quickstart's results, for the README (needs Chromium)
	$(BIN)/python -m tests.web.screenshots runs tests/web/pictures

tables: $(STAMP) ## put the tables of the kept results into the README and the pages
	for results in sweeps/results/*; do for page in $$(grep -rlE "prunegpt:table $$(basename $$results)(/| -->)" README.md docs --include='*.md'); do \
	  $(BIN)/prunegpt table $$results --update $$page || exit 1; done; done

clean: ## remove what was built; results under runs/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
