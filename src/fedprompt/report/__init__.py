"""A run as one page: what `run.jsonl` says, as a self-contained HTML file without network or scripts."""

from fedprompt.records.reading import Run, Trial, read_run
from fedprompt.report.client_figures import partition_figure
from fedprompt.report.figures import headline_figure, save_headline
from fedprompt.report.page import predictions_page, render
from fedprompt.report.published import ours
from fedprompt.report.style import size_text

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
