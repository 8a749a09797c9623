# Everything runs in a virtual environment below .venv, which the first target that needs it builds.
#
#   make demo    set up, then make a small data set, and a report of it to open in a browser (out/demo)
#   make test    set up, then all tests
#   make check   ruff, mypy and the rules that a parser can check
#   make setup   only the environment; again only when pyproject.toml or constraints.txt changed

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,\
            $(shell $(name) $(NEW_ENOUGH) >/dev/null 2>&1 && echo $(name))))

# Every worker of Ray is a process that imports torch and pyarrow. Without bytecode beside the modules each compiles them
# anew, which takes 8 of its 13 s of processor time; some containers forbid Python to write it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check setup
.DELETE_ON_ERROR:

demo: $(SETUP)
	$(BIN)/segdatagen demo

# Three at once, since tests that start Ray mostly wait: those of one Ray; those whose commands start their own, and then every
# second file of those without; the other files without. What needs no Ray gives way to both, also to the workers of Ray,
# which are nice to 15. Files are named because importing all of them takes 20 s; conftest.py refuses a test that would be
# left out.
RAY_FILES = $(shell grep -lE 'ray_session|refused_on_ray' tests/test_*.py)
OWN_RAY_FILES = $(shell grep -l 'pytest.mark.ray' tests/test_*.py)
EVEN_FILES = $(shell ls tests/test_*.py | sed -n 'n;p')
ODD_FILES = $(shell ls tests/test_*.py | sed -n 'p;n')
PYTEST = $(BIN)/python -m pytest
test: $(SETUP)
	@log=$$(mktemp -d); \
	nice -n 19 $(PYTEST) -m "not ray" $(ODD_FILES) >$$log/odd 2>&1 & odd=$$!; \
	{ $(PYTEST) -m own_ray $(OWN_RAY_FILES) >$$log/own 2>&1; own=$$?; \
	  nice -n 19 $(PYTEST) -m "not ray" $(EVEN_FILES) >$$log/even 2>&1 && exit $$own; } & others=$$!; \
	$(PYTEST) -m "ray and not own_ray" $(RAY_FILES); status=$$?; \
	wait $$odd || status=1; wait $$others || status=1; \
	cat $$log/own $$log/even $$log/odd; rm -rf $$log; exit $$status

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "segdatagen needs Python 3.11 or newer: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Without --no-compile pip would spend more than a minute on modules that nobody imports.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	touch $@
