"""Acceptance criteria of reliability, security and privacy: `python -m benchmarks.bars` writes docs/bars.md."""
