"""Criteria for untrusted inputs: adapters, messages, large bodies, language models; and for what leaves a site."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.acceptance.criteria import Criterion, Row, proof, row
from benchmarks.acceptance.subprocesses import recipe, run_in_process
from fedprompt.deploy.init import init_deployment
from fedprompt.deploy.rehearsal.processes import LocalFederation, free_ports, nginx, proxy_connection
from fedprompt.deploy.settings import Deployment

MESSAGES = 10_000
BODY = 20 << 20  # bytes; the proxy lets 16 MB through


def criteria(folder: Path) -> Iterator[Criterion]:
    """All criteria for untrusted inputs."""
    yield from adapters(folder)
    yield proof(
        "code that could execute a file (pickle, torch.load, NumPy pickles, yaml.load, eval, exec, shells)",
        "does not occur in the package, except one call that reads tensors alone",
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
        "test_deploy_site.py::test_a_class_that_was_not_agreed_on_is_refused_without_paths_names_and_labels",
    )
    yield proof(
        "counts and scores of less than 5 images",
        "do not leave a site",
        "test_deploy_site.py::test_small_counts_and_scores_stay_at_the_site",
    )
    yield proof(
        "descriptions by a language model",
        "requested by a separate command; only class names leave; answers are kept, truncated and plain text",
        "test_descriptions_pipeline.py::test_only_class_names_leave_the_machine",
        "test_descriptions_endpoint.py::test_a_kept_answer_sends_nothing_and_a_truncated_line_is_requested_again",
        "test_descriptions_files.py::test_an_answer_of_any_size_or_depth_is_parsed",
        "test_descriptions_files.py::test_plain_text_has_no_markup_left_and_stays_plain",
        "test_descriptions_files.py::test_markup_links_and_hidden_characters_are_removed",
    )


def adapters(folder: Path) -> Iterator[Criterion]:
    """Malicious adapters."""
    (folder / "adapters").mkdir()
    found = run_in_process("adapters", folder / "adapters")
    what = f"{found['kinds']} forged adapters"
    accepted = str(found["accepted"])
    yield row(what, "refused", f"accepted: {accepted}" if accepted else "all refused", met=not accepted)
    yield row(what, "within 1 s each", f"{found['seconds']:.2f} s at most", met=float(found["seconds"]) <= 1)
    yield row(what, "within 50 MB each", f"{found['grown']:.0f} MiB in all", met=float(found["grown"]) <= 50)
    canary = str(found["canary"])
    yield row(what, "the canary of the pickle among them is never touched", canary, met=canary == "untouched")


def mutations(count: int) -> Iterator[Criterion]:
    """Mutated messages to server and sites; an uncaught exception ends the process."""
    what, criterion = (
        f"{count:,} mutated messages to server and site",
        "no uncaught exception, each refusal with a reason",
    )
    try:
        found = run_in_process("mutations", count)
    except subprocess.CalledProcessError:
        yield row(what, criterion, "one; its traceback is in this command's output", met=False)
        return
    said = f"none; {found['used']:.0f} harmless, {found['refused']:.0f} refused for {found['codes']:.0f} reasons"
    yield row(what, criterion, said, met=True)
    growth = float(found["growth"])
    yield row(what, "memory below twice the nominal", f"{growth:.2f} times the peak of honest rounds", met=growth < 2)


def proxy(folder: Path) -> Row:
    """A body that is too large, sent to nginx with the configuration of `fedprompt deploy init`."""
    what, criterion = f"a body of {BODY >> 20} MiB at the proxy", "refused (413) above 16 MB"
    if not nginx():
        return Row(what, criterion, "nginx is not installed", "not measured")
    status = status_of(folder)
    return row(what, criterion, str(status), met=status == 413)


def status_of(folder: Path) -> int:
    """The proxy's status for a request with a large body."""
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
