# Everything here works on a fresh machine with Python 3.11 or later and make; each target makes the
# virtual environment that it needs.  For example: make demo PYTHON=python3.12 PROMPT="昔々、" SEED=7

PYTHON ?= python3
PROMPT ?= 吾輩は猫である。
SEED ?= 1
PIP = -m pip install --quiet --disable-pip-version-check

# How many broken inputs `make fuzz` feeds to each reader of files.
FUZZ ?= 1000000

# Where the large test data lies, if it does; without it those tests are skipped and counted.
export REFIMPL_DATA

# Two editable installs at once would write the same files.
.NOTPARALLEL:

# The CUDA of the packages that `make test-gpu` installs: what the driver knows, as nvidia-smi says it.
CUDA ?= $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\(1[23]\).*/\1/p')

.PHONY: demo test test-gpu fuzz lint conformance conform check-long bench bench-model bench-gpu train goldens clean help

help:
	@echo "make demo         print Japanese text written by the model that ships inside the package"
	@echo "make test         the tests"
	@echo "make test-gpu     the tests that need a GPU, on the one that is here (CUDA=12 or 13: which CuPy)"
	@echo "make fuzz         feed each reader of files (tokenizers, settings, weights) a million broken ones"
	@echo "make lint         ruff and mypy"
	@echo "make conformance  compare with transformers, live (installs PyTorch and transformers)"
	@echo "make check-long   the same with a million random texts and 200 works for each tokenizer; a million draws; every GPU kernel, if nvcc is here; kill 1,000 saves"
	@echo "make bench        measure speed beside other implementations (installs transformers and tiktoken)"
	@echo "make bench-model  measure how fast a model reads and writes, beside transformers (installs PyTorch)"
	@echo "make bench-gpu    measure a GPU: speed beside transformers, numbers beside float64 (installs PyTorch and CuPy)"
	@echo "make conform      run this program and transformers over the suite of golden cases"
	@echo "make train        train the embedded model again"
	@echo "make goldens      make the golden vectors again, from transformers"
	@echo "make clean        remove what these targets made"

demo: .venv-demo/ready
	.venv-demo/bin/refimpl generate "$(PROMPT)" --seed $(SEED)

test: .venv-test/ready
	.venv-test/bin/python -m pytest -n auto tests --ignore=tests/conformance

fuzz: .venv-test/ready
	REFIMPL_FUZZ=$(FUZZ) .venv-test/bin/python -m pytest -n auto tests/fuzz/test_readers.py

test-gpu: .venv-gpu/ready
	.venv-gpu/bin/python -m pytest -m gpu tests --ignore=tests/conformance

# mypy sees the three code folders under the one name that they are installed as.
lint: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	rm -rf build/types && mkdir -p build/types/refimpl
	ln -s "$(CURDIR)"/refimpl/* "$(CURDIR)/backends" "$(CURDIR)/tokenizer" build/types/refimpl/
	cd build/types && ../../.venv-test/bin/mypy --config-file ../../pyproject.toml -p refimpl

conformance: .venv-conformance/ready
	.venv-conformance/bin/python -m pytest -n auto tests/conformance

check-long: .venv-conformance/ready
	REFIMPL_STRINGS=1000000 REFIMPL_WORKS=200 REFIMPL_MODELS=800 .venv-conformance/bin/python -m pytest tests/conformance -k "many_random or works"
	REFIMPL_VARIANTS=all .venv-conformance/bin/python -m pytest -n auto tests/refimpl/test_variants.py
	REFIMPL_COMPILED=1 .venv-conformance/bin/python -m pytest tests/conformance/test_bench_peer_gpu.py
	REFIMPL_KERNELS=all .venv-conformance/bin/python -m pytest tests/backends/test_cupy_sources.py
	REFIMPL_PROCESSORS=all .venv-conformance/bin/python -m pytest tests/backends/test_rounded.py -k processors
	REFIMPL_DRAWS=1000000 .venv-conformance/bin/python -m pytest tests/refimpl/test_generation_seeds.py -k distribution
	REFIMPL_KILLS=1000 .venv-conformance/bin/python -m pytest tests/refimpl/checkpoints/test_saving_failures.py -k killed

# For example: make bench BENCH="--model gpt-neox-20b --json > record.json"
bench: .venv-bench/ready
	.venv-bench/bin/refimpl bench tokenizer $(BENCH)

# For example: make bench-model BENCH="--shape 2.7b --weight-dtype float16,int8,nf4"
bench-model: .venv-conformance/ready
	.venv-conformance/bin/refimpl bench model --vs transformers $(BENCH)

# For example: make bench-gpu OUT=record BENCH="--runs numbers,float16"
# With REFIMPL="python3 -m refimpl" nothing is installed: that Python has to have CuPy, and torch for the comparison.
OUT ?= build/gpu-record
REFIMPL ?= .venv-bench-gpu/bin/refimpl
bench-gpu: $(if $(filter .venv-%,$(REFIMPL)),.venv-bench-gpu/ready)
	$(REFIMPL) bench gpu --out $(OUT) $(BENCH)

conform: .venv-conformance/ready
	.venv-conformance/bin/refimpl conform run --backend numba --jobs 2
	.venv-conformance/bin/refimpl conform run --cmd ".venv-conformance/bin/python docs/conformance/adapters/transformers_engine.py" --xfail docs/conformance/adapters/transformers.xfail

train: .venv-conformance/ready
	.venv-conformance/bin/python golden/make/train_embedded.py $(TRAIN)

goldens: .venv-conformance/ready
	.venv-conformance/bin/python golden/make/make_all.py

.venv-demo/ready: EXTRA =
.venv-test/ready: EXTRA = [test]
.venv-conformance/ready: EXTRA = [test,conformance]
.venv-bench/ready: EXTRA = [bench]
.venv-bench-gpu/ready: EXTRA = [conformance,cuda$(or $(CUDA),12)]
.venv-gpu/ready: EXTRA = [test,cuda$(or $(CUDA),12)]

.venv-%/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("refimpl needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) --editable '.$(EXTRA)'
	@touch $@

clean:
	rm -rf .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
