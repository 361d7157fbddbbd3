"""Partition rules: how training images are distributed over clients, IID or non-IID; one file per rule."""
