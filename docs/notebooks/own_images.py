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
# # Your own images
#
# One folder per class is enough. This notebook writes such a folder of drawings first; with photographs of your own, leave the next cell out and load
# CLIP ViT-B/16 from the Hub, because the embedded CLIP knows drawings only.

# %%
from pathlib import Path

import fedprompt as fp

drawings = fp.load_dataset(train=8, test=1)
folder = Path("drawings")
for number, row in enumerate(drawings.rows(split="train", classes=range(12)).tolist()):
    name = drawings.space.names[drawings.targets[row]]
    (folder / name).mkdir(parents=True, exist_ok=True)
    drawings.source.open(row).save(folder / name / f"{number}.png")
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# ## Load
#
# The source says what it has understood. A quarter of the images is held out for testing where the folder has no `test/`.

# %%
data = fp.load_dataset("image_folder", path=str(folder))
data

# %% [markdown]
# A table works as well: a DataFrame with a column of paths and one of labels, a `datasets.Dataset`, or a list of pairs.

# %%
import pandas

table = pandas.DataFrame([{"path": str(path), "label": path.parent.name} for path in sorted(folder.glob("*/*.png"))])
fp.load_dataset(table)

# %% [markdown]
# ## Clients
#
# `dirichlet` gives every client another mix of classes. The smaller `alpha`, the more the clients differ.

# %%
clients = fp.partition(data, "dirichlet", clients=3, alpha=0.5, seed=1)
clients.to_pandas()

# %% [markdown]
# ## Train and compare with zero-shot CLIP
#
# What is not said is as in the recipe `own_folder`: AdamW, with a learning rate per method that was tuned for images of one's own.

# %%
clip = fp.load_clip()
run = fp.train("fedvpt", clip, data, clients, compare=["zeroshot"], rounds=6, batch_size=16, progress=False)
run.table.round(1)

# %%
print(run.verdict)

# %% [markdown]
# ## Keep the adapter and use it

# %%
fp.load_adapter(run.adapter().save("adapter"), clip=clip).predict(sorted(folder.glob("*/*.png"))[::30])
