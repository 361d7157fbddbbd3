"""Readers of the layouts that published data sets come in, one module per layout; `read` returns a Listing."""
