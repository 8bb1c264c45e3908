PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROJECT ?= examples/hello-project
CMD ?=
PARALLEL ?= 3
export CMD

.DEFAULT_GOAL := help

$(STAMP): pyproject.toml
	@echo "==> creating $(VENV) and installing (once, about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Hostler needs Python 3.11 or newer.")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,check]'
	@touch $@

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP)  ## Create .venv and install Hostler with its embedded servers and checks

.PHONY: demo
demo: $(STAMP)  ## Run the main job on the embedded stack (PROJECT=path CMD='…' for your own)
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/demo.py "$(PROJECT)" $(if $(CMD),--command "$$CMD")

.PHONY: test
test: $(STAMP)  ## Run every test, those that hurt processes one after the other beside all others (PARALLEL=3)
	@$(BIN)/python -m compileall -q -j 0 api cli integrations scheduler storage workers settings.py # once, not at each start
	@$(BIN)/python -m pytest -n $(PARALLEL) --dist loadgroup $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(STAMP)  ## Inject every fault of the catalogue (ONLY=F03,F17 SEEDS=5 to choose)
	@$(BIN)/python -m pytest -q -m "" --only "$(or $(ONLY),F)" --seeds $(or $(SEEDS),1)

.PHONY: attack
attack: $(STAMP)  ## Try every attack of the catalogue (ONLY=A01,A02 to choose)
	@$(BIN)/python -m pytest -q -m "" --only "$(or $(ONLY),A)" tests/security

.PHONY: test-fleet
test-fleet: $(STAMP)  ## Kill each part of a fleet behind nginx and HAProxy, its workers in network namespaces (needs root)
	@$(BIN)/python -m pytest -q -m "" -rP tests/fleet

.PHONY: soak
soak: $(STAMP)  ## Kill a random component every 20 s under 20 jobs/s (MINUTES=20)
	@$(BIN)/python -m pytest -q -m "" --only F61 --soak-minutes $(or $(MINUTES),20) tests/chaos

.PHONY: types
types: $(STAMP)
	@$(BIN)/mypy

.PHONY: style
style: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@PYTHONPATH=. $(BIN)/lint-imports

.PHONY: generated
generated: $(STAMP)
	@$(BIN)/python -m api.openapi --check
	@$(BIN)/python -m cli.reference --check

.PHONY: lint
lint: style types  ## Check format, style, types and layers

.PHONY: check
check: $(STAMP)  ## Everything that must hold before a commit: lint, generated docs, tests
	@$(MAKE) --no-print-directory --jobs 2 types style generated
	@$(MAKE) --no-print-directory test

.PHONY: docs
docs: $(STAMP)  ## Write docs/openapi.json, docs/routes.md, docs/cli-reference.md and the man page from the code
	@$(BIN)/python -m api.openapi
	@$(BIN)/python -m cli.reference

.PHONY: docs-site
docs-site: $(STAMP)  ## Build the documentation as a site with search, in build/site
	@$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean
	@echo "build/site/index.html"

.PHONY: lock
lock: $(STAMP)  ## Write requirements.txt anew from pyproject.toml (UPGRADE=1 takes newer releases)
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version $$(cat .python-version) --generate-hashes \
	  --quiet --custom-compile-command "make lock" --output-file requirements.txt $(if $(UPGRADE),--upgrade)

.PHONY: dist
dist: $(STAMP)  ## Build wheel and sdist into dist/ (their version is the newest tag's)
	@$(BIN)/uv build --quiet --out-dir dist

.PHONY: sbom
sbom: $(STAMP)  ## Write dist/hostler.cdx.json: what Hostler consists of, with hashes (CycloneDX)
	@mkdir -p dist
	@$(BIN)/python -W ignore -m cyclonedx_py requirements requirements.txt --pyproject pyproject.toml \
	  --mc-type application --output-reproducible --of JSON -o dist/hostler.cdx.json

.PHONY: release-check
release-check: $(STAMP)  ## See that the tree is the release that a tag will name (VERSION=0.2.0)
	@$(BIN)/python -m pytest -q -p no:randomly tests/deploy/test_release.py --release "$(VERSION)"

.PHONY: golden
golden: $(STAMP)  ## Write anew what the chart renders (tests/helm/golden; look at the diff)
	@$(BIN)/python tests/helm/golden.py

.PHONY: vendor
vendor:  ## Fetch the page's modules anew from npm (api/cuby/vendored, api/page/vendor; commit what changes)
	@cd api/cuby/vendored && npm install --no-audit --no-fund --silent && npm run --silent build
	@cd api/page/vendor && npm install --no-audit --no-fund --silent && npm run --silent build
	@$(PYTHON) examples/pack_example.py

.PHONY: screenshots
screenshots: $(STAMP)  ## Take docs/pictures anew, of a Hostler filled by demo-data (needs Chromium)
	@$(BIN)/python docs/pictures/take.py

.PHONY: fix
fix: $(STAMP)  ## Format, and mend what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: load
load: $(STAMP)  ## Put every load target on a whole Hostler (ONLY=L03,L07 LONG=1)
	@$(BIN)/python -m bench.targets $(if $(ONLY),--only "$(ONLY)") $(if $(LONG),--long)

.PHONY: simulate
simulate: $(STAMP)  ## Reckon fleets larger than this machine from what a job was measured to cost (bench/SIMULATED.md)
	@$(BIN)/python -m bench.simulate

.PHONY: bench
bench: $(STAMP)  ## Measure every figure beside its anchors (ONLY=P3,P11 QUICK=1)
	@$(BIN)/python -m bench $(if $(ONLY),--only "$(ONLY)") $(if $(QUICK),--quick)
