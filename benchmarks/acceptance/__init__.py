"""Acceptance criteria of reliability, security and privacy; `python -m benchmarks.acceptance` measures them."""
