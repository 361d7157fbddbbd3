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
# The recipe that runs in the simulator runs over sites that keep their images. This notebook makes a deployment of two sites, trains over them, and
# looks at what each part holds. Everything is what a real federation uses but one thing: messages go from the server to the sites within this process,
# where Flower carries them over the network otherwise. It needs the extra `flower`.

# %%
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fedprompt as fp


def fedprompt(*words: object) -> None:
    """Run a command as in a shell."""
    command, wide = [sys.executable, "-m", "fedprompt", *map(str, words)], {**os.environ, "COLUMNS": "150"}
    finished = subprocess.run(command, capture_output=True, text=True, env=wide)
    print(finished.stdout + finished.stderr)
    finished.check_returncode()


# %% [markdown]
# ## A server and two sites
#
# The operator of the server makes its folder, with a certificate authority, and hands each site its own.

# %%
home = Path("hospitals")
fedprompt("deploy", "init", home, "--address", "localhost", "--site", "east", "--site", "north", "--quorum", 2)
sites = {name: (home / "sites" / name).rename(name) for name in ("east", "north")}

# %% [markdown]
# A site makes its keys itself, and only the public one goes to the operator. It names its images and what it accepts in `site.toml`.
# Here both sites have drawings of the same four classes.

# %%
drawings = fp.load_dataset(train=8, test=2)
for name, domain in zip(sites, drawings.seen_domains, strict=False):
    for split in ("train", "test"):
        for row in drawings.rows(split=split, classes=range(4), domains=[domain]).tolist():
            folder = Path("images", name, split, drawings.space.names[drawings.targets[row]])
            folder.mkdir(parents=True, exist_ok=True)
            drawings.source.open(row).save(folder / f"{row}.png")
    fedprompt("site", "init", name)
    shutil.copy(sites[name] / f"{name}.pub", home / "keys")
    settings = sites[name] / "site.toml"
    text = settings.read_text().replace('data = ""', f'data = "{Path("images", name).absolute()}"')
    settings.write_text(text.replace("maximum_rounds = 1000", "maximum_rounds = 10"))
print(settings.read_text())

# %% [markdown]
# ## Train over the sites
#
# A channel hands requests to sites and collects their answers. `Site.answer` is what a site's process calls: it checks the request against the policy,
# trains on its own images, and records what it lets out.

# %%
from fedprompt.deploy.server_run import run_on_sites
from fedprompt.deploy.settings import load_deployment
from fedprompt.deploy.site import Site


class Here:
    """The sites in this process."""

    def __init__(self, folders):
        self.open = {name: Site(folder) for name, folder in folders.items()}

    def sites(self, *, deadline=60.0):
        return {name: number for number, name in enumerate(self.open)}

    def ask(self, payloads, *, deadline):
        return {name: self.open[name].answer(payload) for name, payload in payloads.items()}


classes = ", ".join(f'"{name}"' for name in drawings.space.names[:4])
recipe = f"""
name = "hospitals"
[data]
source = "sites"
classes = [{classes}]
[partition]
rule = "by_site"
[method]
name = "promptfl"
[train]
rounds = 4
batch_size = 8
lr = 0.01
optimizer = "adamw"
"""
run_on_sites(recipe, Path("runs/hospitals"), Here(sites), load_deployment(home), home=home)
run = fp.read_run("runs/hospitals")
run.rounds[["round", "clients", "loss", "bytes_up"]]

# %% [markdown]
# The server never saw an image: the accuracy is what the sites measured on their own test images, rounded as their policy says.

# %%
run.scores[["round", "client", "metric", "images", "value"]].round(3)

# %% [markdown]
# ## What left a site
#
# Each request is recorded with the rule that decided. Records are chained by hashes, so a later change of one can be seen; to see that the last ones were
# removed, keep the newest hash elsewhere.

# %%
fedprompt("site", "audit", "east")

# %% [markdown]
# ## The same numbers as the simulator
#
# With the folders of both sites at hand, the simulator trains the same model bit by bit.

# %%
import torch
from safetensors.torch import load_file

Path("recipe.toml").write_text(recipe)
folders = {name: str(Path("images", name).absolute()) for name in sites}
simulated = fp.run("recipe.toml", **{"data.folders": folders, "partition.sites": list(sites)}, progress=False)
ours, theirs = (load_file(one.adapter().folder / "adapter_model.safetensors") for one in (run, simulated))
all(torch.equal(ours[name], theirs[name]) for name in ours)

# %% [markdown]
# ## What a site refuses
#
# Both sites allow ten rounds. A run of eleven is refused by each with the name of the rule, and nothing is trained.

# %%
try:
    run_on_sites(
        recipe.replace("rounds = 4", "rounds = 11"), Path("runs/longer"), Here(sites), load_deployment(home), home=home
    )
except fp.UserError as error:
    print(error)

# %% [markdown]
# ## Over the network
#
# ```
# fedprompt deploy rehearse --out rehearsal          # server and three sites as processes of this machine, with keys and certificates
# fedprompt server up hospitals                       # at the server
# fedprompt site up east                              # at each site
# fedprompt run recipe.toml --on hospitals            # at the server: the recipe from above
# ```
#
# [Deploying](../deploying.md) says how to set this up, and [privacy](../privacy.md) what the server can learn and how noise and secure sums limit it.
