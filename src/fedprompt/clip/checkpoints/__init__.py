"""Checkpoints of other libraries (OpenAI's, open_clip's) as models of a family: tensors are read, nothing is executed."""
