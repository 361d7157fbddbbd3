"""A run as one page: what `run.jsonl` says, drawn as a self-contained HTML file that needs no network and no scripts."""

from fedprompt.report.figures import headline_figure, partition_figure
from fedprompt.report.page import render
from fedprompt.report.reading import Run, Trial, read_run

__all__ = ["Run", "Trial", "headline_figure", "partition_figure", "read_run", "render"]
