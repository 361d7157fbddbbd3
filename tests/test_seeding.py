from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.seeding import seed_for, stream

addresses = st.lists(st.one_of(st.integers(-(10**9), 10**9), st.text(max_size=8)), max_size=4)


def test_the_numbers_of_an_address_never_change() -> None:
    assert seed_for(0, "client", 3, 17) == 4346629447994112698


@given(st.integers(0, 2**31), addresses, st.integers(0, 2**31), addresses)
def test_other_addresses_have_other_seeds(seed: int, address: list, other_seed: int, other: list) -> None:
    same = (seed, address) == (other_seed, other)
    assert (seed_for(seed, *address) == seed_for(other_seed, *other)) == same
    assert 0 <= seed_for(seed, *address) < 2**63


def test_a_stream_is_fresh_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = (torch.randn(4, generator=stream(1, "loss", 2)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(4, generator=stream(1, "loss", 3)))
    assert torch.equal(before, torch.get_rng_state())
