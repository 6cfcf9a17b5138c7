"""A vocabulary tilt: one number per token, the same at every position, added to the logits of a policy.

    pi_s(a | state) = pi_ref(a | state) exp(s b_a) / Z_s(state)

The numbers are counted, not trained: b_a is the mean advantage of token a, `mean_advantages`. That is a natural
gradient step of an output bias, of J(b) = E_ref sum_t sum_a pi_b(a | s_t) A(s_t, a) at b = 0. As
E_{a ~ pi_ref} A(s, a) = 0 in every state,

    gradient_a = E_ref sum_t pi_ref(a | s_t) A(s_t, a),
    Fisher     = E_ref sum_t [diag(pi_ref(. | s_t)) - pi_ref(. | s_t) pi_ref(. | s_t)'],

and the exact step b solves, with n_a = E_ref sum_t pi_ref(a | s_t) how often a token comes,

    n_a b_a = gradient_a + E_ref sum_t pi_ref(a | s_t) bbar(s_t),   bbar(s) = E_{a ~ pi_ref} b_a.

The count leaves out the last term, the part of Fisher's matrix that is not diagonal: how good the tokens are that
might stand where this one does. Where all states have one law it is a constant, which no softmax sees, and the
count is the exact step.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_EXPONENT = 60.0
"""Of a tilt: s times the range of b. Its exponentials are then numbers in float32, whatever the policy."""


def mean_advantages(
    advantages: Float[Tensor, "*f v"], counts: Float[Tensor, "*f v"], damping: float
) -> Float[Tensor, "*f v"]:
    """The tilt b: each token's summed advantage over its count, nats.

    Args:
        advantages: summed over all occurrences of each token, weighted.
        counts: the occurrences, the weights summed.
        damping: so many occurrences of advantage 0 stand beside them: a token that is seen once or never stays put.
    """
    return advantages / (counts + damping)


class TiltFamily:
    """The policies pi_s of a tilt at several strengths s, which share one pass over the reference's logits."""

    def __init__(self, tilt: Float[Tensor, " v"], strengths: Float[Tensor, " g"]):
        """Both on the device and in the type of the logits to come.

        Args:
            tilt: b; what is added to the log-probs at strength 1, nats.
            strengths: s, not negative.
        """
        self.tilt, self.strengths = tilt, strengths
        exponents = tilt[:, None] * strengths
        self._largest = exponents.amax(0)
        factors = (exponents - self._largest).exp()
        self._columns = torch.cat([factors, factors * tilt[:, None]], dim=1)

    def steps(
        self, logits: Float[Tensor, "t v"], tokens: Int[Tensor, " t"]
    ) -> tuple[Float[Tensor, "t g"], Float[Tensor, "t g"]]:
        """Of each position: log pi_s - log pi_ref of its token, and KL(pi_s || pi_ref) of the whole step, nats.

        `logits` are the reference's, temperature applied.
        """
        partition, moment = (logits.softmax(-1) @ self._columns).chunk(2, dim=-1)
        log_partition = partition.log() + self._largest
        log_ratio = self.tilt[tokens][:, None] * self.strengths - log_partition
        return log_ratio, self.strengths * moment / partition - log_partition


def strength_grid(
    tilt: Float[Tensor, " v"], counts: Float[Tensor, " v"], mean_length: float, most_kl: float, size: int
) -> Float[Tensor, " g"]:
    """Evenly spaced strengths above 0, up to about where a completion's KL is `most_kl` nats.

    That is s^2 / 2 times the length times the variance of b over the tokens as counted: no less than that within a
    state, on average, so that the true KL is smaller but for higher orders. Zeros have the grid up to 1.
    """
    share = counts / counts.sum()
    variance = float((share * (tilt - (share * tilt).sum()).square()).sum())
    if variance <= 0:
        return torch.linspace(0, 1, size + 1, dtype=torch.float64)[1:]
    highest = (2 * most_kl / (mean_length * variance)) ** 0.5
    highest = min(highest, MOST_EXPONENT / float(tilt.amax() - tilt.amin()))
    return torch.linspace(0, highest, size + 1, dtype=torch.float64)[1:]


def at_strength(
    values: Float[Tensor, "n g"], strengths: Float[Tensor, " g"], strength: float
) -> Float[Tensor, " n"]:
    """Values between those of neighbouring strengths on a straight line; 0 at strength 0, as log-ratios are."""
    nodes = torch.cat([strengths.new_zeros(1), strengths])
    table = torch.cat([values.new_zeros(len(values), 1), values], dim=1)
    right = int(torch.searchsorted(nodes, torch.tensor(strength, dtype=nodes.dtype)).clamp(1, len(strengths)))
    share = (strength - float(nodes[right - 1])) / float(nodes[right] - nodes[right - 1])
    return table[:, right - 1] + share * (table[:, right] - table[:, right - 1])


def kl_at_strength(
    kl: Float[Tensor, "n g"], strengths: Float[Tensor, " g"], strength: float
) -> Float[Tensor, " n"]:
    """The same of KLs, nats: their roots lie on straight lines, since a KL grows with the square near 0."""
    return at_strength(kl.clamp(min=0).sqrt(), strengths, strength).square()


def effective_samples(log_ratios: Float[Tensor, "n g"]) -> Float[Tensor, " g"]:
    """Of how many plain draws a mean with the weights w = exp(log-ratio) is worth: (sum w)^2 / sum w^2."""
    return (2 * log_ratios.logsumexp(0) - (2 * log_ratios).logsumexp(0)).exp()


def first_reaching(
    values: Sequence[float], strengths: Sequence[float], target: float, start: float
) -> float | None:
    """The least strength at which values, `start` at strength 0 and straight between, reach a target; else None."""
    before, at = start, 0.0
    for value, strength in zip(values, strengths, strict=True):
        if value >= target:
            return at + (strength - at) * (target - before) / (value - before)
        before, at = value, strength
    return None
