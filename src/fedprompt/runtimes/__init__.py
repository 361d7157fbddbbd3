"""Transports: ways for the round loop to reach its clients."""
