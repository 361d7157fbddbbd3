"""Generators of the pages and tables in docs/: `python -m tools.collect` and `python -m tools.measured`."""
