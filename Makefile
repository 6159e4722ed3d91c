# make install | demo | test | test-avx2 | test-long | lint | site | bench-all
# TORCH_INDEX=URL takes torch from that wheel index instead (for example PyTorch's own, for another CUDA version).

PYTHON ?= python3
TORCH_INDEX ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check
TORCH = $(shell grep '^torch==' constraints.txt)

.PHONY: install demo test test-avx2 test-long lint site bench-all clean

install: .venv/.installed
demo: .venv/.installed
	@.venv/bin/sightline train configs/classify/synthetic_shapes_pointnet.yaml
# Three workers on two cores: some tests wait. They, and the commands that they start, import the same files: compiled once,
# also where the shell forbids it.
test: .venv/.kernels
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 3 --dist worksteal --durations=120 --durations-min=4
# numba's machine code is as old as the files of its kernels: workers that compile them would do so at the same time, and
# each would read and rewrite the assertions of all tests of a new checkout.
.venv/.kernels: .venv/.installed-dev tests/kernels.txt $(shell grep -rl --include=*.py numba_kernel sightline)
	PYTHONDONTWRITEBYTECODE= .venv/bin/python tools/compile_kernels.py tests/kernels.txt
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest --collect-only -q > /dev/null
	@touch $@
# A third of the tests, drawn by the package's digest, as processors without AVX-512 compute: CI runs it after all.
test-avx2: .venv/.kernels
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 PYTHONDONTWRITEBYTECODE= \
		.venv/bin/python -m pytest -n 3 --dist worksteal --third
test-long: .venv/.installed-dev
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -m long --override-ini addopts="--strict-markers -ra"
lint: .venv/.installed-dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

# docs/ as pages in site/; python -m http.server -d site shows them, with their search.
site: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
# The table of all cases against every peer, each of the version in constraints.txt, and how they grow, with a plot.
bench-all: .venv/.installed-peers
	@mkdir -p build/bench
	.venv/bin/python -m benchmarks $(BENCH) --json build/bench/bench.json > build/bench/bench.txt
	.venv/bin/python -m benchmarks geometry models --grow all $(BENCH) --json build/bench/growth.json \
		--svg build/bench/growth.svg > build/bench/growth.txt
	@cat build/bench/bench.txt build/bench/growth.txt

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.torch: .venv/bin/python constraints.txt
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[tensorboard,probe,pcd,las,detect]'
	@echo 'compiling kernels for this CPU, about a minute'
	@.venv/bin/python tools/compile_kernels.py
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) install -c constraints.txt -e '.[tensorboard,probe,pcd,las,detect,wandb,mlflow,hub,dev]'
	@touch $@

.venv/.installed-peers: .venv/.installed-dev
	$(PIP) install -c constraints.txt -e '.[peers]' pycocotools
	@touch $@

clean:
	rm -rf .venv
