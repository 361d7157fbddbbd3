"""Flower (flwr) as the network layer: all imports of it and all flags of its commands are in this package."""
