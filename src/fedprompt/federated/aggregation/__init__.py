"""Aggregation rules: how a server makes one state of many updates."""
