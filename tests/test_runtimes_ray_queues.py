"""Queues of actors: every item is done once, actors keep their clients, and idle ones take some from others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.runtimes.ray.queues import AHEAD, MOST, Costs, Homes, Queues
from fedprompt.seeding import numpy_stream


def drain(queues: Queues, seconds: dict[int, float], *, speed: dict[int, float] | None = None) -> dict[int, list[int]]:
    """Simulate actors that work at some speed; returns what each has done, in order."""
    now = dict.fromkeys(queues.waiting, 0.0)
    done: dict[int, list[int]] = {actor: [] for actor in queues.waiting}
    idle: set[int] = set()
    while queues:
        actor = min(now.keys() - idle, key=lambda one: (now[one], one))
        taken = queues.take(actor)
        if not taken:
            idle.add(actor)
        for item in taken:
            took = seconds[item] / (speed or {}).get(actor, 1.0)
            now[actor] += took
            queues.finish(actor, item, took)
            done[actor].append(item)
            idle.clear()
    return done


@given(st.integers(0, 60), st.integers(1, 5), st.integers(0, 100))
@settings(deadline=None)
def test_every_item_is_done_once_whatever_happens_to_the_actors(count: int, actors: int, seed: int) -> None:
    draws, homes, costs = numpy_stream(seed, "queues"), Homes(), Costs()
    for _ in range(2):
        queues, done, sent = Queues(range(count), range(actors), homes, costs), [], {}
        while queues or any(sent.values()):
            actor = int(draws.integers(actors))
            sent.setdefault(actor, []).extend(queues.take(actor))
            if draws.random() < 0.2:
                queues.give_back(actor, sent.pop(actor, []))
                queues.lose(actor)
            for item in sent.pop(actor, []):
                queues.finish(actor, item, float(draws.random()))
                done.append(item)
        assert sorted(done) == list(range(count))


def test_clients_stay_with_their_actor_while_it_keeps_up() -> None:
    homes, costs, seconds = Homes(), Costs(), dict.fromkeys(range(20), 0.2)
    first = drain(Queues(range(20), range(4), homes, costs), seconds)
    for _ in range(3):
        assert {actor: sorted(items) for actor, items in first.items()} == {
            actor: sorted(items) for actor, items in drain(Queues(range(20), range(4), homes, costs), seconds).items()
        }


def test_a_faster_actor_takes_clients_of_a_slow_one_and_keeps_them() -> None:
    homes, costs, seconds = Homes(), Costs(), dict.fromkeys(range(20), 0.2)
    for _ in range(2):
        done = drain(Queues(range(20), range(2), homes, costs), seconds, speed={0: 4.0})
    assert len(done[0]) > 2 * len(done[1])
    assert {homes.home[item] for item in done[0]} == {0}


def test_a_client_with_expensive_features_is_not_taken_for_a_little_time() -> None:
    """Training takes 0.2 s where the features are, 10 s elsewhere: one client more is done sooner where it belongs."""
    homes, costs = Homes(home=dict.fromkeys(range(4), 0), seen={0: set(range(4))}), Costs()
    costs.add("another", 10.0, warm=False)
    for item in range(4):
        costs.add(item, 0.2, warm=True)
    assert drain(Queues(range(4), range(2), homes, costs), dict.fromkeys(range(4), 0.2)) == {0: [0, 1, 2, 3], 1: []}
    cheap = Costs()
    cheap.add("another", 0.3, warm=False)
    for item in range(4):
        cheap.add(item, 0.2, warm=True)
    assert drain(Queues(range(4), range(2), homes, cheap), dict.fromkeys(range(4), 0.2))[1]


def test_short_clients_are_sent_several_at_a_time_and_long_ones_alone() -> None:
    for seconds, expected in ((0.001, MOST), (0.03, 4), (2.0, 1)):
        costs = Costs()
        for item in range(200):
            costs.add(item, seconds, warm=False)
        queues = Queues(range(200), [0], Homes(), costs)
        assert len(queues.take(0)) == expected
        assert bool(queues.take(0)) == (expected * seconds < AHEAD)


def test_what_waits_for_a_lost_actor_is_taken_by_others() -> None:
    homes = Homes(home={0: 0, 1: 0}, seen={0: {0, 1}})
    queues = Queues([0, 1], [0, 1], homes, Costs())
    queues.give_back(0, queues.take(0))
    queues.lose(0)
    assert sorted(queues.take(1) + (queues.finish(1, 1, 0.1) or []) + queues.take(1)) == [0, 1]
