# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
# PYTHON picks the interpreter for the virtual environment (3.11 or newer); VENV says where it goes.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_ARGS ?=
APP_ARGS ?=
TEST_ARGS ?=
COVERAGE_MIN ?= 95
WORKERS ?= 2
BENCH_OUTPUT ?= runs/bench
READING_ARGS ?=
FLOOR := 5.18.0

# Files of tests are shared among WORKERS processes, of one thread each: most tests are small, and waiting for others.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile
test test-with: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help venv install demo app browser test test-with test-floor test-bystanders test-vllm fuzz audit lint format \
	typecheck bench bench-generate bench-gpu bench-reading docs docs-serve pre-commit build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A change of the dependencies or of a file that installation copies makes the stamp old; sources are used in place.
$(STAMP): pyproject.toml constraints.txt src/transformers_apt.pth src/transformers_apt.start
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; install one or say make PYTHON=/path/to/python."; exit 1; }
	@echo "Setting up $(VENV). torch is large, so the first time takes some minutes; pip shows how far it is:"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --editable '.[dev]' --constraint constraints.txt
	@touch $@

venv: $(STAMP) ## create .venv with the pinned versions and this checkout (editable)

install: venv ## the same as venv

demo: $(STAMP) ## run the demo on a real photo; more options: make demo DEMO_ARGS="--image FILE"
	$(BIN)/transformers-apt demo $(DEMO_ARGS)

app: $(STAMP) ## serve the web page on this machine; more options: make app APP_ARGS="--model FOLDER"
	$(BIN)/transformers-apt app $(APP_ARGS)

browser: ## install Chromium for the web page's tests, where it is missing and apt-get may be used
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; fi >/dev/null; \
	if test "$$(id -u)" = 0; then as_root="env"; else as_root="sudo -n env"; fi; \
	if command -v apt-get >/dev/null && $$as_root true 2>/dev/null && $$as_root apt-get update -qq && \
		$$as_root DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	then echo "installed: chromium"; \
	else echo "No Chromium: the web page's browser tests will be skipped. To run them, install it (Debian: apt-get install chromium)."; fi

test: $(STAMP) browser ## run the tests with coverage; some of them: make test TEST_ARGS="-k hook" COVERAGE_MIN=0
	$(BIN)/python $(PYTEST) --cov --cov-report=term --cov-fail-under=$(COVERAGE_MIN) $(TEST_ARGS)

# An environment that finds torch and the rest in the main one behind it.
define LAYER
	rm -rf $(@D)
	$(BIN)/python -m venv --without-pip $(@D)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main_environment.pth"
endef

# Programs that live in one environment with this package. Each has its own, over the main one, which adds what
# tests/bystanders/requirements names; nothing else, so that no program's range moves a pin.
BYSTANDERS := trl sentence-transformers llamafactory ms-swift lmms-eval qwen-vl-utils

$(VENV)-bystander-%/.installed: $(STAMP) tests/bystanders/requirements/%.txt
	$(LAYER)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r tests/bystanders/requirements/$*.txt || \
		{ echo "test-bystanders FAILED: $* cannot be installed, so it was not tested. It needs the package index."; exit 1; }
	@touch $@

test-bystanders: $(BYSTANDERS:%=$(VENV)-bystander-%/.installed) ## programs that are installed beside this one, with it and without: the same bits
	BYSTANDERS=$(abspath $(VENV))-bystander $(BIN)/python -m pytest tests/bystanders $(TEST_ARGS)

# vLLM brings a torch and a transformers of its own. What is installed is a build for CPUs that vLLM's makers have no
# part in: for these tests only. Where it cannot be had the target says so and succeeds, because nothing else needs it.
$(VENV)-vllm/.installed: pyproject.toml src/transformers_apt.pth src/transformers_apt.start \
		tests/serving/requirements.txt tests/serving/repair_environment.py
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/serving/requirements.txt
	$(@D)/bin/python tests/serving/repair_environment.py
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
	@touch $@

test-vllm: ## the vLLM plugin and the batch job, in an environment with a vLLM for CPUs; some minutes the first time
	@if $(MAKE) --no-print-directory $(VENV)-vllm/.installed; then \
		OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest tests/serving tests/examples $(TEST_ARGS); \
	else echo "test-vllm: NOTHING WAS TESTED. vLLM for CPUs cannot be installed here (see above), so the vLLM plugin" \
		"is untested on this machine. Everything else goes on."; fi

# What depends on the version of transformers, in an environment with that one and otherwise the pinned versions.
WITH = $(VENV)-$(TRANSFORMERS)
VERSION_TESTS := $(addprefix tests/transformers_apt/,engine/test_patch_engine.py engine/test_startup_finder.py \
	engine/test_startup_hook.py embedded models test_seed_snippets.py)
VERSION_TESTS_LEAVE_OUT := $(addprefix tests/transformers_apt/models/,test_flops.py test_work.py)

$(VENV)-%/.installed: pyproject.toml constraints.txt src/transformers_apt.pth src/transformers_apt.start
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; install one or say make PYTHON=/path/to/python."; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	sed 's/^transformers==.*/transformers==$*/' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[test]' --constraint $(@D)/constraints.txt
	@touch $@

test-with: ## the tests of the patch with another transformers: make test-with TRANSFORMERS=5.20.0
	@test -n "$(TRANSFORMERS)" || { echo "Say which: make test-with TRANSFORMERS=5.20.0"; exit 1; }
	$(MAKE) $(WITH)/.installed
	$(WITH)/bin/python $(PYTEST) $(VERSION_TESTS) $(VERSION_TESTS_LEAVE_OUT:%=--ignore=%) $(TEST_ARGS)

test-floor: ## the same with the oldest supported transformers
	$(MAKE) test-with TRANSFORMERS=$(FLOOR)

fuzz: $(STAMP) ## many more generated cases than make test: some minutes
	$(BIN)/python -m pytest --hypothesis-profile=fuzz -m generated $(TEST_ARGS)

audit: ## look up every pinned version in a database of known vulnerabilities (needs the network)
	test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && \
		$(VENV)-audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit==2.10.1; }
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

lint: $(STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP) ## mypy
	$(BIN)/mypy

bench: $(STAMP) ## the speed benchmarks that a CPU can do in ten minutes, into BENCH_OUTPUT (runs/bench)
	$(BIN)/python -m benchmarks.startup --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.preprocessing --threads 1 --repeats 3 --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.throughput --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.vision_tower --depth 2 --sizes '1 MP' --repeats 3 --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.generate --images 512 --repeats 3 --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.retention --output $(BENCH_OUTPUT)

# What keeps least of a document without losing text, what a downscale to as many language tokens costs, and a budget.
bench-generate: $(STAMP) ## the time to the first token of a 1080p document in two 2B models on a CPU, into BENCH_OUTPUT/generate: half an hour
	$(BIN)/python -m benchmarks.generate --family qwen2_vl --family qwen3_vl --size 2b --dtype bfloat16 --kind document \
		--setting '{"patch_selection_method": "v1", "importance_method": "upsample_mse", "drop_tolerance": 2}' \
		--setting '{"patch_selection_method": "budget", "alpha": 0.3}' \
		--downscaled-like 'v1 upsample_mse drop_tolerance 2' --repeats 1 --output $(BENCH_OUTPUT)/generate

bench-gpu: $(STAMP) ## the tests and the speed benchmarks that need an NVIDIA GPU, into BENCH_OUTPUT/gpu: some ten minutes
	PYTHON=$(abspath $(BIN))/python benchmarks/gpu.sh $(BENCH_OUTPUT)/gpu

# The recogniser and what it needs, at the versions of constraints.txt, over the main environment.
READER := rapidocr-onnxruntime flatbuffers onnxruntime opencv-python-headless protobuf pyclipper shapely six

$(VENV)-reading/.installed: $(STAMP)
	$(LAYER)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(READER) --constraint constraints.txt
	@touch $@

bench-reading: $(VENV)-reading/.installed ## what two pretrained readers still read under each setting, into runs/reading
	$(VENV)-reading/bin/python -m benchmarks.reading $(READING_ARGS)

docs: $(STAMP) ## build the documentation into site/; a warning is an error
	$(BIN)/sphinx-build -c docs -W --keep-going --quiet . site
	@echo "written: site/index.html"

docs-serve: docs ## build the documentation and show it at http://localhost:8000
	$(BIN)/python -m http.server --directory site --bind 127.0.0.1 8000

pre-commit: $(STAMP) ## check before every git commit
	$(BIN)/pre-commit install

build: $(STAMP) ## wheel and source distribution into dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove builds, caches and reports (not .venv)
	rm -rf build dist htmlcov site .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
