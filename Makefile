VENV := .venv
BIN := $(VENV)/bin
# Which runs `make simulate` makes.
SEEDS := 0:10000
# How long `make soak` goes on.
HOURS := 1
# test,docker: with pytest-celery, without which the tests in containers are skipped.
EXTRAS := test
# Most tests wait most of the time: for a session to end, a beat to start, a page to load. By steal
# nobody is left with a long file while the others have nothing to do.
SIDE_BY_SIDE := -n 6 --dist worksteal
# The tests start a thousand processes, which would each compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo demo-django unit test pytest test-oldest test-on docker simulate chaos soak contenders bench kills zones licences lint clean

help:
	@echo "make demo        a failover to watch, about 70 seconds, on servers that it starts itself"
	@echo "make demo-django the same of a Django project, about 40 seconds; STAY=1 to look at its admin"
	@echo "make unit        the tests that need no server, about 20 seconds: at each save"
	@echo "make test        lint, types, and all tests"
	@echo "make test-oldest all tests, with the oldest supported Celery and kazoo"
	@echo "make test-on     all tests on another Debian: RELEASE=trixie; WITH='celery==5.6.*' ARGS=tests/unit"
	@echo "make docker      the tests in containers, about 2 minutes; needs a Docker engine"
	@echo "make simulate    10,000 simulated runs, about 30 minutes; SEEDS=first:end for others"
	@echo "make chaos       five minutes of random faults on real processes; SEED=n for the same again"
	@echo "make soak        the same for HOURS=n"
	@echo "make kills       200 kills, 20 pauses, 20 outages, 1,000 starts; 260 kills with other schedulers; an hour"
	@echo "make contenders  the same faults for this and for other schedulers: a table"
	@echo "make bench       how fast this and others are: a table, 24 minutes; BENCH=--quick for less"
	@echo "make zones       cron against brute force, in all time zones, from 1990 to 2037; about an hour"
	@echo "make licences    docs/licences.md: what each extra brings"
	@echo "make docs        the documentation site, into build/site; about half a minute"
	@echo "make wheel       the wheel, built, installed elsewhere and tried"
	@echo "make release     dist/, if all is there that RELEASING.md asks for"
	@echo "make clean       remove what the others made"

demo:
	@.ci/setup $(VENV) demo
	@$(BIN)/python -m example_project.demo

demo-django:
	@.ci/setup $(VENV) django
	@$(BIN)/python -m example_project.django_demo $(if $(STAY),--stay)

unit:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/pytest -q tests/unit

test: lint pytest

# Without a look at whether all is set up, which is lint's.
pytest:
	$(BIN)/pytest $(SIDE_BY_SIDE)

test-oldest:
	@.ci/setup $(VENV)-oldest test celery==5.5.3 kazoo==2.10.0
	$(VENV)-oldest/bin/pytest $(SIDE_BY_SIDE)

# In a chroot, as root. With REDIS=valkey that is the server; WITH: further requirements, for pip.
test-on: ARGS := $(SIDE_BY_SIDE) tests/unit tests/contract tests/integration tests/acceptance
test-on:
	@$(if $(REDIS),REDIS=$(REDIS)) .ci/test-on $(RELEASE) $(WITH) -- $(ARGS)

docker: EXTRAS := test,docker
docker:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/pytest tests/docker

simulate:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.simulation $(SEEDS)

chaos:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.chaos --minutes 5 $(if $(SEED),--seed $(SEED))

soak:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.chaos --minutes $$(python3 -c 'print(60 * $(HOURS))') \
		$(if $(SEED),--seed $(SEED))

# What CONTENDERS in tests/chaos/contenders.py names, each with the same seed.
contenders: SEED := 1
contenders: MINUTES := 5
contenders: WHO := ours redbeat multibeat leased
contenders:
	@.ci/setup $(VENV)-contenders redis celery-redbeat==2.4.2 \
		celery-multibeat-scheduler==0.1.0 celery-leased-beat==0.1.0a1
	@folder=$$(mktemp -d -t contenders-XXXXXX); \
	for name in $(foreach who,$(WHO),$(who) $(who)-defaults); do \
		$(VENV)-contenders/bin/python -m tests.chaos --contender $$name --common \
			--seed $(SEED) --minutes $(MINUTES) --folder $$folder/$$name; \
	done; \
	$(VENV)-contenders/bin/python -m tests.chaos.times $$folder/*/history.jsonl

# With BENCH, such as --quick, elsewhere than where the whole of it is kept.
bench: OUTPUT := $(if $(BENCH),$(shell mktemp -d -t bench-XXXXXX),benchmarks/results)
bench:
	@.ci/setup $(VENV)-bench bench
	$(VENV)-bench/bin/python -m benchmarks.compare all $(BENCH) --output $(OUTPUT)

kills:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.chaos.kills --times 200
	$(BIN)/python -m tests.chaos.kills --times 20 --pause
	$(BIN)/python -m tests.chaos.kills --times 20 --outage
	$(BIN)/python -m tests.chaos.kills --times 1000 --starts
	$(BIN)/python -m tests.chaos.database_kills --times 100
	$(BIN)/python -m tests.chaos.database_kills --times 100 --store mariadb
	$(BIN)/python -m tests.chaos.database_kills --times 30 --store redbeat
	$(BIN)/python -m tests.chaos.database_kills --times 30 --store sqlalchemy
	$(BIN)/python -m tests.chaos.overlap --minutes 10
	$(BIN)/python -m tests.chaos.overlap --minutes 10 --pause

zones:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.zones

licences:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.licences

lint:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs wheel release
docs:
	@.ci/setup $(VENV)-docs docs
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict
	$(VENV)-docs/bin/python -m website.check build/site
	@echo "To read it: python3 -m http.server --bind 127.0.0.1 --directory build/site"

# Built of a copy, installed into an environment of its own, and tried there.
wheel:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/pytest -q tests/acceptance/test_wheel.py

release:
	@.ci/setup $(VENV) $(EXTRAS)
	@.ci/release $(BIN)/python

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-contenders $(VENV)-bench $(VENV)-docs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
