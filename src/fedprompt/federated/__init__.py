"""Federated learning: clients, the round loop, the server, aggregation, attacks, privacy, secure aggregation.

Nothing here knows the transport: how messages travel is the business of `fedprompt.runtimes`.
"""
