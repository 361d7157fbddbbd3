"""Criteria for what comes from elsewhere: adapters, messages, large bodies, language models; and for what leaves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bars.jobs import ask, recipe
from benchmarks.bars.rows import Bar, Row, proof, row
from fedprompt.deploy.init import init_deployment
from fedprompt.deploy.rehearsal.processes import LocalFederation, free_ports, nginx, proxy_connection
from fedprompt.deploy.settings import Deployment

MESSAGES = 10_000
BODY = 20 << 20  # bytes; the proxy lets 16 MB through


def bars(folder: Path) -> Iterator[Bar]:
    """All of them."""
    yield from adapters(folder)
    yield proof(
        "ways to run what a file holds (pickle, torch.load, NumPy's pickles, yaml.load, eval, exec, a shell)",
        "stand nowhere in the package",
        "test_architecture.py::test_banned_words",
    )
    yield from mutations(MESSAGES)
    yield proof(
        "a tensor of another size than declared",
        "refused before a byte of it is read",
        "test_federated_screening.py::test_a_tensor_is_refused_before_its_bytes_are_read",
        "test_runtimes_remote.py::test_a_bad_answer_costs_its_site_the_round_and_nobody_else",
    )
    yield proxy(folder / "proxy")
    yield proof(
        "errors that leave a site",
        "hold no path, file name or label",
        "test_deploy_site.py::test_what_goes_wrong_leaves_the_site_without_paths_names_and_labels",
    )
    yield proof(
        "counts and scores of less than 5 pictures",
        "do not leave a site",
        "test_deploy_site.py::test_counts_and_scores_of_a_handful_stay_at_the_site",
    )
    yield proof(
        "descriptions by a language model",
        "asked for by a command of their own; only class names leave; answers are kept, cut and plain text",
        "test_descriptions_pipeline.py::test_only_class_names_leave",
        "test_descriptions_endpoint.py::test_a_kept_answer_costs_nothing_and_a_torn_line_is_asked_again",
        "test_descriptions_files.py::test_an_answer_of_any_size_or_depth_is_read_in_no_time",
        "test_descriptions_files.py::test_plain_text_has_no_markup_left_and_stays_plain",
        "test_descriptions_files.py::test_markup_links_and_hidden_signs_go",
    )


def adapters(folder: Path) -> Iterator[Bar]:
    """Forged ones."""
    (folder / "adapters").mkdir()
    found = ask("adapters", folder / "adapters")
    what = f"{found['kinds']} forged adapters"
    accepted = str(found["accepted"])
    yield row(what, "refused", f"accepted: {accepted}" if accepted else "all refused", held=not accepted)
    yield row(what, "within 1 s each", f"{found['seconds']:.2f} s at most", held=float(found["seconds"]) <= 1)
    yield row(what, "within 50 MB each", f"{found['grown']:.0f} MiB in all", held=float(found["grown"]) <= 50)
    canary = str(found["canary"])
    yield row(what, "the canary of the pickle among them is never touched", canary, held=canary == "untouched")


def mutations(count: int) -> Iterator[Bar]:
    """Messages to server and sites; an exception that nobody caught ends the job."""
    what, bar = f"{count:,} mutated messages to server and site", "no uncaught exception, each refusal with a reason"
    try:
        found = ask("mutations", count)
    except subprocess.CalledProcessError:
        yield row(what, bar, "one; its traceback stands above this command's last line", held=False)
        return
    said = f"none; {found['used']:.0f} harmless, {found['refused']:.0f} refused for {found['codes']:.0f} reasons"
    yield row(what, bar, said, held=True)
    growth = float(found["growth"])
    yield row(what, "memory below twice the nominal", f"{growth:.2f} times the peak of honest rounds", held=growth < 2)


def proxy(folder: Path) -> Row:
    """A body that is too large, at nginx with the file of `fedprompt deploy init`."""
    what, bar = f"a body of {BODY >> 20} MiB at the proxy", "refused (413) above 16 MB"
    if not nginx():
        return Row(what, bar, "nginx is not installed", "not measured")
    status = status_of(folder)
    return row(what, bar, str(status), held=status == 413)


def status_of(folder: Path) -> int:
    """What the proxy answers to the announcement of a large body."""
    port, local = free_ports(2)
    deployment = Deployment(name="bars", address="localhost", port=port, local_port=local, sites=("a",))
    federation = LocalFederation(folder, deployment, recipe("promptfl", clients=1, rounds=1), proxied=True)
    init_deployment(federation.server, deployment)
    try:
        federation.start_proxy()
        line = proxy_connection(federation)
        line.putrequest("POST", "/v1/fleet/push-object")
        line.putheader("Content-Length", str(BODY))
        line.endheaders()
        return line.getresponse().status
    finally:
        federation.stop("proxy")
