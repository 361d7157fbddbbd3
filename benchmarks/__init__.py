"""Performance, measured through the public interface: `python -m benchmarks` writes RESULTS.md."""
