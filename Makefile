# make install: the tested packages, into .venv
# make demo: the whole way from rendered scenes to predicted normals, in minutes, with no GPU and no downloaded model
#   (BASE=flow: on a small flow transformer, mini-flow, instead of mini-sd)
# make demo-all: the same for all four intrinsics, in a single step and by diffusion
# make test: the tests, but for the slow ones
# make test-slow: the slow ones: kills, launchers, compiled training, studies, notebook, recipe, the app in a browser
# make mutants: 60 small faults in the code, one at a time, and the test that notices each (NUMBER=, SEED=, PATHS=)
# make fuzz: 60 seconds of coverage-guided fuzzing for each reader of strangers' files (SECONDS=, TARGETS=; pip install
#   atheris)
# make versions: loading, training and inference on the oldest and newest versions admitted, Python 3.11 to 3.13
# make interop: LoRA files through diffusers of 2023 to today, writes the table in interop/README.md; full-size bases
#   in one file
# make comfyui COMFYUI_DIR=...: the workflows and nodes of integrations/comfyui in the real ComfyUI
# make figures: the images of docs/ again (BPY_PYTHON=... for Blender's)
# make figures-check: the commands behind the figures of README and docs again, and whether the figures are still true
# make blender BPY_PYTHON=...: export of scenes, add-on, GLB and EXR files, in a real bpy
# make bench-gpu: speed and memory on this machine's GPU, in under ten minutes; without one, what it would run
PYTHON ?= python3
PY := .venv/bin/python

install: .venv/installed

.PHONY: install demo demo-all test test-slow mutants fuzz versions check fix interop comfyui blender figures figures-check bench-gpu clean

demo: .venv/installed
	$(PY) -m miniworld.demo --out demo $(if $(BASE),--base miniworld/mini-$(BASE))

demo-all: .venv/installed
	for method in single augunet; do for task in normal depth albedo shading; do \
	  $(PY) -m miniworld.demo --out demo --all --task $$task --method $$method || exit 1; done; done
	$(PY) -m miniworld.demo --out demo --page

test: .venv/installed
	$(PY) -m pytest -n auto --dist worksteal -m "not slow and not gpu"

test-slow: .venv/installed
	$(PY) -m pytest -n auto --dist worksteal -m "slow and not gpu"

mutants: .venv/installed
	$(PY) tests/mutants.py $(PATHS) $(if $(NUMBER),--number $(NUMBER)) $(if $(SEED),--seed $(SEED))

fuzz: .venv/installed
	$(PY) tests/fuzz.py $(TARGETS) $(if $(SECONDS),--seconds $(SECONDS))

versions:
	$(PYTHON) tests/versions.py $(if $(PYTHONS),--python $(PYTHONS)) $(if $(VERSIONS),--versions $(VERSIONS))

check: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	PYTHONPATH=. .venv/bin/lint-imports

fix: .venv/installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

interop: .venv/installed
	$(PY) -m interop.run
	$(PY) -m interop.full_size

figures: .venv/installed
	$(PY) -m studies.figures

figures-check: .venv/installed
	$(PY) -m studies.figures_check

comfyui: .venv/installed
	$(PY) -m integrations.comfyui.check $(if $(COMFYUI_DIR),--comfyui_dir $(COMFYUI_DIR)) \
	  $(if $(COMFYUI_PYTHON),--python $(COMFYUI_PYTHON))

blender: .venv/installed
	@test -n "$(BPY_PYTHON)" || { echo 'error: make blender BPY_PYTHON=.bpy/bin/python, after' \
	  'python3.11 -m venv .bpy && .bpy/bin/pip install "bpy==4.2.*"'; exit 1; }
	BPY_PYTHON=$(abspath $(BPY_PYTHON)) $(PY) -m pytest tests/integrations/test_blender*.py

bench-gpu: .venv/installed
	$(PY) -m benchmarks.gpu

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "error: PYTHON=$(PYTHON): there is no such program; pass Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON=$(PYTHON) is older than Python 3.11; pass a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv .venv || \
	  { rm -rf .venv; echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into .venv ..."
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt torch
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -r requirements.txt -r requirements-dev.txt
	@touch $@

clean:
	rm -rf demo
