"""The compiled way from maps to layouts gives the layouts of the plain one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code import PatchTokenizer
from apt_code.importance import IMPORTANCE_METHODS
from apt_code.selection import common


@given(
    size=st.tuples(st.integers(1, 230), st.integers(1, 230)),
    num_scales=st.integers(1, 4),
    method=st.sampled_from(["v1", "v2", "budget", "joint"]),
    importance_method=st.sampled_from(sorted(IMPORTANCE_METHODS)),
    alpha=st.sampled_from([0.0, 0.1, 0.3, 0.77, 1.0]),
    seed=st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore:alpha=")
def test_compiled_selection_lays_out_what_the_plain_code_does(
    size, num_scales, method, importance_method, alpha, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    images[:, :, : size[0] // 2] //= 64  # plain enough that many cells tie
    images[1, :, :, size[1] // 3 :] = 9
    tokenizer = PatchTokenizer(
        num_scales, 14, patch_selection_method=method, alpha=alpha, importance_method=importance_method
    )
    compiled = tokenizer.select_layouts(images)
    info = tokenizer.last_budget_info
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "can_compile", lambda values, dtype: False)
        expected = tokenizer.select_layouts(images)
    assert info == tokenizer.last_budget_info
    for found, wanted in zip(compiled, expected, strict=True):
        assert found.grid == wanted.grid
        assert torch.equal(found.patches, wanted.patches)
