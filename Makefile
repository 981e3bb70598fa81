# make demo | test | docs | coverage | benchmark | lint | install | wheelhouse | lock | clean | help. Nothing else to do by hand.
# `make demo` and `make test` create the environment in .venv first (Python 3.10 to 3.12); a second
# run reuses it. VENV=path uses another folder, PYTHON=path another interpreter.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?=
# Compiled modules are kept: without them every process would spend 7 s compiling torch anew.
unexport PYTHONDONTWRITEBYTECODE
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCHMARK_ARGS ?=
UV := $(BIN)/uv pip
# A test process of one thread per core, two to four of them (each takes about 3 GB).
TEST_PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))

LOCKS := requirements/uv.txt requirements/build.txt requirements/all.txt requirements/no-deps.txt
# The stamp's name changes with the locks, setup.py and the folder, so a change reinstalls.
STAMP := $(VENV)/.installed-$(firstword $(shell (cat $(LOCKS) setup.py Makefile; pwd) | cksum))

.DEFAULT_GOAL := help
.PHONY: help demo benchmark test docs coverage lint install wheelhouse lock clean

help:  ## this list
	@awk -F':.*##' '/^[a-z]+:.*##/ {printf "make %-11s%s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## build the mini benchmark, train and evaluate its models, write output/demo (DEMO_ARGS=--quick)
	$(BIN)/ovd demo $(DEMO_ARGS)

benchmark: $(STAMP)  ## every row of every system on mini, several seeds; resumable per row (BENCHMARK_ARGS="--families rkd")
	$(BIN)/ovd benchmark $(BENCHMARK_ARGS)

test: lint  ## all checks and tests, slow ones too (PYTEST_ARGS="-k name")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

docs: $(STAMP)  ## the pages of docs as a site in output/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Python 3.12 counts lines at no cost; before, tests of pure Python take up to twice their time.
coverage: $(STAMP)  ## the lines that tests reach (PYTEST_ARGS="-m 'not slow'")
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff format --check, ruff check, import directions
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -p no:cacheprovider -o addopts="-q --strict-markers" tests/test_import_directions.py

install: $(STAMP)  ## only create the environment

# What pip gets and builds by the lock. Detectron2's wheel is named for CPython 3.10, but its Python
# code is for any: it gets a name that pip takes. install.txt has the hashes of the files as they lie there.
wheelhouse: $(STAMP)  ## everything for a machine without a network, in the folder wheelhouse (3.5 GB)
	@mkdir -p $(WHEELHOUSE) && rm -rf $(WHEELHOUSE)/*.whl build ovd_d2.egg-info
	$(WHEELS) --require-hashes -r requirements/uv.txt -r requirements/all.txt
	$(BIN)/python -m pip download -q --no-deps --require-hashes --only-binary :all: --python-version 3.10 -d $(WHEELHOUSE) -r requirements/no-deps.txt
	@cd $(WHEELHOUSE) && for wheel in *-cp310-none-any.whl; do mv $$wheel $${wheel/cp310/py3}; done
	$(WHEELS) .
	@rm -rf build ovd_d2.egg-info
	@cp -r requirements configs train_net.py LICENSE $(WHEELHOUSE)
	@OVD_D2_CACHE=$(WHEELHOUSE)/cache $(BIN)/python -c 'from ovd_d2.benchmarks.mini.artwork import locate_artwork as get; get()'
	@cd $(WHEELHOUSE) && sha256sum *.whl | sed -E 's/^(\w+)  ([^-]+)-([^-]+)-.*/\2==\3 --hash=sha256:\1/' > install.txt
	@$(BIN)/python -c '$(INSTALL_TXT)' | tee $(WHEELHOUSE)/INSTALL.txt

WHEELHOUSE ?= wheelhouse
WHEELS := $(BIN)/python -m pip wheel -q --no-deps --use-pep517 --no-build-isolation -w $(WHEELHOUSE)
INSTALL_TXT := import platform, sys; name = "python%d.%d" % sys.version_info[:2]; \
	print("For", name, "on", platform.system(), platform.machine(), "with", " ".join(platform.libc_ver()), "or newer."); \
	print("In the folder that holds this file:\n"); \
	print(name, "-m venv env && env/bin/python -m pip install --no-index --no-deps --require-hashes --find-links . -r install.txt", end=" "); \
	print("&& mkdir -p ~/.cache/ovd_d2 && cp -r cache/. ~/.cache/ovd_d2"); \
	print("\nThen: source env/bin/activate && ovd doctor")

$(STAMP): | $(VENV)/.python
	@echo "Installing the locked environment into $(VENV) (a few minutes and 5 GB the first time) ..."
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/uv.txt
	VIRTUAL_ENV=$(VENV) $(UV) install --no-deps --require-hashes --build-constraints requirements/build.txt -r requirements/all.txt
	VIRTUAL_ENV=$(VENV) $(UV) install --no-deps --require-hashes --python-version 3.10 -r requirements/no-deps.txt
	VIRTUAL_ENV=$(VENV) $(UV) install --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*
	@touch $@

# An environment that is there and works is kept; else the first interpreter that starts, is 3.10 to
# 3.12 and can make one.
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
$(VENV)/.python:
	@if $(BIN)/python -m pip --version >/dev/null 2>&1 && $(BIN)/python -c '$(SUITABLE)'; then touch $@; exit 0; fi; \
	for p in $(PYTHON) python3 python3.12 python3.11 python3.10 /usr/bin/python3 ~/.pyenv/versions/3.1[012]*/bin/python; do \
	    $$p -c '$(SUITABLE)' 2>/dev/null || continue; \
	    echo "Creating $(VENV) with $$p ($$($$p --version))"; \
	    $$p -m venv --clear $(VENV) && touch $@ && exit 0; \
	done; \
	echo "error: no Python 3.10, 3.11 or 3.12 with venv found; install one or call make PYTHON=/path/to/python" >&2; exit 2

lock:  ## pin requirements/*.in anew, with hashes
	@test -x $(BIN)/uv || { echo "error: run make install first" >&2; exit 2; }
	for name in uv build; do $(UV) compile -q --upgrade $(COMPILE) requirements/$$name.in -o requirements/$$name.txt || exit 1; done
	$(UV) compile -q --upgrade $(COMPILE) --overrides requirements/overrides.txt --build-constraints requirements/build.txt requirements/all.in -o requirements/all.txt

COMPILE := --universal --python-version 3.10 --generate-hashes --custom-compile-command "make lock"

clean:  ## remove the environment and build leftovers (keeps datasets/ and output/)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find ovd_d2 tests -name __pycache__ -type d -prune -exec rm -rf {} +
