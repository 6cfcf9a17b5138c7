"""BoNBoN (arXiv:2406.00832): SFT on the best of n and a contrast of best and worst, from stored groups."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from nonpareil.maths.losses import imitation_loss, pairwise_logistic_loss, pairwise_margin_loss
from nonpareil.methods.base import BEST_OF_1, Method, ScoredDraws, Targets, best_draw, no_draw
from nonpareil.methods.imitation import of_trained
from nonpareil.settings import option

Contrast = Literal["ipo", "dpo"]


@dataclass(frozen=True)
class BoNBoNTargets(Targets):
    """Best, worst and a random one of each of the c = m // n subgroups of a stored group."""

    best: Bool[Tensor, "b c m"]
    worst: Bool[Tensor, "b c m"]
    """One where best and worst differ and the contrast weighs something."""
    control: Bool[Tensor, "b c m"]
    """One where the SFT term weighs something."""
    reference_token_logprobs: Float[Tensor, "b m t"]


@dataclass(frozen=True)
class BoNBoN(Method):
    """Stored groups of m >= n reference draws: each n of them give one pair of best and worst.

    So one sampling pass serves several n, and groups of 16 give two pairs at n = 8. `contrast`: `ipo` is the
    paper's loss, `dpo` what its released code runs in its place (its gradient is some 2,600 times smaller at
    first). `sft_weight` weighs the SFT term, the contrast has the rest. The margin follows from n.

    Where all n rewards tie there is no pair, and the SFT term has no winner to tell: it counts the winner less a
    random draw of the n, with a pull to the reference for what that takes off (the same expected gradient, see
    `methods.imitation`), and of two equal draws takes one, so that such an n adds the pull alone. With `sft_weight`
    near 1 this one draw makes more noise than `sft_bon`, which takes the mean of n.

    The minimiser of the IPO term alone is not best-of-n (at n = 8: win rate .814, KL .879; docs/papers.md#bonbon).

    Raises:
        ConfigError: n below 2, sft_weight outside [0, 1], or another word for `contrast`.
    """

    n: int = option(8, "The target is best-of-n.", at_least=2, why=BEST_OF_1)
    contrast: Contrast = option("ipo", "The paper's loss, or the one of its code.")
    sft_weight: float = option(
        0.005, "Weight of the SFT term; the contrast has the rest.", at_least=0, at_most=1
    )

    stored_groups: ClassVar = "required"

    @property
    def smallest_group(self) -> int:
        """Fewest completions of a stored group."""
        return self.n

    @property
    def inert_settings(self) -> dict[str, str]:
        """SFT alone has no contrast."""
        return {"contrast": "sft_weight=1"} if self.sft_weight == 1 else {}

    def targets(self, draws: ScoredDraws) -> BoNBoNTargets:
        """A subgroup with a failed reward takes no part; one whose rewards are all equal gives no pair."""
        m = draws.anchor_rewards.shape[1]
        rewards, ties = self._subgroups(draws.anchor_rewards), self._subgroups(draws.tie_breaker)
        complete = ~rewards.isnan().any(-1, keepdim=True)
        pair = (rewards.amax(-1) > rewards.amin(-1))[..., None]  # False where one is NaN
        used = complete if self.sft_weight > 0 else pair
        best = self._in_group(best_draw(rewards, ties) & used, m)
        worst = self._in_group(best_draw(-rewards, ties) & pair & (self.sft_weight < 1), m)
        # Equal draws are told apart by the same numbers: where all tie, this is the best one.
        control = self._in_group(best_draw(torch.zeros_like(rewards), ties) & used & (self.sft_weight > 0), m)
        trained = (best | worst | control).any(1)
        return BoNBoNTargets(
            train_policy=no_draw(draws.policy_rewards),
            train_anchor=trained,
            signal=pair.any((-1, -2)),
            best=best,
            worst=worst,
            control=control,
            reference_token_logprobs=of_trained(draws, trained),
        )

    def _subgroups(self, values: Float[Tensor, "b m"]) -> Float[Tensor, "b c n"]:
        """Each n of a group; what is left over is left out."""
        b, m = values.shape
        c = m // self.n
        return values[:, : c * self.n].reshape(b, c, self.n)

    def _in_group(self, chosen: Bool[Tensor, "b c n"], m: int) -> Bool[Tensor, "b c m"]:
        """A subgroup's mask as one over its whole group: the i-th stands in the i-th n of it."""
        own = torch.eye(chosen.shape[1], dtype=torch.bool, device=chosen.device)  # [c, c]
        places = (chosen[:, :, None] & own[..., None]).flatten(2)  # [b, c, c n]
        return pad(places, (0, m - places.shape[2]))

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b 0 t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: BoNBoNTargets,
    ) -> Float[Tensor, " b"]:
        """sft_weight L_SFT + (1 - sft_weight) L_contrast, a mean over the group's n's; log-probs are summed."""
        reference = targets.reference_token_logprobs
        log_ratio = (anchor_logprobs - reference).sum(-1)[:, None]
        best, worst = ((log_ratio * mask).sum(-1).flatten() for mask in (targets.best, targets.worst))
        contrast_loss = pairwise_margin_loss if self.contrast == "ipo" else pairwise_logistic_loss
        pairs, used = targets.worst.any(-1), targets.best.any(-1)
        contrast = torch.where(pairs, contrast_loss(best, worst, self.n).view_as(pairs), 0.0)
        winners, pull = (mask.to(log_ratio.dtype).sum(1) for mask in (targets.best, targets.control))
        sft = imitation_loss(anchor_logprobs, reference, winners - pull, pull).sum(-1)
        total = self.sft_weight * sft + (1 - self.sft_weight) * contrast.sum(-1)
        return total / used.sum(-1).clamp(min=1)

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """How many subgroups gave no pair."""
        rewards = self._subgroups(draws.anchor_rewards)
        return {"bonbon/no_pair_ratio": 1 - (rewards.amax(-1) > rewards.amin(-1)).float().mean().item()}
