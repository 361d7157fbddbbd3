"""Flower (flwr) as the carrier between machines: every import of it and every flag of its commands is here."""
