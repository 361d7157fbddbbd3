"""The report of a run: a self-contained HTML page made from `run.jsonl`, its tables and figures."""

from fedprompt.records.reading import read_run
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.report.client_figures import partition_figure, save_partition
from fedprompt.report.figures import headline_figure, save_headline
from fedprompt.report.page import app_page, prediction_cards, predictions_page, render
from fedprompt.report.published import comparable_figure
from fedprompt.report.style import size_text

__all__ = [
    "Run",
    "TrialRecord",
    "app_page",
    "comparable_figure",
    "headline_figure",
    "partition_figure",
    "prediction_cards",
    "predictions_page",
    "read_run",
    "render",
    "save_headline",
    "save_partition",
    "size_text",
]
