"""Pretraining of the embedded CLIP: captions, samples, trainer and evaluation."""
