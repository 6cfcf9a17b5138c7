"""Sums over the vocabulary from a few tokens: the likeliest, and some drawn from the rest.

What is expected of the next token is a sum over the vocabulary. The likeliest tokens give most of it exactly; the
rest of the vocabulary, the tail, is estimated from tokens drawn from it one after another, each by its probability
among those that are left. Of `r` such draws with probabilities p_1 .. p_r, the i-th alone gives an estimate of the
tail's sum: what the draws before it add to the sum, and f(a_i) for all the mass that was left. The mean of these
estimates is a weighted sum over the draws, so that for every f

    E_{a ~ pi} f(a) = E[sum_k w_k f(a_k)],   w = pi(a) of the drawn and the likeliest tokens,
                                             w_i = (mass left before i + (r - i) p_i) / r of the i-th from the tail.

The weights of a position add up to 1, whatever was drawn: a constant is exact. It is Des Raj's estimator ("Some
estimators in sampling with varying probabilities without replacement", 1956).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def next_token_candidates(
    logits: Float[Tensor, "q v"],
    drawn: Int[Tensor, " q"],
    noise: Float[Tensor, "q v"],
    likeliest: int,
    from_tail: int,
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"], Float[Tensor, "q k"]]:
    """Of each position k = 1 + likeliest + from_tail tokens that all differ, their log-probs and their weights.

    Args:
        logits: of the next token, at each of q positions.
        drawn: the token that stands there; it comes first.
        noise: standard Gumbel numbers: the largest of log-probs with noise are draws without replacement.
        likeliest: how many of the likeliest others come next.
        from_tail: how many are drawn from what is left, in their order; with 0 the weights add up to less than 1.

    Returns:
        Token ids; log-probs, nats; weights, of which the module tells.
    """
    logprobs = logits.log_softmax(-1)
    kept = logprobs.scatter(-1, drawn[:, None], torch.inf).topk(1 + likeliest).indices
    mass = logprobs.scatter(-1, kept, -torch.inf).exp().sum(-1, keepdim=True)
    # A token without any probability is drawn when there is no other, but none twice.
    perturbed = (logprobs + noise).clamp(min=torch.finfo(logprobs.dtype).min)
    tail = perturbed.scatter(-1, kept, -torch.inf).topk(from_tail).indices
    token_ids = torch.cat([kept, tail], -1)
    chosen = logprobs.gather(-1, token_ids)
    certain, draws = chosen.exp().split([1 + likeliest, from_tail], -1)
    left = (mass - (draws.cumsum(-1) - draws)).clamp(min=0)
    after = torch.arange(from_tail - 1, -1, -1, device=draws.device)
    return token_ids, chosen, torch.cat([certain, (left + after * draws) / max(1, from_tail)], -1)
