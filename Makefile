# Two commands are enough: `make demo` and `make test`. Both set up everything they need below .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Some systems forbid it: then every command that a test starts compiles all it imports, which takes longer than most tests.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint run bench soak chaos stores lock wheels install uninstall systemd-test clean

demo: $(VENV)/demo
	$(BIN)/archiver demo

test: $(VENV)/dev
	@sh tests/need.sh
	$(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder -q

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

run: $(VENV)/demo
	$(BIN)/archiver run

bench: $(VENV)/dev
	@command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq nginx-light >/dev/null; }
	$(BIN)/python bench/run.py $(BENCH)

# Some ten minutes; SEED=N repeats a run.
chaos: $(VENV)/dev
	@sh tests/need.sh
	$(BIN)/python -m tests.chaos.run $(if $(SEED),--seed $(SEED)) $(CHAOS)

# Archiver against the servers people run, one after the other; ONLY=Nginx runs one. Some ten minutes.
stores: $(VENV)/dev
	@sh tests/need.sh
	@sh tests/matrix/need.sh
	$(BIN)/python -m tests.matrix.run

# Half an hour; a short look: make soak SOAK="--minutes 3"
soak: $(VENV)/dev
	$(BIN)/python bench/soak.py $(SOAK)

# As root, into /opt/archiver: docs/install.md. DESTDIR, PREFIX and PYTHON are passed on.
install:
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" PYTHON="$(PYTHON)" sh packaging/install.sh install

uninstall:
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" sh packaging/install.sh uninstall

# What `make install` needs on a host without internet access.
wheels: $(VENV)/demo
	$(BIN)/python -m pip download -q --disable-pip-version-check --require-hashes -d dist/wheels -r requirements.lock

# As root: boots a Debian of its own with systemd-nspawn and runs the service in it; five minutes.
systemd-test: $(VENV)/dev wheels
	$(BIN)/python tests/systemd/boot.py $(BOOT)

lock: $(VENV)/dev
	$(BIN)/pip install -q uv
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/lock.sh

clean:
	rm -rf $(VENV) .demo dist build

# The wheel is what runs, here as at a user's: built once, installed with the locked versions.
$(VENV)/demo: requirements.lock pyproject.toml $(shell find archiver sql config systemd -type f -not -name '*.pyc')
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@rm -rf $(VENV)/wheel
	@$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w $(VENV)/wheel .
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall $(VENV)/wheel/*.whl
	@touch $@

$(VENV)/dev: requirements-dev.lock $(VENV)/demo
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
