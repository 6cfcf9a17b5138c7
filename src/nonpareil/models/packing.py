"""Completions of one prompt in one row of a pass, behind their prompt, which is so computed once.

Each completion's positions go on from the prompt's, and a mask lets it see the prompt and itself. A row with one
completion is the usual way to score, which every model takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

WIDEST = 8192
"""Most tokens of a row: the mask grows with their square."""
ATTENTION_WIDTH = 2048
"""About as wide a row spends as much on attention, of every token to every token, as on all else."""
LEAST_SAVED = {"cpu": 1 / 8}
"""The share of a step's cost that sharing must save, by device."""
LEAST_SAVED_ELSEWHERE = 1 / 2
"""Accelerators have faster attention for rows without a mask."""
LEAST_TOKENS = 256
"""What it must save at all, since the model has to be asked."""


def completions_per_row(
    prompts: Sequence[int], completions: Sequence[Sequence[int]], device: str, widest: int = WIDEST
) -> int:
    """How many completions of a prompt share a row, at most; 1 where that would not pay.

    A row costs its tokens, times 1 + width / `ATTENTION_WIDTH`.

    Args:
        prompts: the length of each.
        completions: those of each prompt's completions.
        device: the kind it is computed on.
        widest: most tokens of a row that is shared.
    """
    largest = max(map(len, completions), default=0)
    doubling = [2**power for power in range(1, largest.bit_length()) if 2**power < largest]
    counts = [*doubling, largest] if largest > 1 else []
    costs = {count: _cost(prompts, completions, count, min(widest, WIDEST)) for count in counts}
    if not costs:
        return 1
    alone = _cost(prompts, completions, 1, WIDEST)
    best = min(costs, key=lambda count: costs[count])
    saved = alone - costs[best]
    least = max(LEAST_TOKENS, LEAST_SAVED.get(device, LEAST_SAVED_ELSEWHERE) * alone)
    return best if saved >= least else 1


def even_sizes(count: int, most: int) -> list[int]:
    """So many completions in as few rows as hold `most` each, evenly."""
    rows = -(-count // most)
    return [count // rows + (row < count % rows) for row in range(rows)]


def row_width(prompt: int, completions: Sequence[int]) -> int:
    """Tokens of a row; where a prompt is shared, no completion's last token, which predicts nothing, is in it."""
    shared = len(completions) > 1
    return prompt + sum(completions) - shared * len(completions)


def _cost(prompts: Sequence[int], completions: Sequence[Sequence[int]], most: int, widest: int) -> float:
    cost = 0.0
    for prompt, lengths in zip(prompts, completions, strict=True):
        start = 0
        for size in even_sizes(len(lengths), most) if lengths else []:
            width = row_width(prompt, lengths[start : start + size])
            if size > 1 and width > widest:
                return float("inf")
            cost += width * (1 + width / ATTENTION_WIDTH)
            start += size
    return cost


@dataclass(frozen=True)
class PackedRows:
    """What a pass over shared rows is given; padded on the right."""

    input_ids: Int[Tensor, "b t"]
    position_ids: Int[Tensor, "b t"]
    attention_mask: Bool[Tensor, "b 1 t t"]
    """True where the token of a row (third axis) sees another (last axis)."""
    predicting: Int[Tensor, " n"]
    """Where in the flattened rows the state lies that predicts each completion token, in the completions' order."""

    def inputs(self, *, additive: torch.dtype | None = None) -> dict[str, Tensor]:
        """Arguments of a forward pass; `additive`: the type of a mask that is added to attention's scores."""
        mask: Tensor = self.attention_mask
        if additive is not None:
            hidden = torch.finfo(additive).min
            mask = torch.zeros_like(mask, dtype=additive).masked_fill_(~mask, hidden)
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "attention_mask": mask}


def pack(
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    sizes: Sequence[int],
    device: torch.device,
) -> PackedRows:
    """Completions and the prompt of each; `sizes`: how many consecutive ones, of one prompt, share each row.

    Raises:
        ValueError: completions of several prompts in one row, or sizes that are not all of them.
    """
    if sum(sizes) != len(completion_ids):
        raise ValueError(f"rows of {list(sizes)} completions, and {len(completion_ids)} of them")
    ids, positions, owners, predicting = [], [], [], []
    start = 0
    for size in sizes:
        prompt, members = prompt_ids[start], completion_ids[start : start + size]
        if any(other != prompt for other in prompt_ids[start : start + size]):
            raise ValueError("completions of several prompts in one row")
        ids.append([*prompt, *(token for member in members for token in member[:-1])])
        counted = [range(len(prompt), len(prompt) + len(member) - 1) for member in members]
        positions.append([*range(len(prompt)), *(place for places in counted for place in places)])
        owners.append([0] * len(prompt) + [n for n, part in enumerate(counted, 1) for _ in part])
        at = len(prompt)
        places = []
        for part in counted:
            places.append([len(prompt) - 1, *range(at, at + len(part))])
            at += len(part)
        predicting.append(places)
        start += size
    width = max(map(len, ids))
    flat = [row * width + place for row, parts in enumerate(predicting) for part in parts for place in part]
    owner = _padded(owners, width, -1).to(device)
    column = torch.arange(width, device=device)
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    mask = seen & (column[:, None] >= column)
    return PackedRows(
        _padded(ids, width, 0).to(device),
        _padded(positions, width, 0).to(device),
        mask[:, None],
        torch.tensor(flat, device=device),
    )


def _padded(rows: Sequence[list[int]], width: int, filling: int) -> Int[Tensor, "b t"]:
    return torch.tensor([row + [filling] * (width - len(row)) for row in rows])
