"""Descriptions of the published data sets that come with the package: how they are read, found by class and checked."""

from fedprompt.descriptions.bundled.files import names, path, read
from fedprompt.descriptions.bundled.lookup import find, holders, ranked, suggestion

__all__ = ["find", "holders", "names", "path", "ranked", "read", "suggestion"]
