# make setup       the environment alone
# make demo        generate data, train, evaluate in every weather, draw
# make test        the test suite
# make test-slow   the tests that take minutes
# make fuzz        20,000 made-up files for every reader
# make lint        ruff and mypy
# make sbom        what is installed, as CycloneDX and as a table of licenses, in output/sbom
# make docs        the documentation, in site/
# make benchmark   the CPU rows of projects/Benchmarks/README.md
# make clean       remove what the others have written
# All make the environment first, in .venv, unless PYTHON names one that is ready: make test PYTHON=python3

PYTHON ?= .venv/bin/python
BASE_PYTHON ?= python3
SHELL := /bin/bash
STAMP := .venv/.soma_det-$(shell cat requirements/*.txt pyproject.toml tools/setup_env.sh | cksum | cut -d' ' -f1)
BENCHMARK := $(PYTHON) projects/Benchmarks/benchmark.py
PYTEST := $(PYTHON) -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help setup test test-slow fuzz lint sbom docs demo benchmark clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# An environment that the caller names is used as it is.
ifeq ($(PYTHON),.venv/bin/python)
setup: $(STAMP)
else
setup:
endif

$(STAMP):
	@BASE_PYTHON=$(BASE_PYTHON) bash tools/setup_env.sh .venv
	@rm -f .venv/.soma_det-* && touch $@

test: setup
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

fuzz: setup
	SOMA_DET_FUZZ_CASES=20000 $(PYTHON) -m pytest tests/test_fuzzing.py

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# Its tools have an environment of their own, so that they do not count themselves.
sbom: setup
	@[ -x output/sbom/env/bin/python ] || $(BASE_PYTHON) -m venv output/sbom/env
	output/sbom/env/bin/python -m pip install --quiet --require-hashes -r requirements/locked-sbom.txt
	output/sbom/env/bin/cyclonedx-py environment $(PYTHON) --pyproject pyproject.toml --output-reproducible \
	    --output-file output/sbom/soma_det.cdx.json
	output/sbom/env/bin/pip-licenses --python $(PYTHON) --with-system --format markdown --output-file output/sbom/licenses.md

docs: setup
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements/locked-docs.txt
	$(PYTHON) -m mkdocs build --strict

# Each step goes on where an interrupted one stopped.
# Nothing else should run beside it: OpenMP's threads may wait busily then, which makes a step a fifth faster.
demo: export OMP_WAIT_POLICY ?= active
demo: setup
	$(PYTHON) projects/SynthDrive/make_synthdrive.py --output datasets/synthdrive --train 600 --test 60
	$(PYTHON) tools/train_net.py --config-file configs/demo.yaml --resume
	$(PYTHON) tools/visualize.py --config-file configs/demo.yaml --weights output/demo/model_final.pth \
	    --contact-sheet --count 3 --output output/demo
	@echo 'Look at output/demo: results.md, results.png, contact_sheet.png'

benchmark: setup
	$(BENCHMARK) train --vit ti --pixels 256 --rounds 30 --output output/benchmark/train_ti.json
	$(BENCHMARK) train --output output/benchmark/train_s.json
	$(BENCHMARK) train --detector --vit ti --pixels 256 --rounds 9 --output output/benchmark/train_detector.json
	$(BENCHMARK) infer
	$(BENCHMARK) init
	$(BENCHMARK) data
	$(BENCHMARK) eval

clean:
	rm -rf output/demo output/benchmark output/sbom datasets/synthdrive build site *.egg-info
