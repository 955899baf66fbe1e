# Every target sets up .venv first; a second call finds it and goes straight to work.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
CPU := https://download.pytorch.org/whl/cpu
TESTS := .venv/.tests
# the oldest versions that requirements.txt allows: the detector and its techniques, the data, a notebook
LOWEST := models data train augment front metrics export_measure prune distill quantize lowrank adapters \
  explain backbones data_prep layouts lists scores images audit cache datasets demo download transform

.PHONY: study test test-lowest lab explorer book pages figures bench address clean setup chromium

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv .venv
	@index=; if [ "$$(uname)" = Linux ] && ! ls /dev/nvidia[0-9]* >/dev/null 2>&1 && \
	  $(PY) -c 'from urllib.request import urlopen; urlopen("$(CPU)/torch/", timeout=5)' 2>/dev/null; \
	  then index='--extra-index-url $(CPU)'; echo "no NVIDIA card here: PyTorch's CPU build"; fi; \
	$(PY) -m pip install --disable-pip-version-check --quiet $$index -r requirements.txt
	@touch $@

$(TESTS): $(READY)
	$(PY) -m pip install --disable-pip-version-check --quiet -e '.[test]'
	@touch $@

study: $(READY)   ## offline demo data, the demo grid, outputs/report.html
	$(PY) -m dflib study --preset demo $(ARGS)

test: $(TESTS) chromium   ## all tests, every notebook among them; two files at a time
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-lowest: $(TESTS) ## the same with the oldest versions that requirements.txt allows, in .venv-lowest
	.venv/bin/uv venv --quiet --clear --python $(PYTHON) .venv-lowest
	.venv/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -r requirements.txt -e '.[test]'
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) \
	  $(LOWEST:%=tests/test_%.py)
	export DFLIB_DATA=$$(mktemp -d) DFLIB_OUTPUTS=$$(mktemp -d); \
	  .venv-lowest/bin/python -m dflib study --preset tiny --methods BL,CQ && rm -r $$DFLIB_DATA $$DFLIB_OUTPUTS

chromium:         # the browser of the browser tests: installed where that needs no password
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -yqq chromium >/dev/null; } || \
	  echo "Chromium is missing: the browser tests will say so (Debian, Ubuntu: apt-get install chromium)"

lab: $(READY)     ## JupyterLab on localhost, with a token; no other server is asked for news (notebooks/lab)
	$(PY) -m jupyterlab --ip=127.0.0.1 --notebook-dir=. --LabApp.app_settings_dir=notebooks/lab $(ARGS) notebooks/00_start_here.ipynb

explorer: $(READY) ## the explorer as a page on localhost, with a token and without code (notebooks/voila.json)
	JUPYTER_PATH=notebooks$${JUPYTER_PATH:+:$$JUPYTER_PATH} $(PY) -m voila notebooks/16_explorer.ipynb --Voila.config_file_paths=notebooks $(ARGS)

BOOK := outputs/book
book: $(TESTS)    ## executes the notebooks on the demo; a site with navigation and search in outputs/book/_build/html
	rm -rf $(BOOK) && mkdir -p $(BOOK)/notebooks
	for name in $(basename $(notdir $(wildcard notebooks/[0-9]*.ipynb))); do \
	  $(PY) -m papermill --kernel python3 --cwd notebooks notebooks/$$name.ipynb $(BOOK)/notebooks/$$name.ipynb || exit 1; done
	$(MAKE) pages

pages:            # the site of the notebooks in $(BOOK)/notebooks, as they are
	cp -r README.md LICENSE notebooks/book/. $(BOOK) && cp -r notebooks/grids notebooks/badges $(BOOK)/notebooks
	mkdir -p $(BOOK)/outputs && cp -r outputs/README.md outputs/gallery $(BOOK)/outputs
	$(dir $(PY))uv tool run --quiet --python $(PY) --from 'jupyter-book>=1.0.4,<2' jupyter-book build --quiet -W --keep-going $(BOOK)

figures: $(TESTS) ## small copies of the key figures of the notebooks that make book executed, for the gallery
	$(PY) notebooks/figures.py $(BOOK)/notebooks outputs/gallery/notebooks

bench: $(TESTS)   ## the figures of the README's performance table, as ratios in one run
	$(PY) -m tests.bench $(ARGS)

address:          ## URL=https://github.com/you/name: the published repository, into the badges and the README
	@$(PYTHON) notebooks/badges.py $(URL)

clean:            ## removes .venv, the demo data and all outputs but the tracked ones
	rm -rf .venv .venv-lowest .pytest_cache .ruff_cache *.egg-info data/demo data/demo-source
	git clean -fdqx outputs
