"""A run as one page: what `run.jsonl` says, as a self-contained HTML file without network or scripts."""

from fedprompt.report.figures import headline_figure, save_headline
from fedprompt.report.grids import partition_figure
from fedprompt.report.ink import size_text
from fedprompt.report.page import predictions_page, render
from fedprompt.report.printed import ours
from fedprompt.report.reading import Run, Trial, read_run

__all__ = [
    "Run",
    "Trial",
    "headline_figure",
    "ours",
    "partition_figure",
    "predictions_page",
    "read_run",
    "render",
    "save_headline",
    "size_text",
]
