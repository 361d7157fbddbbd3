"""Rehearsal of a deployment on one machine: its processes, and the checks that they must pass."""
