# make demo: the main job, end to end.   make test: the tests.   make coverage: which lines they reach.   make docs: the site.
# All set everything up themselves.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test coverage docs check install browser clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("toastc needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python has no venv module here; on Debian: apt install python3-venv"; exit 1; }
	$(RUN)/pip install --quiet --upgrade pip
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,timm,gs,test,docs]'
	@touch $@

demo: install
	$(RUN)/python tools/demo.py --out build/demo

docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

check: install
	$(RUN)/ruff check .
	$(RUN)/mypy

browser:
	@command -v chromedriver >/dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; } \
	|| { echo "the report's page is tested in Chromium; on Debian: apt install chromium chromium-driver"; exit 1; }

test: check browser
	$(PYTEST)

coverage: install browser
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf $(VENV) build
