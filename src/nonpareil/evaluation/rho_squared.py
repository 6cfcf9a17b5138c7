"""rho squared: how nearly the log-ratio follows the reward's quantile, on the reference's own completions."""

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.quantile_correlation import draw_covariance, quantile_covariance, quantile_variance


def rho_squared_of(
    log_ratio: Float[Tensor, "b m"], rewards: Float[Tensor, "b m"], bootstrap: Bootstrap
) -> Interval | None:
    """The squared correlation, within prompts, of log pi - log pi_ref with the quantile u of the reward.

    Both of the reference's completions; failed rewards (NaN) are left out with their completion. It is
    `Cov(l, u)^2 / (Var(l) Var(u))`, each a mean over prompts; negative where the covariance is. For a policy
    proportional to `pi_ref exp(s l)`, s towards 0, the win rate is `1/2 + s Cov(l, u)`, the KL `s^2 Var(l) / 2`,
    and the least KL for that win rate `(s Cov(l, u))^2 / (2 Var(u))`: their ratio, the KL efficiency, is this.

    None where the log-ratio or the reward is the same throughout every prompt, where rewards tie and no prompt has
    three, or with fewer than two.
    """
    moments = [
        quantile_covariance(log_ratio, rewards),
        draw_covariance(log_ratio, log_ratio, rewards),
        quantile_variance(rewards),
    ]
    known = torch.stack(moments, 1)
    known = known[~known.isnan().any(1)]
    if not len(known) or bool((known[:, 1:].mean(0) <= 0).any()):
        return None
    return bootstrap.of_means(moments, _signed_square)


def _signed_square(means: Tensor) -> Tensor:
    """With its sign: where there is none its estimate is 0 on average, and a policy against the reward is seen."""
    covariance, of_log_ratio, of_quantile = means.unbind(1)
    return covariance * covariance.abs() / (of_log_ratio * of_quantile)
