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
# # Several labels per image
#
# The embedded scenes show several objects each. Clients are formed by which labels occur together.

# %%
import fedprompt as fp

clip = fp.load_clip()
data = fp.load_dataset("scenes", train=120, test=60)
data

# %%
clients = fp.partition(data, "label_clusters", heterogeneity=0.1)
{client.name: len(client.train) for client in clients}  # images; clients.to_pandas() counts labels, several per image

# %% [markdown]
# With `evaluate.held_out`, a share of each client's images is kept for choosing the threshold from which on a label counts as present.

# %%
clients = fp.partition(data, "label_clusters", heterogeneity=0.1, held_out=0.1)
method = {"name": "fedmpt", "tau": 3.0, "entropy": 0.05, "rank": 8}
settings = {"evaluate.local": False}  # keys of a recipe beyond those of [train]
run = fp.train(
    method,
    clip,
    data,
    clients,
    rounds=3,
    lr=0.015,
    batch_size=16,
    compare="zeroshot",
    settings=settings,
    progress=False,
)
run.table.round(1)

# %%
run.scores.pivot_table(index=["test_set", "name"], columns=["metric", "trial"], values="value").round(3)

# %% [markdown]
# Predictions name every label that is at or above the threshold.

# %%
predicted = run.adapter().predict([data.source.open(row) for row in range(4)])
predicted.to_pandas()[["image", "labels"]]
