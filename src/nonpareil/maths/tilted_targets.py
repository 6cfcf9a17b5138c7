"""Next-token distributions tilted by a value, and the cross-entropy to them, from a few candidate tokens.

With a value V of prefixes, in nats, and A_a = V(s, a) - V(s), the target at a position is

    q_a = pi_ref(a) exp(beta A_a) / Z,   Z = E_{a ~ pi_ref} exp(beta A_a).

The true value of a weight W of completions, V(s) = log E_ref[W | s], has Z = 1 at beta = 1, and the product of
the targets along a completion is pi_ref W / E_ref[W]: best-of-N for W = N u^(N-1), the exponential tilt for
W = exp(c u). So a policy whose every next-token distribution is the target *is* best-of-N, without any search.

The value of a whole vocabulary is rarely known. Of candidates a_k with weights w_k under which a sum is, on
average, the expectation under pi_ref (`maths.vocabulary_sums`), the target is estimated by

    q_a = (pi_ref(a) + sum_k 1[a = a_k] e_k) / Z,   e_k = w_k (exp(beta A_k) - 1),   Z = 1 + sum_k e_k,

which is unbiased but for Z. It may be negative at a token: w_k of one that was drawn from the tail stands for more
than its own probability. The cross-entropy is linear in q, and so unbiased but for Z all the same. What is left out
(weights that add up to less than 1) keeps the reference's probability, up to Z.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.maths.scalars import at_least_float32

LEAST_NORMALISER = 0.4
"""Z is taken for no less: where all that may follow is worth less, a value contradicts itself, and 1 / Z would make
of that a large step. The target's mass is then below 1."""


def excess_and_normaliser(
    weights: Float[Tensor, "q k"], advantages: Float[Tensor, "q k"], strength: float, max_advantage: float
) -> tuple[Float[Tensor, "q k"], Float[Tensor, " q"]]:
    """e_k, by how much each candidate's target exceeds the reference's, and Z, at q positions; see the module.

    Args:
        weights: of a sum over the candidates.
        advantages: nats; beyond +- `max_advantage` they are cut.
        strength: beta.
        max_advantage: nats, before the strength.
    """
    excess = weights * torch.expm1(strength * advantages.clamp(-max_advantage, max_advantage))
    return excess, (1 + excess.sum(-1)).clamp(min=LEAST_NORMALISER)


def tilted_targets(
    reference_logits: Float[Tensor, "q v"],
    token_ids: Int[Tensor, "q k"],
    excess: Float[Tensor, "q k"],
    normaliser: Float[Tensor, " q"],
) -> Float[Tensor, "q v"]:
    """The target of each next token, over the whole vocabulary; with sampled candidates it may be negative."""
    return reference_logits.softmax(-1).scatter_add(-1, token_ids, excess) / normaliser[:, None]


def candidate_log_ratios(
    policy_logits: Float[Tensor, "q v"],
    reference_logits: Float[Tensor, "q v"],
    token_ids: Int[Tensor, "q k"],
) -> tuple[Float[Tensor, "q k"], Float[Tensor, " q"]]:
    """log pi - log pi_ref of the candidates, and KL(pi_ref || pi) of the next token, nats: all that the loss reads.

    Both are exactly 0 where policy and reference have the same logits.
    """
    policy, reference = (
        logits.to(at_least_float32(logits)).log_softmax(-1) for logits in (policy_logits, reference_logits)
    )
    probs = reference.exp()
    kl = (probs * (reference - policy).masked_fill(probs == 0, 0.0)).sum(-1)
    return policy.gather(-1, token_ids) - reference.gather(-1, token_ids), kl


def tilted_cross_entropy(
    log_ratio: Float[Tensor, "q k"],
    kl_from_reference: Float[Tensor, " q"],
    excess: Float[Tensor, "q k"],
    normaliser: Float[Tensor, " q"],
) -> Float[Tensor, " q"]:
    """sum_a q_a (log pi_ref(a) - log pi(a)) at each position, nats, from `candidate_log_ratios`.

    It is KL(q || pi) less KL(q || pi_ref), a constant: 0 at the reference, and least, -KL(q || pi_ref), at the
    target. Its gradient is that of KL(q || pi). Where sampled candidates make q negative at a token, it falls
    without bound as that token's probability goes to 0: right in expectation, and what many epochs learn by heart.
    """
    return (kl_from_reference - (excess * log_ratio).sum(-1)) / normaliser


def target_kl(
    weights: Float[Tensor, "q k"], advantages: Float[Tensor, "q k"], strength: float, max_advantage: float
) -> Float[Tensor, " q"]:
    """By how much `tilted_cross_entropy` can fall at each position, nats: KL(q || pi_ref) of its target.

    Where Z is at its floor the target q has mass M = Z / floor, below 1, and the loss is least at the policy q / M:
    it falls by M KL(q / M || pi_ref). Of sampled candidates an estimate, unbiased but for Z.
    """
    excess, normaliser = excess_and_normaliser(weights, advantages, strength, max_advantage)
    tilted = strength * advantages.clamp(-max_advantage, max_advantage)
    mass = (1 + excess.sum(-1)).clamp(min=0)  # of weights that add up to more than 1 it may be below 0
    return (((weights + excess) * tilted).sum(-1) - torch.xlogy(mass, mass)) / normaliser
