"""Secure aggregation (Bonawitz et al., 2017): the server learns the sum of a round's updates and no single one."""
