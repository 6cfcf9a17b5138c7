"""Value-guided decoding as a known law: the reference's next token, tilted by a value of the likeliest ones.

With a value V of prefixes, in nats, and A_a = strength (V(s, a) - V(s)), cut at +- max_advantage, the guided policy
is

    pi(a | s) = pi_ref(a | s) exp(A_a) / Z   for the K likeliest tokens,
    pi(a | s) = pi_ref(a | s) f / Z          for every other one, f = 1,

and Z makes the whole add up to 1. `balanced`, f is (1 - sum_top pi_ref exp(A)) / (1 - sum_top pi_ref), its
logarithm cut as A is.

A true value of a weight W, V(s) = log E_ref[W | s], has E_{a ~ pi_ref} exp(A_a) = 1. With K the whole vocabulary
and no cut Z is then 1, and the product of these distributions along a completion is pi_ref W / E_ref[W]: best-of-N
for W = N u^(N-1), without any search. With a smaller K the balanced f is what the other tokens are worth on
average, and Z is 1 still. With a value that is wrong all of them are other policies, but known ones: their
probabilities, and so their KL from the reference, are exact. A balanced f puts on the other tokens whatever the
values of the likeliest contradict V(s) by.

After FUDGE (arXiv:2104.05218) and controlled decoding (arXiv:2310.17022), which draw from the K alone.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.setting_types import check_value


@dataclass(frozen=True)
class Guidance:
    """How a value guides; see the module.

    Raises:
        ConfigError: a setting out of its range.
    """

    likeliest: int = 32
    """K; of a smaller vocabulary all tokens."""
    strength: float = 1.0
    max_advantage: float = 1.0
    """Nats; infinite for no cut."""
    balanced: bool = False
    """Whether f is what a true value would give the tokens that are not looked at; else it is 1."""

    def __post_init__(self) -> None:
        """See the class."""
        check_value("likeliest", self.likeliest, int, at_least=1)
        check_value("strength", self.strength, float, above=0)
        check_value("max_advantage", self.max_advantage, float, above=0, also=(math.inf,))

    def advantages(self, values: Float[Tensor, "*s k"], before: Float[Tensor, "*s"]) -> Float[Tensor, "*s k"]:
        """A of the candidates, from V(s, a) and V(s), nats."""
        cut = self.max_advantage
        return (self.strength * (values - before[..., None])).clamp(-cut, cut)

    def log_ratios(
        self, logprobs: Float[Tensor, "q k"], rest: Float[Tensor, " q"], advantages: Float[Tensor, "q k"]
    ) -> tuple[Float[Tensor, "q k"], Float[Tensor, " q"]]:
        """log pi - log pi_ref of each candidate, and of every other token, nats.

        Args:
            logprobs: of the candidates under the reference, nats.
            rest: all other tokens' probability together, 0 where there is none.
            advantages: as `advantages` gives them.
        """
        excess = (logprobs.exp() * torch.expm1(advantages)).sum(-1)
        if not self.balanced:
            log_normaliser = torch.log1p(excess)
            return advantages - log_normaliser[:, None], -log_normaliser
        # 1 - sum_top pi_ref exp(A) is rest - excess; written so, an A of 0 leaves the reference as it is.
        tilt = torch.log1p((-excess / rest).clamp(min=-1.0)).clamp(-self.max_advantage, self.max_advantage)
        tilt = torch.where(rest > 0, tilt, 0.0)
        others = torch.where(rest > 0, rest * torch.expm1(tilt), 0.0)
        log_normaliser = torch.log1p(excess + others)
        return advantages - log_normaliser[:, None], tilt - log_normaliser


def likeliest_tokens(
    logprobs: Float[Tensor, "q v"], count: int
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"], Float[Tensor, " q"]]:
    """The likeliest tokens, their log-probs, and the probability of all others together, 0 where there are none."""
    top = logprobs.topk(min(count, logprobs.shape[-1]), sorted=False)
    rest = logprobs.scatter(-1, top.indices, -torch.inf).exp().sum(-1)
    return top.indices, top.values, rest


def guided_logprobs(
    logprobs: Float[Tensor, "q v"],
    token_ids: Int[Tensor, "q k"],
    log_ratios: Float[Tensor, "q k"],
    others: Float[Tensor, " q"],
) -> Float[Tensor, "q v"]:
    """log pi over the vocabulary, nats, from the reference's and the log-ratios of candidates and other tokens."""
    tilted = logprobs.gather(-1, token_ids) + log_ratios
    return (logprobs + others[:, None]).scatter(-1, token_ids, tilted)


def guided_kl(
    logprobs: Float[Tensor, "q k"],
    rest: Float[Tensor, " q"],
    log_ratios: Float[Tensor, "q k"],
    others: Float[Tensor, " q"],
) -> Float[Tensor, " q"]:
    """KL(pi || pi_ref) of the next token, nats, exact; arguments as in `Guidance.log_ratios`."""
    probs = torch.cat([logprobs.exp(), rest[:, None]], -1)
    ratios = torch.cat([log_ratios, others[:, None]], -1)
    policy = probs * ratios.exp()
    return torch.where(policy > 0, policy * ratios, 0.0).sum(-1)
