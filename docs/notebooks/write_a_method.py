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
# # Write a method
#
# A method is a `torch.nn.Module` that holds only what is trained, and builds a classifier from a frozen CLIP and a list of classes.
# This one learns a shift of the text features.

# %%
import torch
from torch import nn

import fedprompt as fp
from fedprompt.methods.base import cosine_classifier
from fedprompt.ops.layers import unit


class TextShift(fp.Method):
    """One learned vector is added to every class's text feature."""

    reads = ("template",)

    def __init__(self, clip: fp.Clip, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(clip.dim))

    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        text = unit(clip.text_features(space.texts()) + self.shift)  # [C, D]
        return cosine_classifier(clip, text, space.kind)


# %% [markdown]
# `fp.train` takes the class itself, beside any method that it knows by name. Loss, aggregation, checkpoints and scores are the same for all.

# %%
clip = fp.load_clip()
data = fp.load_dataset(train=4, test=1)
clients = fp.partition(data, "iid", clients=3, seed=1)
options = {"rounds": 5, "lr": 0.01, "optimizer": "adamw", "batch_size": 16}
run = fp.train(TextShift, clip, data, clients, compare=["zeroshot", "promptfl"], progress=False, **options)
run.table.round(1)

# %% [markdown]
# ## A training loop of your own
#
# `fp.train` calls `fp.federate`. With it you write the loop, for instance to look at every update.

# %%
method = TextShift(clip)
settings = fp.TrainSettings(rounds=3, batch_size=16, lr=0.01, optimizer="adamw")
simulator = fp.Simulator(method, clip, clients, settings)
test = data.examples(data.rows(split="test", classes=data.new, domains=data.seen_domains), data.new)

for record in fp.federate(method, simulator, clients=range(len(clients)), rounds=3, seed=1):
    losses = [round(update.loss, 3) for update in record.updates]
    score = fp.evaluate(simulator.restore(record.shared), clip, test, name="new")
    print(record.number, losses, f"new classes: {100 * score.figures['accuracy']:.1f}%")

# %% [markdown]
# ## Test it as fedprompt tests its own
#
# `check_method` checks what every method must do, such as giving the same bits with and without the feature cache; a broken property is an
# error that says which. It takes the class itself, or the name of a module.

# %%
from fedprompt.testing import check_method

check_method(TextShift)
print("TextShift has all properties")
