# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Federate for real
#
# The recipe that runs in the simulator runs over sites that keep their images: a server, a certificate authority, and a folder for each
# site. This notebook makes such a deployment on one machine and looks at what each part holds. The commands are those of
# [deploying](../deploying.md); it needs the extra `flower`.

# %%
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

work = Path(mkdtemp())


def fedprompt(*words: str) -> None:
    """Run a command as in a shell."""
    finished = subprocess.run([sys.executable, "-m", "fedprompt", *words], cwd=work, capture_output=True, text=True)
    print(finished.stdout + finished.stderr)
    finished.check_returncode()


# %%
fedprompt(
    "deploy", "init", "hospitals", "--address", "fed.example.org", "--site", "east", "--site", "north", "--quorum", "2"
)

# %% [markdown]
# A site receives its folder and makes its keys itself; only the public key goes to the operator.

# %%
(work / "hospitals" / "sites" / "east").rename(work / "east")
fedprompt("site", "init", "east")

# %%
print((work / "east" / "site.toml").read_text())

# %% [markdown]
# What leaves a site is decided by its policy, which is read before every request. `fedprompt site audit east` lists every request with the
# rule that decided.
#
# ## Rehearse with real processes
#
# In a shell,
#
# ```
# fedprompt deploy rehearse --out rehearsal
# ```
#
# starts the server and three sites with keys and certificates, trains, compares the result with the simulator's bit by bit, and kills a
# site. It takes some minutes. Then `fedprompt server up hospitals` and `fedprompt site up east --data IMAGES` are the real thing, and a
# recipe with `data.source = "sites"` runs over the sites: `fedprompt run RECIPE --on hospitals`.
