"""Checkpoints of OpenAI and open_clip as models of a family: tensors are read, nothing is executed."""
