"""The files of a run: folder, events of run.jsonl, adapters, and how they are read back."""
