# The habits of the house. Each target sets itself up in .venv, from pinned versions, and builds the libraries.
#   make test PYTHON=python3     uses that environment instead, and installs nothing into it
#   make test ARGS="-k rms_norm" passes arguments on; make demo DEVICE=cuda runs on a GPU
VENV := .venv
DEVICE ?= cpu
export LIGER_WERROR ?= 1

ifdef PYTHON
PY := $(PYTHON)
READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/ready
endif

.PHONY: demo test test-cuda test-downstream lint format check bench sweep pages size mutants wheel clean build

demo: build
	$(PY) examples/train_llama/train.py --device $(DEVICE) $(ARGS)

test: build
	$(PY) -m pytest -q test $(ARGS)

test-cuda: build
	$(PY) -m pytest -q test --device cuda $(ARGS)

# TRL's own trainers with our losses and without, from the wheel, in environments of their own; DeepSpeed, where the
# environment has it; make test-downstream DOWNSTREAM=new runs one of the two
DOWNSTREAM ?= old new
test-downstream: wheel $(DOWNSTREAM:%=.venv-trl-%/ready)
	for line in $(DOWNSTREAM); do \
	  .venv-trl-$$line/bin/pip install -q --no-deps --force-reinstall dist/liger_kernel_c-*.whl && \
	  .venv-trl-$$line/bin/python test/downstream/trl_trainers.py $(ARGS) || exit 1; \
	  if grep -q ^deepspeed test/downstream/pins-$$line.txt; then \
	    .venv-trl-$$line/bin/python test/downstream/deepspeed_zero.py || exit 1; fi; done

.venv-trl-%/ready: test/downstream/pins-%.txt
	python3 -m venv .venv-trl-$*
	.venv-trl-$*/bin/pip install -q $$(grep '^torch==' $<)
	.venv-trl-$*/bin/pip install -q -r $<
	touch $@

lint: build
	$(PY) -m ruff check --output-format concise .
	git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs $(dir $(shell command -v $(PY)))clang-format --dry-run -Werror
	$(PY) tools/lint.py
	$(PY) -m benchmark.operators_page --check
	$(PY) -m benchmark.performance_page --check

format: $(READY)
	-$(PY) -m ruff check --fix --quiet .
	git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs $(dir $(shell command -v $(PY)))clang-format -i

check: $(READY)
	$(PY) test/c/run.py --sanitize

# make bench DEVICE=cuda OPS=rms_norm,rope; one that was interrupted goes on where it stopped
bench: build
	$(PY) -m benchmark.run --device $(DEVICE) $(if $(OPS),--ops $(OPS)) $(ARGS)

sweep: build
	$(PY) -m benchmark.sweep --device $(DEVICE) $(if $(OPS),--ops $(OPS)) $(ARGS)

# README's tables, docs/operators.md, docs/performance.md with its charts: after new results, specs or docstrings
pages: build
	$(PY) -m benchmark.readme_table
	$(PY) -m benchmark.operators_page
	$(PY) -m benchmark.performance_page

# the libraries for every architecture of a release, which takes nvcc long; fails at 40 MB
size: $(READY)
	$(PY) tools/size.py

mutants: build
	$(PY) test/mutants/run.py --device $(DEVICE) $(ARGS)

wheel: $(READY)
	$(PY) -m pip wheel --no-deps --no-build-isolation -w dist .

# setuptools compiles only what changed, so this runs every time
build: $(READY)
	$(PY) setup.py -q build_ext --inplace

# torch first, from the pinned set; then the rest; then ourselves, editable, so that our metadata answers as installed
$(VENV)/ready: constraints.txt pyproject.toml
	@echo 'Setting up $(VENV), once: torch and the pinned packages, then the libraries; some minutes without a word'
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt torch numpy setuptools wheel
	$(VENV)/bin/pip install -q -c constraints.txt --no-build-isolation -e '.[dev,examples,benchmark]'
	touch $@

clean:
	rm -rf build dist liger_kernel/lib test/build demo_output *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
