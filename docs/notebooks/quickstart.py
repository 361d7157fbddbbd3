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
# # Quickstart
#
# Eight clients train FedMVP together; each holds up to eight classes of the embedded drawings. It takes less than a minute on two CPU cores, offline.

# %%
import fedprompt as fp

clip = fp.load_clip()  # the embedded CLIP; or "openai/clip-vit-base-patch16", or a folder
data = fp.load_dataset(train=4, test=1)
clients = fp.partition(data, "class_chunks", classes_per_client=8, shots=4)
clients.plot()

# %%
run = fp.train("fedmvp", clip, data, clients, rounds=3, lr=0.001, batch_size=8, compare="zeroshot", progress=False)
run

# %%
run.plot()

# %% [markdown]
# The adapter classifies images among any classes, also those that no client has seen. In a notebook, `run.report()` shows the whole report.

# %%
adapter = run.adapter()
adapter.predict([data.source.open(0), data.source.open(400)], classes=["clock", "heart", "camera", "tree"])
