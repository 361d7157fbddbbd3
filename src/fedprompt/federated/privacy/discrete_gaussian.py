"""The discrete Gaussian distribution, sampled exactly (Canonne, Kamath and Steinke, 2020, algorithms 1 to 3).

Every decision compares uniform integers with integers; no floating-point number is involved, so none of the attacks on
floating-point noise (Mironov, 2012) applies. Uniform bits come from the operating system's cryptographic generator.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Decisions = NDArray[np.bool_]

LARGEST_SCALE = 1 << 24  # so that no product below exceeds 63 bits
WIDEST = 128  # scales; larger candidates, of probability below 1e-55, are drawn anew


def discrete_gaussian(scale: int, count: int) -> Integers:
    """Independent integers [count], each x with probability proportional to exp(-x^2 / (2 scale^2)).

    `scale` is a whole number from 1 to LARGEST_SCALE.
    """
    assert 1 <= scale <= LARGEST_SCALE
    found = np.empty(count, dtype=np.int64)
    missing = np.arange(count)
    while missing.size:
        candidates, kept = _discrete_laplace(scale, missing.size)
        # Accept with probability exp(-(|x| - scale)^2 / (2 scale^2)).
        excess = (np.abs(candidates) - scale) ** 2
        kept &= _bernoulli_exp(excess, 2 * scale * scale)
        found[missing[kept]] = candidates[kept]
        missing = missing[~kept]
    return found


def _discrete_laplace(scale: int, count: int) -> tuple[Integers, Decisions]:
    """Candidates [count] of probability proportional to exp(-|x| / scale), and which of them count."""
    remainder = _uniform_below(scale, count)
    kept = _bernoulli_exp_fraction(remainder, scale)
    whole = _geometric(count)
    kept &= whole < WIDEST
    size = remainder + scale * np.minimum(whole, WIDEST)
    negative = _uniform_below(2, count) == 1
    kept &= ~(negative & (size == 0))
    return np.where(negative, -size, size), kept


def _bernoulli_exp(numerator: Integers, denominator: int) -> Decisions:
    """True with probability exp(-numerator / denominator)."""
    whole, rest = np.divmod(numerator, denominator)
    return (_geometric(len(numerator)) >= whole) & _bernoulli_exp_fraction(rest, denominator)


def _geometric(count: int) -> Integers:
    """How often in a row a decision of probability 1 / e comes out true."""
    found = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while going.size:
        going = going[_bernoulli_exp_fraction(np.ones(going.size, dtype=np.int64), 1)]
        found[going] += 1
    return found


def _bernoulli_exp_fraction(numerator: Integers, denominator: int) -> Decisions:
    """True with probability exp(-numerator / denominator), for fractions from 0 to 1.

    Decisions of probability g, g/2, g/3, ... follow each other until one is false; the result says whether an odd
    number was made.
    """
    result = np.zeros(len(numerator), dtype=np.bool_)
    going, made = np.arange(len(numerator)), 0
    while going.size:
        made += 1
        true = _uniform_below(denominator * made, going.size) < numerator[going]
        result[going[~true]] = made % 2 == 1
        going = going[true]
    return result


def _uniform_below(bound: int, count: int) -> Integers:
    """Uniform integers [count] from 0 to bound - 1, by rejection."""
    found = np.zeros(count, dtype=np.int64)
    mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
    missing = np.arange(count if bound > 1 else 0)
    while missing.size:
        drawn = (np.frombuffer(os.urandom(8 * missing.size), dtype=np.uint64) & mask).astype(np.int64)
        kept = drawn < bound
        found[missing[kept]] = drawn[kept]
        missing = missing[~kept]
    return found
