# Everything a person or CI does with this project.  `make help` lists the targets.
#
# Each target installs what it needs into .venv first; a stamp file remembers that it did, so the
# second time is quick.  python3 (3.10 or newer) and make are all that a machine must have.

PYTHON ?= python3

VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check -c constraints.txt
SPHINX := $(PY) -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet
QUICK := not slow and not gpu
# One process of tests a core; each starts some of its own.
PARALLEL := -n auto --maxprocesses=4 --dist=worksteal

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-resume demo-distributed test laws test-slow test-full
.PHONY: lint types format bench scoreboard docs build clean distclean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

demo: $(VENV)/.examples ## Train on handwritten digits with evaluation, best checkpoint, early stopping
	rm -rf runs/digits
	$(PY) examples/digits.py --out-dir runs/digits

demo-resume: $(VENV)/.examples ## The same, killed half-way and started again
	rm -rf runs/digits-resume
	@echo "First run: it kills itself in epoch 4, as a power cut would."
	$(PY) examples/digits.py --out-dir runs/digits-resume --kill-at-epoch 4; \
	  status=$$?; test $$status -eq 137 || { echo "expected a kill (exit 137), got $$status"; exit 1; }
	@echo "Second run: the same command again goes on where the first was killed."
	$(PY) examples/digits.py --out-dir runs/digits-resume

demo-distributed: $(VENV)/.examples ## Train a ResNet-50 on two processes, evaluated as on one
	rm -rf runs/distributed
	$(PY) examples/distributed.py --nproc 2 --out-dir runs/distributed

test: $(VENV)/.test ## Run the tests; fail below 95 % coverage
	$(PY) -m pytest $(PARALLEL) -m "$(QUICK)" --cov

laws: $(VENV)/.test ## Run the suite of laws alone: it passes unchanged through every rebuilding
	$(PY) -m pytest $(PARALLEL) -m "$(QUICK)" tests/laws tests/faults tests/distributed

test-slow: $(VENV)/.test ## Run the tests that `make test` leaves out: the examples, above all
	$(PY) -m pytest $(PARALLEL) -m "slow and not gpu"

test-full: $(VENV)/.test ## Run all tests, the slow ones and those for a GPU too
	$(PY) -m pytest $(PARALLEL) --cov

lint: $(VENV)/.lint types ## Check style, layers and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/lint-imports --no-cache --no-logo

types: $(VENV)/.lint ## Check the types alone
	$(PY) -m mypy

format: $(VENV)/.lint ## Bring the code into the house's form
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

bench: $(VENV)/.bench ## Print the speed table, ours beside every peer (BENCH=--quick: a short look)
	$(PY) -m benchmarks $(BENCH)

scoreboard: $(VENV)/.bench ## Run the same scenarios on every library, and keep what each one said
	$(PY) benchmarks/scoreboard.py --save --markdown

docs: $(VENV)/.docs ## Build the documentation into docs/_build/html; a warning is an error
	$(SPHINX) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

build: $(VENV)/.build ## Build the sdist and the wheel into dist/
	rm -rf build dist
	$(PY) -m build --no-isolation

clean: ## Remove what was built and every cache, but neither .venv nor runs/
	rm -rf build dist docs/_build htmlcov .coverage .coverage.* *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove .venv as well
	rm -rf $(VENV)

# The package itself and what it needs at run time.  A virtual environment that lacks pip, since
# its making was interrupted, is made anew.
$(VENV)/.core: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "Python 3.10 or newer is needed, %s is %d.%d: make PYTHON=/path/to/python" % (sys.executable, *v[:2]))'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --quiet "setuptools>=77"
	$(PIP_INSTALL) $(if $(CI),--quiet) --no-build-isolation -e .
	@touch $@

# One stamp for each extra of setup.cfg.
$(VENV)/.docs $(VENV)/.examples $(VENV)/.test: $(VENV)/.%: $(VENV)/.core
	$(PIP_INSTALL) --quiet --no-build-isolation -e ".[$*]"
	@touch $@

# MMCV 1.x comes as source only, and is built by what newer setuptools no longer have; the scoreboard
# says so where that fails.
$(VENV)/.bench: $(VENV)/.core
	$(PIP_INSTALL) --quiet --no-build-isolation -e ".[bench]"
	@echo "setuptools<80" > $(VENV)/mmcv-build.txt
	-MMCV_WITH_OPS=0 PIP_CONSTRAINT=$(VENV)/mmcv-build.txt PIP_BUILD_CONSTRAINT=$(VENV)/mmcv-build.txt \
	  $(PIP_INSTALL) --quiet --no-deps mmcv
	@touch $@

# mypy reads the examples, and so needs what they import.
$(VENV)/.lint: $(VENV)/.core
	$(PIP_INSTALL) --quiet --no-build-isolation -e ".[lint,examples]"
	@touch $@

$(VENV)/.build: $(VENV)/.core
	$(PIP_INSTALL) --quiet build
	@touch $@
