"""Readers of the layouts in which published data sets come, one module a family, named by a row of `data/sets`."""
