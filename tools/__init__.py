"""What makes the generated pages of docs/ and the tables in them: `python -m tools.collect`, `python -m tools.tables`."""
