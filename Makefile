# make demo         a pretrained network learns new pictures inside MicroPython (build/demo.png)
# make setup        .venv, with everything that `make` needs and .venv/bin/sprout
# make test         lint, then every test
# make lint         ruff, mypy, clang-format
# make natmods      the native modules of all boards, into native_modules/prebuilt
# make natmod-xtensawin   the one for ESP32, S2 and S3, which takes Debian 12 and some packages
# make firmware     MicroPython with Sprout compiled in, for this machine and for QEMU, likewise
# make docs         build/docs/index.html
# make wheel        dist/sprout-VERSION-py3-none-any.whl, for pip install
# make example-NAME a board that learns, simulated: person, button, gestures or digits
# make bench-NAME   one measurement: a table, and build/bench-NAME.json
# make clean        everything made here except the virtual environments
#
# A fresh machine needs make and Python 3.10 or later; the rest comes from pip, into .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup build natmods natmod-xtensawin firmware docs wheel demo test lint clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml requirements.txt requirements-dev.txt requirements-docs.txt
BENCHES = $(filter-out common,$(patsubst tools/bench_%.py,%,$(wildcard tools/bench_*.py)))
C_FILES = $(shell find native_modules -name '*.[ch]')

help:
	@sed -n '/^# make/s/^# //p' Makefile

setup: $(VENV)/.stamp

# $(1): a folder, $(2): files of pins. A virtual environment whose Python is gone is made anew.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo >&2 \
		"Sprout needs Python 3.10 or later: run 'make PYTHON=/path/to/a/newer/python3'."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo >&2 \
		"$(PYTHON) cannot make virtual environments: install venv and ensurepip" \
		"(Debian, Ubuntu: apt install python3-venv) and run make again."; exit 1; }
	@echo "Setting up $(1) (once; pip fetches some hundred MB and says nothing for minutes)"
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
		$(foreach pins,$(2),-r $(pins))
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(1)/.stamp
endef

$(VENV)/.stamp: $(PINS)
	$(call make_venv,$(VENV),requirements.txt requirements-dev.txt requirements-docs.txt)

# PyTorch is for benches and pretraining only, and far too big for anything else.
$(VENV)-torch/.stamp: $(PINS) requirements-train.txt
	$(call make_venv,$(VENV)-torch,requirements.txt requirements-train.txt)

# The C core, once, before anything runs it in parallel.
build: $(VENV)/.stamp
	@$(BIN)/python native_modules/build.py host >/dev/null
	@$(BIN)/python native_modules/build.py natmod --arch x64 >/dev/null

natmods: $(VENV)/.stamp
	@$(BIN)/python native_modules/build.py prebuilt

natmod-xtensawin: $(VENV)/.stamp
	@$(BIN)/python tools/xtensa_toolchain.py
	@$(BIN)/python native_modules/build.py prebuilt --arch xtensawin

firmware: $(VENV)/.stamp
	@$(BIN)/python tools/firmware.py

docs: build
	@$(BIN)/python -m sphinx --quiet --fail-on-warning docs build/docs
	@echo build/docs/index.html

wheel: $(VENV)/.stamp
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist

demo: build
	@$(BIN)/python tools/demo.py

test: lint build
	$(BIN)/python -m pytest

lint: $(VENV)/.stamp
	$(BIN)/ruff check --output-format concise
	$(BIN)/mypy
	@$(if $(C_FILES),$(BIN)/clang-format --dry-run -Werror $(C_FILES))

bench-%: build
	@test -n '$(filter $*,$(BENCHES))' || { \
		echo >&2 "There is no bench '$*'; there are: $(BENCHES)."; exit 1; }
	@if grep -qE '^ *(import|from) torch' tools/bench_$*.py; then \
		$(MAKE) --no-print-directory $(VENV)-torch/.stamp && \
		$(VENV)-torch/bin/python tools/bench_$*.py; \
	else \
		$(BIN)/python tools/bench_$*.py; \
	fi

example-%: build
	@$(BIN)/python examples/prepare.py $*

clean:
	rm -rf build dist docs/pictures .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)*' -prune -exec rm -rf {} +
