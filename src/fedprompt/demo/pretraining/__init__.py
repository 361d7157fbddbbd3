"""How the embedded CLIP is pretrained: captions, samples, trainer and evaluation."""
