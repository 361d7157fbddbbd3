"""fedprompt: federated prompt tuning of CLIP-like vision-language models.

`import fedprompt as fp` offers the Python API; a name is loaded when it is used first.
"""

import os

import lazy_loader

__version__ = "0.1.0"

# Idle threads sleep rather than spin: beside one busy process, spinning threads make training several times slower.
# torch reads the variable when it is imported, and child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torch must load only when a name is used: the command line and pytest's plugin import this package.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name in __all__ or name.startswith("__"):
        return _load(name)
    from fedprompt.errors import did_you_mean

    # `obj` is not this module, for which Python's traceback would add a guess of its own.
    hint = did_you_mean(name, __all__)
    raise AttributeError(f"fedprompt has no name {name!r}{hint or '.'}", name=name, obj=None)
