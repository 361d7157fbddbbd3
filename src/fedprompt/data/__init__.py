"""Data sets: images, labels, class names and descriptions; their sources, splits, and partitions over clients."""
