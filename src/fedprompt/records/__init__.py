"""Files of a run: its folder, the events of run.jsonl, checkpoints and adapters, and reading them back."""
