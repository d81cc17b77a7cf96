"""The documentation site: what `make docs` makes of the Markdown files of this repository."""
