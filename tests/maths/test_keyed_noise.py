"""Numbers of a key: the same wherever they are asked for."""

import numpy as np
import torch

from nonpareil.maths.keyed_noise import gumbel_noise, keys_after

KEYS = np.array([3, 2**64 - 1, 77, 2**63], dtype=np.uint64)


def test_rows_that_are_not_in_step_have_the_numbers_of_their_own_step() -> None:
    together = gumbel_noise(keys_after(KEYS, np.array([0, 5, 5, 1])), step=0, count=9)
    for row, step in enumerate([0, 5, 5, 1]):
        assert torch.equal(together[row], gumbel_noise(KEYS, step, 9)[row])


def test_the_numbers_are_those_of_every_release() -> None:
    """Worked out once: groups that are drawn again under their seed depend on them."""
    expected = torch.tensor([[1.1898887, -0.0111511, -0.8904625], [-0.3882469, -0.8572985, -0.1284575]])
    torch.testing.assert_close(gumbel_noise(KEYS[:2], step=2, count=3), expected, rtol=0, atol=1e-6)
