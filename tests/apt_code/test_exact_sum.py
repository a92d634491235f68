"""Sums are those of integers, rounded once, whatever their size and order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code.exact_sum import exact_sum

WIDE = 2.0**63


@given(
    values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=40),
    batch=st.integers(1, 3),
    shift=st.integers(0, 62),
)
def test_a_sum_is_the_rounded_sum_of_integers(values, batch, shift):
    values = [value >> shift for value in values]
    tensor = torch.tensor([values] * batch)
    expected = torch.tensor([float(sum(values))] * batch, dtype=torch.float64)  # Python rounds once, to even
    assert torch.equal(exact_sum(tensor, (1,), WIDE), expected)
    assert torch.equal(exact_sum(tensor, (1,), float(max(map(abs, values)))), expected)


def test_at_the_edge_of_64_bits():
    largest = 2**40
    for count in (2**23 - 1, 2**23, 2**23 + 1):
        values = torch.full((1, count), largest - 1)
        assert exact_sum(values, (1,), largest).item() == float((largest - 1) * count)
        assert exact_sum(-values, (1,), largest).item() == -float((largest - 1) * count)
