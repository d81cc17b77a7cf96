VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-oldest soak lint clean

help:
	@echo "make demo   a failover to watch, about 70 seconds, on servers that it starts itself"
	@echo "make test   lint, types, and all tests"
	@echo "make test-oldest   all tests, with the oldest supported Celery and kazoo"
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

soak:
	@.ci/setup $(VENV) test
	$(BIN)/python -m tests.soak.kills --times 200
	$(BIN)/python -m tests.soak.kills --times 20 --pause
	$(BIN)/python -m tests.soak.kills --times 20 --outage

lint:
	@.ci/setup $(VENV) test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy celery_zk_beat

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
