"""Every bar of reliability, security and privacy with its measure: `python -m benchmarks.bars` writes docs/bars.md."""
