# Torch's threads spin beside other work; on a shared machine they are several times slower without these.
export OMP_WAIT_POLICY = PASSIVE
export GOMP_SPINCOUNT = 0
PYTHON := .venv/bin/python
# Two processes of one thread each take half the time of one with two: most of the tests' operations are small.
# In the files' own order: by their number of tests the longest file (test_benchmarks) would run last, alone.
ON_THE_HOST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder tests/graph

.PHONY: setup demo test test-core test-graph lint bench browser transformers4

setup:
	@python3 scripts/get_host.py

browser: setup
	@$(PYTHON) scripts/get_browser.py

demo: setup
	$(PYTHON) -m vico_spin.scripts.demo $(if $(QUICK),--quick)

transformers4: setup
	@$(PYTHON) -m vico_spin.scripts.make_transformers4_venv

test: lint browser transformers4
	$(PYTHON) -m pytest -m "not gpu" tests/core
	.venv-t4/bin/python -m pytest -m "not gpu" tests/core/test_scores_*.py
	$(ON_THE_HOST)
	$(PYTHON) -m pytest -m "not gpu" tests/browser

test-core: setup
	$(PYTHON) -m pytest -m "not gpu" tests/core

# On another ComfyUI: COMFYUI_PATH=/path/to/ComfyUI make test-graph
test-graph: browser
	$(ON_THE_HOST)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PYTHON) scripts/walls.py

bench: browser
	$(PYTHON) -m vico_spin.benchmarks.table $(if $(QUICK),--quick)
