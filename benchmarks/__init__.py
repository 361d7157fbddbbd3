"""Benchmarks of speed and memory through the public interface: `python -m benchmarks` writes RESULTS.md."""
