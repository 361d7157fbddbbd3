"""Data sources: readers of one's own and of published data sets. Each returns a Dataset; its keywords are [data]."""
