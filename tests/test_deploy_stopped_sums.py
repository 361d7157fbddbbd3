"""Runs with secure sums that stop within a round: which stops change nothing, and what the others change."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flwr.app import Message

from fedprompt.deploy.ledger import SiteLedger
from fedprompt.deploy.server_run import run_on_sites
from fedprompt.deploy.settings import Policy
from fedprompt.records.events import RoundEvent
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.flower.records import from_records
from fedprompt.runtimes.payload import CONSISTENCY_CHECK, MASKED_INPUT, SHARE_KEYS, UNMASK, VALIDATE
from grids import MemoryGrid
from test_runtimes_flower_grid import NAMES, SITES, SUMS, checkpoint, deployment, events_of, grid, one, same

pytestmark = pytest.mark.usefixtures("undrawn")

ROUNDS = 3


def recipe(folder: Path) -> str:
    text = one(folder, SUMS).replace("rounds = 2", f'rounds = {ROUNDS}\nkeep = "best:hm"')
    return text.replace('source = "sites"', 'source = "sites"\nvalidation_fraction = 0.5')


def run(over: MemoryGrid, folder: Path, name: str, *stops: tuple[str, int]) -> Path:
    """A run over the grid that stops at the first answer to these kinds of messages, each in a round."""
    left = list(stops)

    def stop(site: str, reply: Message) -> Message:
        step = reply.metadata.message_type, from_records(over.sent[-1].content).fields.get("round")
        if left and step == left[0]:
            del left[0]
            raise KeyboardInterrupt
        return reply

    over.fault = stop
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run_on_sites(recipe(folder), folder / name, GridChannel(over, poll=0), deployment(), home=folder)
    run_on_sites(recipe(folder), folder / name, GridChannel(over, poll=0), deployment(), home=folder)
    return folder / name


def rounds_of(folder: Path) -> list[RoundEvent]:
    return [event for event in events_of(folder, NAMES[0], "round") if isinstance(event, RoundEvent)]


def test_a_stop_before_the_masks_are_removed_or_after_the_checkpoint_changes_nothing(tmp_path: Path) -> None:
    over = grid(
        tmp_path, policy=Policy(smallest_count=1, maximum_repeats=4)
    )  # of the whole run, and of three trainings
    whole = run(over, tmp_path, "whole")
    steps = [(SHARE_KEYS, 2), (MASKED_INPUT, 2), (CONSISTENCY_CHECK, 2), (VALIDATE, 2)]
    stopped = run(over, tmp_path, "stopped", *steps)
    assert [event.kept for event in rounds_of(stopped)] == [(0, 1, 2)] * ROUNDS
    ours, theirs = checkpoint(stopped, NAMES[0]), checkpoint(whole, NAMES[0])
    assert same(ours.shared, theirs.shared) and same(ours.memory, theirs.memory)


def test_a_stop_while_the_masks_are_removed_costs_that_round_and_nothing_else(tmp_path: Path) -> None:
    over = grid(tmp_path)
    stopped = run(over, tmp_path, "stopped", (UNMASK, 2))
    first, second, third = rounds_of(stopped)
    assert not second.kept and second.skipped and "summed before" in second.failed[0]
    assert first.kept == third.kept == (0, 1, 2) and not third.failed
    assert checkpoint(stopped, NAMES[0]).round_number == ROUNDS
    charges = [[line.round for line in SiteLedger(tmp_path / site).lines()] for site in SITES]
    assert charges[0] == [1, 2, 3], "a site that refuses a round is not charged for it"
