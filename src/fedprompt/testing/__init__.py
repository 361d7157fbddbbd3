"""Conformance tests as a public API: for one's own methods, rules, sources, optimisers and attacks.

`check_method(MyMethod)` checks all properties of a method at once; a class `TestMine(MethodTests)` in a test file gives
pytest one test per property. They need nothing beyond fedprompt's own dependencies.
"""

import lazy_loader

# pytest imports this package in every project of the environment: torch must load only when a name is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
