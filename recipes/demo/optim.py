"""Muon for the matrices inside the layers, AdamW for the rest; one warm-up-stable-decay schedule for both."""

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR


class MuonWithAdamW(Optimizer):
    """Two optimizers behind one interface, as transformers.Trainer takes only one.

    Muon orthogonalises the update of a weight matrix (Jordan et al., 2024); embeddings, heads and
    norms are not such matrices and take AdamW.
    """

    def __init__(self, model: nn.Module, matrix_lr: float, other_lr: float, weight_decay: float):
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
        inside = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in inside]
        self.parts = [
            Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, momentum=0.95),
            AdamW(others, lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        super().__init__([*matrices, *others], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        # accelerate reloads our state dict, which replaces our groups by copies: pass the scheduled rates on.
        rates = iter(self.param_groups)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = next(rates)["lr"]
            part.step()


def warmup_stable_decay(optimizer: Optimizer, steps: int, warmup: int, decay: float) -> LambdaLR:
    """Linear warm-up, a plateau, and a linear fall to zero over the last `decay` fraction of the steps."""

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))

    return LambdaLR(optimizer, factor)
