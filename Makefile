VENV := .venv
BIN := $(VENV)/bin
SEEDS := 0:10000
# test,docker: with pytest-celery, without which the tests in containers are skipped.
EXTRAS := test

.PHONY: help demo test test-oldest docker simulate soak lint clean

help:
	@echo "make demo   a failover to watch, about 70 seconds, on servers that it starts itself"
	@echo "make test   lint, types, and all tests"
	@echo "make test-oldest   all tests, with the oldest supported Celery and kazoo"
	@echo "make docker the tests in containers, about 2 minutes; needs a Docker engine"
	@echo "make simulate  10,000 simulated runs, about 20 minutes; SEEDS=first:end for others"
	@echo "make soak   240 faults in a row, about 20 minutes"
	@echo "make clean  remove what the others made"

demo:
	@.ci/setup $(VENV) demo
	@$(BIN)/python -m example_project.demo

test: lint
	$(BIN)/pytest

test-oldest:
	@.ci/setup $(VENV)-oldest test celery==5.5.3 kazoo==2.10.0
	$(VENV)-oldest/bin/pytest

docker: EXTRAS := test,docker
docker:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/pytest tests/docker

simulate:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.simulation $(SEEDS)

soak:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/python -m tests.soak.kills --times 200
	$(BIN)/python -m tests.soak.kills --times 20 --pause
	$(BIN)/python -m tests.soak.kills --times 20 --outage

lint:
	@.ci/setup $(VENV) $(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy celery_zk_beat

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
