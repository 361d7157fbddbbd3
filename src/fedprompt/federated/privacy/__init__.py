"""Differential privacy: what a clipped and noisy result can reveal of one client, or of one picture, at most."""
