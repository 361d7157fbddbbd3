"""What the columns of a results table mean, on the terminal and in the report."""

from __future__ import annotations

from fedprompt.records.run_record import TUNED, Run
from fedprompt.report.tables import uploads

UPLOAD = "Upload"
MEANING = {
    "local": "each client's test images, among that client's classes only; mean over clients, each counted equally",
    "base": "test images of the base classes, among all base classes",
    "new": "test images of the new classes, which nobody trained on, among all new classes",
    "hm": "harmonic mean of Local, Base and New",
    "unseen": "test images in domains nobody trained on, among all classes; unweighted mean over domains",
    "gap": "natural mAP minus broken mAP: how much the method relies on the usual co-occurrence of labels",
}
MEASURED = {
    "mean_average_precision": ("mAP", "mean over classes of the average precision"),
    "cf1_macro": ("CF1", "mean over classes of the F1 score; a label counts as present from {}"),
    "of1": ("OF1", "F1 score of all decisions together; a label counts as present from {}"),
}


def meaning(run: Run, column: str) -> str:
    """What a column of results is, "" if that is not known; `test:of1` is a further metric on the images of `test`."""
    split, _, measure = column.partition(":")
    images = run.header.splits.get(split) or MEANING.get(split, "")
    _, text = MEASURED.get(measure.removesuffix(TUNED), ("", ""))
    return f"{text.format(run.threshold)}; {images}" if text and images else images


def legend(run: Run) -> list[tuple[str, str]]:
    """(heading, meaning) of the columns of the results table, of their metrics if there are several, and of uploads."""
    columns = [column for column in run.columns if ":" not in column]
    found = [(run.title(column), meaning(run, column)) for column in columns]
    if same := _same_images(run):
        found = [(name, text + same * (name == run.title("local"))) for name, text in found]
    shown = {key.removesuffix(TUNED) for key in (run.header.metric, *run.header.further)} if run.header.further else ()
    found += [(name, text.format(run.threshold)) for key, (name, text) in MEASURED.items() if key in shown]
    if any(trial.bytes_up for trial in run.trials):
        found.append((UPLOAD, _upload_meaning(run)))
    return [(name, meaning) for name, meaning in found if meaning]


def _same_images(run: Run) -> str:
    """That Local is about the images of Base, and equals it where all clients share one model; else empty."""
    scored = [trial for trial in run.trials if "local" in trial.figures and "base" in trial.figures]
    counts = [{one.num_examples for column in ("local", "base") for one in trial.final(column)} for trial in scored]
    if any(len(own) != 1 for own in counts) or not any(t.figures["local"] == t.figures["base"] for t in scored):
        return ""
    base = run.title("base")
    return (
        f"; here every client is tested on all images of {base}, so that the two are equal by construction unless "
        "clients keep a part of the model to themselves"
    )


def _upload_meaning(run: Run) -> str:
    sent = {trial.label: uploads(trial) for trial in run.trials}
    changing = [f"{label} sends {mean} ({ends})" for label, (mean, ends) in sent.items() if ends]
    more = f". {', '.join(changing)}: a method may send other tensors in later rounds" if changing else ""
    return f"bytes that a client sends to the server per round, mean over clients and rounds{more}"


def one_seed_note(run: Run) -> str:
    """How much the differences between the trials of one run say; empty for a single trial."""
    if len(run.trials) < 2 or not run.columns:
        return ""
    widths = [
        (one.high - one.low) / 2
        for one in run.intervals
        if one.against and one.column in run.headlines and one.low is not None and one.high is not None
    ]
    seeds = "A comparison (fedprompt compare) gives means over seeds."
    if not widths:
        return f"This is one seed, and no interval says which differences are more than noise; {seeds}"
    low, high = (f"{100 * width:.1f}" for width in (min(widths), max(widths)))
    spread = low if low == high else f"{low} to {high}"
    return f"This is one seed: by the intervals, differences are known to ±{spread} points. {seeds}"
