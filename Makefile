# The two doors of the project, `make demo` and `make test`, plus what its keepers need. Each sets up .venv by itself on first use.
# A CPU or CUDA build of torch that is already in .venv is kept (README, "Prerequisites").
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out/demo
BIN    := $(VENV)/bin
JOBS   ?= 2
KILLS  ?= 50

.PHONY: demo test lint format soak bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready          ## the whole journey on the embedded world; ends with the path of report.html
	$(BIN)/pipelines demo --out $(OUT)

test: $(VENV)/.ready-test     ## two passes: what needs no cluster in parallel, then the few that start Ray
	$(BIN)/python -m pytest -n $(JOBS) -m "not ray and not soak"
	$(BIN)/python -m pytest -m "ray and not soak"

lint: $(VENV)/.ready-test     ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix .

soak: $(VENV)/.ready-test     ## kill -9 at random moments over all stages; every artifact must equal an undisturbed one
	$(BIN)/python -m tests.soak --kills $(KILLS)
	$(BIN)/python -m tests.balance_soak --kills $(KILLS)
	$(BIN)/python -m tests.video_soak --kills $(KILLS)
	$(BIN)/python -m tests.encode_soak --kills 20
	$(BIN)/python -m tests.crash_soak --crashes 1000
	$(BIN)/python -m tests.stream_soak --trials 100
	$(BIN)/python -m tests.trainer_soak --trials 50
	$(BIN)/python -m tests.ablate_soak --kills 5

bench: $(VENV)/.ready-test    ## every comparison; rewrites benchmarks/README.md
	$(BIN)/python -m benchmarks

clean:                        ## what make made; never data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# A stamp per set, so that a user of the demo never installs the test tools. constraints.txt pins the known-good versions.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headwater needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "this Python cannot make a venv: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(VENV)/.ready $@
