"""Value distillation: cross-entropy to next-token distributions tilted by a value of prefixes, all tokens at once.

After value-guided decoding (arXiv:2310.17022) and Q# (arXiv:2502.20548), whose guided policy is the target here and
is trained into the weights. With the value of best-of-N's weight the target is BOND's (arXiv:2407.14622).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.credits import Credits
from nonpareil.maths.tilted_targets import excess_and_normaliser, target_kl, tilted_cross_entropy
from nonpareil.methods.base import ScoredDraws
from nonpareil.methods.credited import CreditedDraws, CreditedMethod, NextTokens, joined, trained_credits
from nonpareil.settings import option


@dataclass(frozen=True)
class ValueDistillation(CreditedMethod):
    """At every position of stored reference completions, KL(q || pi) with q_a ~ pi_ref(a) exp(strength A_a).

    `A` are the advantages of the completions' credits. With the true value of best-of-N's weight (or of an
    exponential tilt) and strength 1, the policy that has learnt every position is best-of-N (or the tilt).
    Of a value that is wrong by b, which depends on the prefix, it ends at log-probs that are off by
    strength * b(s, a), less its log-mean-exp under the target.

    `prefix_weight`: each position counts exp(strength (V(s) - V(prompt))) times, as often as the target comes
    there. A completion's gradient is then, on average over the reference, that of KL(tilted reference || policy) of
    whole completions, with the true value and strength 1. Without it positions count as often as the reference
    comes there: less noise, and the same target at each.

    `tilted_start`: the policy begins not at the reference but with each token's log-prob raised by its mean
    advantage over the credits, in an output layer that is then its own (`training.tilted_start`). Reference and
    loss are the same.

    Raises:
        ConfigError: a setting out of its range.
    """

    training_defaults: ClassVar = {
        "learning_rate": 2e-4,  # a few hundred steps at a policy gradient's 3e-6 leave the reference where it is
        "warmup_steps": 0.06,  # of all steps
        "adam_beta2": 0.98,
        "max_grad_norm": 3.0,
    }

    strength: float = option(1.0, "Of the tilt: advantages count so many times.", above=0)
    max_advantage: float = option(2.0, "Advantages are cut at plus and minus this, nats.", above=0)
    prefix_weight: bool = option(False, "Weigh positions by how often the tilted policy comes there.")
    tilted_start: bool = option(
        False, "Begin with a vocabulary tilt that is counted from the credits, in an output layer of its own."
    )

    def next_token_loss(self, tokens: NextTokens) -> Float[Tensor, " q"]:
        """sum_a q_a (log pi_ref(a) - log pi(a)), nats: 0 at the reference."""
        tilt = excess_and_normaliser(tokens.weights, tokens.advantages, self.strength, self.max_advantage)
        loss = tilted_cross_entropy(tokens.log_ratio, tokens.kl_from_reference, *tilt)
        return loss * self._counts(tokens.prefix_values)

    def target_tilt(self, advantages: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Cut as in the loss, times the strength."""
        return self.strength * advantages.clamp(-self.max_advantage, self.max_advantage)

    def tells(self, credits: Credits) -> bool:
        """Whether some candidate with a weight has an advantage."""
        return bool(((credits.weights != 0) & (credits.advantages != 0)).any())

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """Of the reference's next tokens at all positions that are trained on; `target_kl` of whole completions.

        `target_kl` is by how much the loss can fall, nats: the share -loss / target_kl is learnt. Beyond 1 it is
        the noise of candidates drawn from the tail that is learnt.
        """
        assert isinstance(draws, CreditedDraws)
        every = [credits for _, _, credits in trained_credits(draws)]
        if not every:
            return {}
        weights, advantages = (joined(every, name).double() for name in ("weights", "advantages"))
        _, normaliser = excess_and_normaliser(weights, advantages, self.strength, self.max_advantage)
        kls = target_kl(weights, advantages, self.strength, self.max_advantage)
        kls = kls * self._counts(joined(every, "prefix_values").double())
        mass = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        return {
            "value/mean_abs_advantage": (weights * advantages.abs()).sum().item() / mass.item(),
            "value/clipped_ratio": weights[advantages.abs() > self.max_advantage].sum().item() / mass.item(),
            "value/candidate_mass": mass.item() / len(weights),
            "value/normaliser": normaliser.mean().item(),
            "value/normaliser_std": normaliser.std(unbiased=False).item(),
            "value/target_kl": kls.sum().item() / len(every),
        }

    def _counts(self, prefix_values: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """How often each position counts."""
        return (self.strength * prefix_values).exp() if self.prefix_weight else torch.ones_like(prefix_values)
