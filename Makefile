# Every target sets up what it needs by itself. No account, no Docker; root or not.
.DEFAULT_GOAL := help
.PHONY: help install demo up down clean test test-servers test-pooler check lint types imports docs bench bench-webhooks closings bench-explain crash kill-points races news months mutation lock

RUN := PYTHONPATH=include:plugins .venv/bin/python
# What `make demo` bills; USAGE=file.csv[.gz] bills that file instead.
USAGE ?=
HOURS ?= 24
# Of `make demo` 40, of `make months` 50.
TENANTS ?=
REPEATS ?= 5
# Rows of the six months in which `make bench-explain` looks.
ROWS ?= 2000000
HISTORIES ?= 200
MONTHS ?= 6
SEED ?= 1
SUBJECT ?= product
# Pairs of places at which a run and the one that heals it are killed; empty is all of them.
PAIRS ?=
SCHEDULES ?= 500
# Which safeguards `make mutation` disables; empty is all of them.
ONLY ?=
# So many of the safeguards, drawn by the seed; empty is all of them.
SAMPLE ?=
# How many histories at once; 0 is one a core.
PROCESSES ?= 0

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.venv/installed: requirements-dev.txt requirements-uv.txt scripts/install
	@./scripts/install

install: .venv/installed ## Make the virtual environment in .venv

demo: .venv/installed ## Bill 24 hours of 40 tenants, or USAGE=file.csv[.gz], and print the statement
	@$(RUN) -m sandbox demo $(if $(USAGE),--usage "$(USAGE)") --hours $(HOURS) --tenants $(or $(TENANTS),40)

up: .venv/installed ## Start Airflow with the sandbox, usage arriving; prints the URL
	@$(RUN) -m sandbox up

down: ## Stop what `make up` started
	@if [ -x .venv/bin/python ]; then $(RUN) -m sandbox down; fi

clean: down ## Remove everything the sandbox keeps
	@rm -rf .sandbox
	@echo "removed .sandbox"

test: .venv/installed ## Run the tests
	@$(RUN) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow"

test-servers: .venv/installed ## Run the tests that start Airflow's servers and a browser
	@$(RUN) -m pytest -n 2 --dist loadgroup -m slow

test-pooler: .venv/installed ## Run the tests of the billing database through pgbouncer, in transaction mode
	@BILLING_TEST_POOLER=1 $(RUN) -m pytest -n 2 --dist loadgroup tests/pooler tests/integration $(wildcard tests/acceptance/test_report*.py)

check: lint types imports docs test test-servers ## Everything that must be green: lint, types, imports, docs, all tests

lint: .venv/installed
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: .venv/installed
	@.venv/bin/mypy

imports: .venv/installed
	@PYTHONPATH=include:plugins .venv/bin/lint-imports --no-cache

docs: .venv/installed ## Write docs/dags.md again; in CI, fail where it was out of date
	@$(RUN) scripts/dag_catalogue.py $(if $(CI),--check)

bench: .venv/installed ## Ratios of speed, each within one run
	@$(RUN) -m benchmarks --repeats $(REPEATS)

bench-webhooks: .venv/installed ## Webhooks a second, none lost, and how long they take
	@$(RUN) -m benchmarks.webhooks

bench-explain: .venv/installed ## From invoice lines to rows and back in a large table: ROWS=n in six months
	@$(RUN) -m benchmarks.explaining --rows $(ROWS)

crash: RUN := PYTHONPATH=include:plugins:tests:. .venv/bin/python
crash: .venv/installed ## Random histories: HISTORIES=n SEED=s
	@$(RUN) -m crash --histories $(HISTORIES) --seed $(SEED) --subject $(SUBJECT) --processes $(PROCESSES)

closings: RUN := PYTHONPATH=include:plugins:tests:. .venv/bin/python
closings: .venv/installed ## Random histories around the ends of billing periods: HISTORIES=n SEED=s
	@$(RUN) -m closings --histories $(HISTORIES) --seed $(SEED) --processes $(PROCESSES)

kill-points races months mutation: RUN := PYTHONPATH=include:plugins:tests:. .venv/bin/python
kill-points: .venv/installed ## Kill a run everywhere, and the one that heals it: PAIRS=n of each scenario, or all
	@$(RUN) -m crash.kill_points $(if $(PAIRS),--pairs $(PAIRS))

races: .venv/installed ## Runs at once on one hour, in random schedules: SCHEDULES=n SEED=s
	@$(RUN) -m crash.races --schedules $(SCHEDULES) --seed $(SEED)

months: .venv/installed ## Months of billing on a virtual clock, planted errors found: MONTHS=n TENANTS=n SEED=s
	@$(RUN) -m months --months $(MONTHS) --tenants $(or $(TENANTS),50) --seed $(SEED)

news: .venv/installed ## Stripe's news in random orders, repeated and lost: ORDERS=n
	@NEWS_ORDERS=$(or $(ORDERS),720) $(RUN) -m pytest -n 0 tests/integration/subscriptions/test_news.py

mutation: .venv/installed ## Disable each safeguard in turn, which the tests must catch: ONLY=text of its name, SAMPLE=n SEED=s
	@$(RUN) -m mutation $(if $(ONLY),--only "$(ONLY)") $(if $(SAMPLE),--sample $(SAMPLE) --seed $(SEED))

lock: .venv/installed ## Resolve the locks anew from pyproject.toml
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" pyproject.toml -o requirements.txt
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" pyproject.toml --extra dev -o requirements-dev.txt
