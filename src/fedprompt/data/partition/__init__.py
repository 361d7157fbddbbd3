"""Partition rules: which client holds which training pictures. One file per rule."""
