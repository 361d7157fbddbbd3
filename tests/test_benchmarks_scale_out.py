from __future__ import annotations

import pytest

pytest.importorskip("ray")

from benchmarks import scale_out


@pytest.mark.parametrize(("actors", "seconds"), [(1, 8.0), (2, 4.0), (8, 1.0), (16, 1.0)])
def test_modelled_actors_share_clients_evenly(actors: int, seconds: float):
    assert scale_out.play([1.0] * 8, actors=actors, driver=0.0, fixed=0.0) == seconds


def test_a_modelled_round_waits_for_the_driver():
    assert scale_out.play([0.5] * 8, actors=8, driver=0.1, fixed=2.0) == pytest.approx(0.5 + 8 * 0.1 + 2.0)
