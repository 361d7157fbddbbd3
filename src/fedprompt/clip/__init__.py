"""The frozen CLIP backbone: cached frozen features, and differentiable encoders that gradients flow through."""
