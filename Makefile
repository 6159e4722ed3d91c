# make install | demo | test | test-long | lint | site
# TORCH_INDEX=URL takes torch from that wheel index instead (for example PyTorch's own, for another CUDA version).

PYTHON ?= python3
TORCH_INDEX ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check
TORCH = $(shell grep '^torch==' constraints.txt)

.PHONY: install demo test test-long lint site clean

install: .venv/.installed
demo: .venv/.installed
	@.venv/bin/sightline train configs/classify/synthetic_shapes_pointnet.yaml
# Two workers and every command that they start import the same files: compiled once, also where the shell forbids it.
test: .venv/.kernels
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 2 --dist worksteal
# numba's machine code is as old as the files of its kernels: workers that compile them would do so at the same time.
.venv/.kernels: .venv/.installed-dev tests/kernels.txt $(shell grep -rl --include=*.py numba_kernel sightline)
	PYTHONDONTWRITEBYTECODE= .venv/bin/python tools/compile_kernels.py tests/kernels.txt
	@touch $@
test-long: .venv/.installed-dev
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -m long --override-ini addopts="--strict-markers -ra"
lint: .venv/.installed-dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

# docs/ as pages in site/; python -m http.server -d site shows them, with their search.
site: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

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
	$(PIP) install -c constraints.txt -e '.[tensorboard,probe,pcd,las,detect,wandb,loops,dev]'
	@touch $@

clean:
	rm -rf .venv
