# make demo   the demo, in a real ComfyUI: pictures in demo_output/ (COMFYUI_PATH=... takes your own ComfyUI)
# make test   the whole test suite             make host   only set up what both run on (outside this folder)
# make lint   ruff and pyright                 make clean  remove demo_output/ and caches, not the set-up
# make oldest what depends on ComfyUI and the packages of requirements.txt, with older and the oldest allowed versions
# make pythons ARGS="3.10 3.12"    installed and tested with other Pythons, torch and numpy; GBs each (tools/host/pythons.py)
# make demo-models DATA=FOLDER   train all demo models; hours on a GPU, resumable (tools/demo_models.py)
# make demo-domain               a prior of another domain, trained and tried; one GPU, resumable (tools/demo_domain.py)
# make results DATA=FOLDER       both methods measured on every class: docs/results.md; resumable (tools/results.py)
# make page ARGS="convert api.json ui.json"    drive the web page (tools/page.py)

PYTHON ?= python3
SETUP  := $(PYTHON) tools/host/setup.py
HOST_PYTHON = "$$($(SETUP) --where)/venv/bin/python"

# Threads of a busy machine must not spin while they wait for each other: that made a UNet call 30 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

# The whole suite in two processes of one thread each, which take turns at its files; ComfyUI's first, the longest.
ALL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-models demo-domain results test host lint oldest pythons page clean

demo:
	@test -n "$$COMFYUI_PATH" || $(SETUP)
	@$(PYTHON) tools/launch.py tools.demo $(ARGS)

demo-models:
	@test -n "$(DATA)" || { echo 'name the folder that holds faces/ and art/: make demo-models DATA=FOLDER'; exit 2; }
	@$(PYTHON) tools/launch.py tools.demo_models --data "$(DATA)" $(if $(OUT),--out "$(OUT)") $(ARGS)

demo-domain:
	@$(PYTHON) tools/launch.py tools.demo_domain $(if $(OUT),--out "$(OUT)") $(ARGS)

results:
	@test -n "$(DATA)" || { echo 'name the folder that holds inputs/, inputs_rare/ and art/: make results DATA=FOLDER'; exit 2; }
	@$(PYTHON) tools/launch.py tools.results --data "$(DATA)" $(if $(OUT),--out "$(OUT)") $(ARGS)

test:
	@$(SETUP) --with-page --with-older --with-ray --with-registry
	@$(if $(ARGS),,OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}) $(HOST_PYTHON) -m pytest $(or $(ARGS),$(ALL))

host:
	@$(SETUP) --with-page --with-older --with-ray --with-registry

lint:
	@$(SETUP)
	@$(HOST_PYTHON) -m ruff check .
	@$(HOST_PYTHON) -m pyright --pythonpath $(HOST_PYTHON)

oldest:
	@$(SETUP) --with-older
	@PYTHONPATH="$$($(SETUP) --where-older)/packages" $(HOST_PYTHON) -m pytest tests/test_clip.py \
	    tests/test_perceptual.py tests/test_metrics.py tests/test_foreign_networks.py tests/test_networks.py \
	    tests/test_losses.py tests/test_nodes_mmfs.py tests/server/test_older_host.py $(ARGS)

pythons:
	@$(SETUP)
	@$(PYTHON) tools/host/pythons.py $(ARGS)

page:
	@$(SETUP) --with-page
	@$(PYTHON) tools/launch.py tools.page $(ARGS)

clean:
	rm -rf demo_output build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
