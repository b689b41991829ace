# make demo: the main job, end to end.   make test: the tests.   Both set everything up themselves.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin

.PHONY: demo test check install clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("toastc needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python has no venv module here; on Debian: apt install python3-venv"; exit 1; }
	$(RUN)/pip install --quiet --upgrade pip
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,timm,gs,test]'
	@touch $@

demo: install
	$(RUN)/python tools/demo.py --out build/demo

check: install
	$(RUN)/ruff check .
	$(RUN)/mypy

test: check
	$(RUN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) build
