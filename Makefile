VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint clean

help:
	@echo "make demo   a failover to watch, about 70 seconds, on servers that it starts itself"
	@echo "make test   lint, types, and all tests"
	@echo "make clean  remove what the others made"

demo:
	@.ci/setup $(VENV) test
	@$(BIN)/python -m example_project.demo

test: lint
	$(BIN)/pytest

lint:
	@.ci/setup $(VENV) test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy celery_zk_beat

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
