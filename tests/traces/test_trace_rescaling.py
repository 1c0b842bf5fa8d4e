import numpy as np
import pytest

from trimtab.traces.rescaling import rescale
from trimtab.traces.schema import RequestTrace


def made_trace(block_tokens: int = 512) -> RequestTrace:
    return RequestTrace.from_columns(
        arrival_s=[0.0, 1.0, 2.0],
        input_tokens=[1024, 1536, 100],
        output_tokens=[10, 1, 16],
        block_tokens=block_tokens,
        session=[3, 3, 4],
        prefix=([0, 2, 5, 5], np.array([1, 2, 1, 2, 3], np.uint64)),
    )


def test_lengths_and_blocks_become_shorter_alike() -> None:
    half = rescale(made_trace(), eighths=4, block_tokens=64)
    assert half.block_tokens == 64
    assert half.input_tokens.tolist() == [512, 768, 50]
    assert half.output_tokens.tolist() == [5, 1, 8]
    assert np.diff(half.prefix_offsets).tolist() == [8, 12, 0]
    assert half.session_ids.tolist() == [3, 3, 4]
    blocks = half.prefix_block_hashes
    assert (blocks[:8] == blocks[8:16]).all()
    assert np.unique(blocks).size == 12


def test_whole_lengths_may_have_finer_blocks() -> None:
    finer = rescale(made_trace(), eighths=8, block_tokens=32)
    assert finer.input_tokens.tolist() == [1024, 1536, 100]
    assert np.diff(finer.prefix_offsets).tolist() == [32, 48, 0]


@pytest.mark.parametrize(("eighths", "block_tokens"), [(0, 64), (9, 64), (4, 48), (4, 128)])
def test_blocks_that_do_not_fit_are_refused(eighths: int, block_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"got {eighths} and {block_tokens}"):
        rescale(made_trace(), eighths=eighths, block_tokens=block_tokens)
