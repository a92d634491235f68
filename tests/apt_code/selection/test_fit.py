"""Which pictures `fit` tries, and in which order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_code.selection.fit import EXPONENT, fractions_to_try, limit_of

pictures = st.integers(1, 20_000).flatmap(lambda cells: st.tuples(st.integers(1, cells), st.just(cells)))


@pytest.mark.parametrize(
    ("cells", "alpha", "most", "limit"),
    [(100, 0.45, None, 45), (100, 0.456, None, 46), (100, 0.0, None, 1), (100, 1.0, 64, 64), (100, 0.3, 64, 30)],
)
def test_the_limit_by_hand(cells, alpha, most, limit):
    assert limit_of(cells, alpha, most) == limit


@pytest.mark.generated
@given(pictures, st.integers(1, 20_000))
def test_fractions_shrink_from_the_first_that_is_expected_to_fit_down_to_one_that_must(picture, limit):
    tokens, cells = picture
    fractions = list(fractions_to_try(tokens, cells, limit))
    assert all(1 > larger > smaller > 0 for larger, smaller in itertools.pairwise(fractions))
    assert min(tokens * fractions[0] ** EXPONENT, cells * fractions[0]) <= limit
    assert cells * fractions[-1] <= limit, "so few cells fit whatever their tiling is"


@pytest.mark.generated
@given(pictures, st.integers(1, 20_000), st.integers(0, 20_000))
def test_a_larger_limit_tries_the_same_pictures_and_perhaps_larger_ones_first(picture, limit, more):
    """This is what makes the choice monotone: the first that fits a limit also fits a larger one."""
    few, many = (list(fractions_to_try(*picture, most)) for most in (limit, limit + more))
    assert many[len(many) - len(few) :] == few
