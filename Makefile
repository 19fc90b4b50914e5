# What people do daily. `make demo` and `make test` work on a machine with only Python 3.11 and make: they make .venv
# and install into it first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint format docs test-faults test-mutants bench clean

install: .venv/installed

# One pip command with the constraints file: a bare range could bring a CUDA build of several GB.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site in site/, of local parts only; a broken link or reference fails. While writing,
# `.venv/bin/mkdocs serve` shows it at once.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What a bad day does, in full: kills, full disks, damaged, wrong and harmful files, explosions. Some 9 minutes; writes
# results/faults.json. `make test` runs a short form.
test-faults: install
	FAULTS=full $(BIN)/python -m pytest --capture=sys $(wildcard tests/test_faults_*.py)

# Changes the maths one token at a time and runs the tests against each change; lists what no test noticed.
test-mutants: install
	OMP_NUM_THREADS=1 $(BIN)/mutmut run > mutants.log
	$(BIN)/mutmut results

# Contenders side by side; writes results/benchmarks.json and the plot. Leave the machine alone meanwhile.
# DATA=DIR names the folder with binarized MNIST's files, for the time of an epoch.
bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/bench.py $(if $(DATA),--data-dir $(DATA))

clean:
	rm -rf .venv site mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
