"""Federations of real sites: the folders of server and sites, their processes, and a rehearsal on one machine."""
