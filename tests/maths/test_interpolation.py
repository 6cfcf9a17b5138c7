"""Curves between points: met where they first reach a value, and never beyond their points."""

import torch

from nonpareil.maths.interpolation import first_reached, invert_rising, value_at

NODES = torch.tensor([0.0, 1, 2, 3, 4], dtype=torch.float64)


def at(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_a_falling_curve_is_met_where_it_first_rises() -> None:
    values = torch.tensor([[0.5, 0.7, 0.6, 0.9, 0.8]], dtype=torch.float64)
    for target, (low, high) in {0.65: (0, 1), 0.7: (1, 1), 0.75: (2, 3), 0.9: (3, 3)}.items():
        position = first_reached(NODES, values, at(target))
        assert low - 1e-6 <= position.item() <= high + 1e-6
        torch.testing.assert_close(value_at(NODES, values, position), at(target))
    beyond = first_reached(NODES, values, at(0.91))
    assert beyond.isnan().all()
    assert value_at(NODES, values, beyond).isnan().all()


def test_of_a_rising_curve_it_is_the_inverse_and_a_straight_line_is_met_exactly() -> None:
    rising = torch.tensor([[0.0, 0.3, 0.5, 0.9, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0]], dtype=torch.float64)
    target = torch.tensor([0.62, 0.62], dtype=torch.float64)
    position = first_reached(NODES, rising, target)
    torch.testing.assert_close(position, invert_rising(NODES, rising, target))
    torch.testing.assert_close(position[1], torch.tensor(2.48, dtype=torch.float64))


def test_between_neighbours_it_has_no_values_but_theirs_and_those_between() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(200, 5, generator=generator, dtype=torch.float64)
    for place in range(4):
        low, high = values[:, place : place + 2].aminmax(dim=1)
        for share in (0.1, 0.5, 0.9):
            found = value_at(NODES, values, torch.full((200,), place + share, dtype=torch.float64))
            assert ((found >= low - 1e-12) & (found <= high + 1e-12)).all()
