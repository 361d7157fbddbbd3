"""Tensor functions and small layers: losses, metrics, optimal transport, attention; no clients, no files."""
