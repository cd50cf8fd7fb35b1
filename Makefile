# make demo    the paper in miniature: raw pages -> corpus -> training -> benchmark table (CPU, minutes)
# make test    the test suite           make lint   ruff           make bench   ours against the peers (bench-NAME: one script)
# make faults  the fault bench, minutes (ARGS='--soak': hours)      make mutants  what the tests catch, ten minutes
# make fuzz    the fuzzers of every parser of strangers' files, half an hour
# make ablations    which part of the corpus is worth how much    make docs    API pages in build/docs
# make tour    docs/tour.md made anew   make exercise         lists the exercises (make exercise N=3: checks one)
# Each target makes .venv by itself when it is missing or older than pyproject.toml / constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# test files run side by side; JOBS=0: one after the other, in one process
JOBS ?= 2
SPEC := pyproject.toml constraints.txt
.PHONY: demo ablations docs test lint bench faults mutants fuzz tour exercise clean
.DELETE_ON_ERROR:

.venv/.core: $(SPEC)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmed needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/.test: .venv/.core
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@

demo: .venv/.core
	$(BIN)/python -m examples.demo $(DEMO)

ablations: .venv/.core
	$(BIN)/python -m examples.demo.ablations $(DEMO)

.venv/.docs: .venv/.test
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,docs]'
	@touch $@

docs: .venv/.docs
	$(BIN)/python docs/api_pages.py build/docs

test: .venv/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check mmed data_prep examples tests benchmarks docs exercises

.venv/.peers: .venv/.test
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,peers]'
	@touch $@

bench: .venv/.peers
	for script in benchmarks/*/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# one of them: make bench-train ARGS='--rows full-bf16'
bench-%: .venv/.peers
	$(BIN)/python benchmarks/*/bench_$*.py $(ARGS)

# small faults planted in the core, one at a time: how many do the tests catch? make mutants ARGS='--shard 1/2'
mutants: .venv/.test
	$(BIN)/python benchmarks/mutants/mutants.py --out build/mutants.jsonl $(ARGS)

# faults injected, trials, survived, time to recover: make faults ARGS='--area runs --soak'
faults: .venv/.test
	$(BIN)/python benchmarks/faults/faults.py $(ARGS)

# strangers' files made by mutation, a minute a parser: inputs, time, findings. make fuzz ARGS='--seconds 600 --only sentencepiece'
fuzz: .venv/.test
	$(BIN)/python benchmarks/fuzz/fuzz.py --out build/fuzz $(ARGS)

# docs/tour.md and its drawings from docs/tour; what the stages made on the way is left in build/tour
tour: .venv/.core
	$(BIN)/python docs/tour/make.py $(ARGS)

# your exercises/NN_name.py against the checks; SOLUTION=1: the reference solution; SEED=7: the same inputs again
exercise: .venv/.core
	@$(BIN)/python exercises/check.py $(N) $(if $(SOLUTION),--solution) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv build *.egg-info
