"""Criteria for faulty and malicious clients: from the results of `benchmarks.robustness`, and from property tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.acceptance.criteria import CASES, Criterion, Row, proof, verdict
from benchmarks.robustness import ADVERSARIES, BROKEN, CLIENTS, Bench, Case, Found, Results
from fedprompt.config.registry import AGGREGATION_RULES

MUST_WITHSTAND = {"sign_flip": "sign flip x 10", "gaussian": "Gaussian of sigma 10"}
ROBUST = ("median", "trimmed_mean", "multi_krum", "geometric_median")
SUBTLE = {
    "alie": "ALIE",
    "inner_product": "inner product manipulation",
}  # hidden among the honest
SENT = {
    "nan": "NaN",
    "infinity": "infinity",
    "shape": "another shape",
    "name": "a tensor nobody shares",
    "weight": "a claim of 10**12 examples",
}
POINTS = {"iid": 1.0, "one_tenth": 3.0}  # points that a rule may cost without an attack, by partition
FILE = "test_federated_aggregation_robust.py"


def criteria(bench: Bench, found: Results) -> Iterator[Criterion]:
    """All criteria; a case without a result is a line that says so."""
    measured = Measured(f"`benchmarks.robustness`: {bench.method}, {bench.rounds} rounds", found)
    yield from (measured.broken(fault, rounds=bench.rounds) for fault in BROKEN)
    yield from (measured.mean_loses(attack) for attack in MUST_WITHSTAND)
    yield from (measured.rule_keeps(rule, attack) for rule in ROBUST for attack in MUST_WITHSTAND)
    yield from (measured.as_it_is(attack) for attack in SUBTLE)
    yield from (measured.clean(rule) for rule in AGGREGATION_RULES.names() if rule != "fedavg")
    yield proof(
        "broken updates of five kinds, through the server",
        "cost what the absence of their clients costs; each refused with its reason",
        "test_federated_server.py::test_broken_clients_cost_what_their_absence_costs",
        "test_federated_screening.py::test_the_others_go_on_without_those_who_are_refused",
    )
    yield proof(
        f"order of updates, every rule, {CASES} cases each", "does not count", f"{FILE}::test_order_does_not_count"
    )
    yield proof(
        f"where the shared state stands, every rule but fedawa, {CASES} cases each",
        "moves the result along with it",
        f"{FILE}::test_only_changes_count_not_where_they_begin",
    )
    yield proof(
        f"the median under less than half of adversaries, {CASES} cases",
        "stays between the honest",
        f"{FILE}::test_fewer_than_half_adversaries_leave_the_median_among_the_honest",
    )
    yield proof(
        f"median, trimmed mean, Krum and multi-Krum, {CASES} cases each",
        "equal NumPy",
        f"{FILE}::test_coordinate_rules_equal_numpy",
        f"{FILE}::test_krum_equals_a_brute_force",
    )


def cases_of(attack: str) -> list[Case]:
    """The cases of every rule under an attack."""
    return [Case(rule, attack) for rule in AGGREGATION_RULES.names()]


class Measured:
    """Lines from a file of results; a missing result is "not measured"."""

    def __init__(self, where: str, found: Results) -> None:
        self.where = where
        self.found = found

    def broken(self, fault: str, *, rounds: int) -> Row:
        """Two faulty clients, compared with a run without these two."""

        def said(absent: Found, one: Found) -> tuple[str, bool]:
            cost, sent = 100 * (absent.accuracy - one.accuracy), ADVERSARIES * rounds * one.runs
            refused = one.refused == sent
            return f"costs {cost:.1f} points; {one.refused} of {sent} refused, with the reason", cost <= 1 and refused

        what = f"{ADVERSARIES} of {CLIENTS} clients send {SENT[fault.partition('.')[2]]}, {rounds} rounds"
        criterion = "completes; at most 1 point below those two being absent; every refusal recorded with its reason"
        return self._row(what, criterion, said, Case(clients=CLIENTS - ADVERSARIES), Case(attack=fault))

    def mean_loses(self, attack: str) -> Row:
        """The attack harms the mean."""

        def said(clean: Found, one: Found) -> tuple[str, bool]:
            lost = 100 * (clean.accuracy - one.accuracy)
            return f"loses {lost:.0f} points", lost >= 30

        what = f"mean under {MUST_WITHSTAND[attack]}, {ADVERSARIES} of {CLIENTS}"
        return self._row(what, "loses at least 30 points (else it is no attack)", said, Case(), Case(attack=attack))

    def rule_keeps(self, rule: str, attack: str) -> Row:
        """The rule withstands the attack."""

        def said(clean: Found, one: Found) -> tuple[str, bool]:
            kept = one.accuracy / clean.accuracy
            return f"{100 * kept:.0f}% ({one.accuracy:.3f} of {clean.accuracy:.3f})", kept >= 0.95

        what = f"{rule} under {MUST_WITHSTAND[attack]}, {ADVERSARIES} of {CLIENTS}"
        return self._row(what, "keeps 95% of the clean accuracy", said, Case(), Case(rule, attack))

    def as_it_is(self, attack: str) -> Row:
        """What all rules keep under an attack that hides among honest updates."""

        def said(clean: Found, *found: Found) -> tuple[str, bool]:
            kept = {
                rule: one.accuracy / clean.accuracy for rule, one in zip(AGGREGATION_RULES.names(), found, strict=True)
            }
            worst, best = (choose(kept, key=kept.__getitem__) for choose in (min, max))
            return f"from {100 * kept[worst]:.0f}% ({worst}) to {100 * kept[best]:.0f}% ({best})", True

        what = f"clean accuracy kept under {SUBTLE[attack]}, {ADVERSARIES} of {CLIENTS}"
        line = self._row(what, "none; every rule in [robustness.md](robustness.md)", said, Case(), *cases_of(attack))
        return replace(line, verdict="no criterion") if line.verdict == "met" else line

    def clean(self, rule: str) -> Row:
        """What the rule costs without an attack."""

        def said(*found: Found) -> tuple[str, bool]:
            gains = [100 * (own.accuracy - mean.accuracy) for mean, own in zip(found[::2], found[1::2], strict=True)]
            met = all(gain >= -most for gain, most in zip(gains, POINTS.values(), strict=True))
            return " and ".join(f"{gain:+.1f}" for gain in gains) + " points", met

        pairs = [case for one in POINTS for case in (Case(partition=one), Case(rule, partition=one))]
        criterion = "at most 1 point below the mean where clients are alike, 3 where each has a tenth of the classes"
        return self._row(f"{rule} without an attack", criterion, said, *pairs)

    def _row(self, what: str, criterion: str, said: Callable[..., tuple[str, bool]], *cases: Case) -> Row:
        known = [self.found[case] for case in cases if case in self.found]
        if len(known) < len(cases):
            return Row(what, criterion, "-", "not measured", self.where)
        measured, met = said(*known)
        return Row(what, criterion, measured, verdict(met=met), self.where)
