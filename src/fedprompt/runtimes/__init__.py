"""Transports for the round loop: a simulator in one process, and remote sites over Flower."""
