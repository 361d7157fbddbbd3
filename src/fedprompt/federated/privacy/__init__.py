"""Differential privacy per client (DP-FedAvg) and per image (DP-SGD), with accounting and budgets."""
