# make setup       the environment alone
# make demo        generate data, train, evaluate in every weather, draw
# make test        the test suite
# make benchmark   the CPU rows of projects/Benchmarks/README.md
# make clean       remove what make demo and make benchmark have written
# All make the environment first, in .venv, unless PYTHON names one that is ready: make test PYTHON=python3

PYTHON ?= .venv/bin/python
BASE_PYTHON ?= python3
SHELL := /bin/bash
STAMP := .venv/.soma_det-$(shell cat requirements/*.txt setup.py pyproject.toml tools/setup_env.sh | cksum | cut -d' ' -f1)

.PHONY: help setup test demo benchmark clean

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
	$(PYTHON) -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

# Each step goes on where an interrupted one stopped.
demo: setup
	$(PYTHON) projects/SynthDrive/make_synthdrive.py --output datasets/synthdrive --train 600 --test 60
	$(PYTHON) tools/train_net.py --config-file configs/demo.yaml --resume
	$(PYTHON) tools/visualize.py --config-file configs/demo.yaml --weights output/demo/model_final.pth \
	    --contact-sheet --count 3 --output output/demo
	@echo 'Look at output/demo: results.md, results.png, contact_sheet.png'

benchmark: setup
	$(PYTHON) projects/Benchmarks/benchmark.py train --vit ti --pixels 256 --rounds 30 --output output/benchmark/train_ti.json
	$(PYTHON) projects/Benchmarks/benchmark.py train --output output/benchmark/train_s.json
	$(PYTHON) projects/Benchmarks/benchmark.py train --detector --vit ti --pixels 256 --rounds 9 --output output/benchmark/train_detector.json
	$(PYTHON) projects/Benchmarks/benchmark.py infer
	$(PYTHON) projects/Benchmarks/benchmark.py init
	$(PYTHON) projects/Benchmarks/benchmark.py data
	$(PYTHON) projects/Benchmarks/benchmark.py eval

clean:
	rm -rf output/demo output/benchmark datasets/synthdrive build *.egg-info
