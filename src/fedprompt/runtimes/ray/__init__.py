"""Ray: the clients of a simulation, and the runs of a study, on the cores and GPUs of a machine or of a cluster.

Ray's processes send each other pickled objects, so a cluster is one trust domain: real sites are reached over Flower.
"""
