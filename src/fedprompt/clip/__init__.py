"""The frozen backbone: nouns that are remembered, verbs that gradients flow through."""
