"""Studies: sweeps of runs, comparisons, tuning, and published experiments with their tables."""
