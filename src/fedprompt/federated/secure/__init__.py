"""Secure aggregation (Bonawitz et al., 2017): the server learns the sum of a round's updates and no single one.

Clients advertise keys, share their secrets among each other, send masked inputs, and help to unmask the sum.
"""
