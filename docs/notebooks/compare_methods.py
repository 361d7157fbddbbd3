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
# # Compare methods
#
# One run trains several methods on the same clients with the same seed.

# %%
import fedprompt as fp

clip = fp.load_clip()
data = fp.load_dataset(train=4, test=1)
clients = fp.partition(data, "class_chunks", classes_per_client=8, shots=4)


def train(seed: int) -> fp.Run:
    others = ["zeroshot", {"name": "promptfl", "train": {"lr": 0.03}}]
    options = {"rounds": 4, "lr": 0.01, "optimizer": "adamw", "batch_size": 8, "settings": {"evaluate.every": 1}}
    return fp.train("fedvpt", clip, data, clients, compare=others, seed=seed, progress=False, **options)


run = train(seed=1)
run.table.round(1)

# %%
run.plot("base")

# %% [markdown]
# Intervals say whether a difference is more than the draw of the test images.

# %%
run.intervals.query("against != ''").round(3)

# %% [markdown]
# One seed is no evidence. `fp.compare` puts several runs into one table.

# %%
runs = fp.compare([run, train(seed=2)])
(100 * runs.pivot_table(index="trial", columns="column", values="value", aggfunc=["mean", "std"])).round(1)
