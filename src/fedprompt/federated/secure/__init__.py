"""Secure aggregation (Bonawitz et al., 2017): the server learns the sum of a round's updates and no single one.

Clients share their secrets among each other, send masked inputs, agree on who is left, and help to unmask the sum.
"""
