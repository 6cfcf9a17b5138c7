"""What a method is: which draws it needs, what it makes of their rewards, and its loss. Numbers only, no models."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.settings import check_settings

BEST_OF_1 = "best-of-1 is the reference itself"
"""Why no method's n is below 2."""


@dataclass(frozen=True)
class ScoredDraws:
    """One training step's draws for b prompts: k of the policy, m of the anchor (or of a stored group).

    Log-probabilities are nats under the distribution that was drawn from, temperature applied.
    """

    policy_rewards: Float[Tensor, "b k"]
    """float64, as the anchor's, so that close rewards do not tie; NaN where the reward failed."""
    anchor_rewards: Float[Tensor, "b m"]
    policy_token_logprobs: Float[Tensor, "b k t"]
    """log pi of each token as it was drawn; 0 behind the completion's end."""
    completion_mask: Bool[Tensor, "b k t"]
    """True on the tokens of the policy's completions, the end token included."""
    anchor_logprobs_of_policy: Float[Tensor, "b k"]
    """log anchor of the policy's draws, summed over the completion."""
    anchor_token_logprobs: Float[Tensor, "b m t"]
    """log anchor of each token of the anchor's own draws, 0 behind the end; nothing where the reward is NaN."""
    tie_breaker: Float[Tensor, "b m"]
    """Independent uniform numbers: equal anchor rewards are ordered by them."""

    @property
    def log_ratio(self) -> Float[Tensor, "b k"]:
        """log pi - log anchor of the policy's draws, summed over the completion; no gradient."""
        return self.policy_token_logprobs.sum(-1) - self.anchor_logprobs_of_policy

    @property
    def rewards_differ(self) -> Bool[Tensor, " b"]:
        """True where two rewards of the prompt differ, of the policy's and the anchor's draws together."""
        return rewards_differ(torch.cat([self.policy_rewards, self.anchor_rewards], dim=1))

    @property
    def anchor_logprobs(self) -> Float[Tensor, "b m"]:
        """log anchor of the anchor's own draws, summed over the completion; nothing where the reward is NaN."""
        return self.anchor_token_logprobs.sum(-1)

    def select(self, rows: list[int]) -> Self:
        """The draws for some prompts, in the order given."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Targets:
    """What the loss needs besides log-probs; computed over all prompts of a step before it is split for memory."""

    train_policy: Bool[Tensor, "b k"]
    """True where the loss needs the log-prob of a policy draw; all False where a prompt cannot be used."""
    train_anchor: Bool[Tensor, "b m"]
    signal: Bool[Tensor, " b"] | None = field(default=None, kw_only=True)
    """False where the prompt's rewards tell nothing, as where all tie: it adds a pull to the anchor at most.

    A step in which no prompt has any moves nothing. None: every prompt that is trained on has some.
    """

    def select(self, rows: list[int]) -> Self:
        """The targets of some prompts, in the order given."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> Self:
        """The targets on a device; what was worked out of rewards in float64 is float32 there, as log-probs are."""
        return self._each(lambda v: v.to(device, torch.float32 if v.is_floating_point() else None))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        made: dict[str, Any] = {name: None if v is None else function(v) for name, v in values.items()}
        return type(self)(**made)


@dataclass(frozen=True)
class PolicyGradientTargets(Targets):
    """Those of a method that weighs the policy's own draws; the table of completions shows what each was worth."""

    advantages: Float[Tensor, "b k"]
    """What a draw is worth, less a baseline: nats, but for RLOO, which has units of the reward."""


class Method(ABC):
    """A way to move the policy towards best-of-N of the anchor; a frozen dataclass, whose fields are its settings.

    Every setting has a default. What a class does not say is as it stands here; class variables and fields may take
    the place of properties (`policy_draws: ClassVar = 1`).
    """

    anchor_ema_rate: ClassVar[float | None] = None
    """The anchor's default EMA rate; None: the anchor is the fixed reference, and may not be set to move."""
    stored_groups: ClassVar[Literal["refused", "optional", "required"]] = "refused"
    """Whether stored groups may be the anchor's draws; where they are optional, `stored` must be a field."""
    unread_with_groups: ClassVar[tuple[str, ...]] = ()
    """Settings that nothing reads where groups are stored; they are refused by name."""
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of a training that `nonpareil distill` and `compare` take in place of their own defaults."""
    follows_reward_scale: ClassVar[bool] = False
    """Whether a reward twice as large is another one to the method; what compares ranks does not notice."""
    stored: bool = False
    """Whether stored groups are the anchor's draws; no setting, but set for methods that have it as a field."""
    num_iterations: int = 1
    """Optimizer steps on one batch of draws."""

    def __post_init__(self) -> None:
        """Check every setting by its type and limits (`settings.option`); what checks more calls this first.

        Raises:
            ConfigError: a setting that cannot be.
        """
        check_settings(self)

    @property
    def policy_draws(self) -> int:
        """k, completions drawn of the policy for each prompt and step."""
        return 0

    @property
    def anchor_draws(self) -> int:
        """m, completions drawn of the anchor; 0 where stored groups take their place."""
        return 0

    @property
    def needs_anchor(self) -> bool:
        """Whether training holds the anchor's weights: to draw from it, or to score draws under it."""
        return self.policy_draws + self.anchor_draws > 0

    @property
    def smallest_group(self) -> int:
        """Fewest completions of a stored group."""
        return 1

    @property
    def inert_settings(self) -> Mapping[str, str]:
        """Settings that nothing reads beside the others' values, and why; refused by name where they are given."""
        return {}

    @property
    def hint_for_two_rewards(self) -> str | None:
        """What to say once, where the rewards turn out to have two values only."""
        return None

    @abstractmethod
    def targets(self, draws: ScoredDraws) -> Any:
        """The `Targets` (of a subclass of the method's own) of one batch, without gradients."""

    @abstractmethod
    def loss(
        self, policy_logprobs: Float[Tensor, "b k t"], anchor_logprobs: Float[Tensor, "b m t"], targets: Any
    ) -> Float[Tensor, " b"]:
        """One number per prompt. Log-probs are nats of each token; 0 behind the end and where not trained on."""

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """Numbers of the batch that tell whether the method does what its paper says, besides the common ones."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is saved beside weights: who reads it without the user's own class gets its name and settings."""
        cls, settings = type(self), {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        return _saved, (cls.__module__, cls.__qualname__, settings, repr(self))


def _saved(module: str, name: str, settings: dict[str, Any], shown: str) -> "Method | str":
    try:
        return attrgetter(name)(importlib.import_module(module))(**settings)
    except (ImportError, AttributeError, TypeError, ConfigError):
        return shown


def no_draw(rewards: Float[Tensor, "*b m"]) -> Bool[Tensor, "*b m"]:
    """False throughout: which of the draws with these rewards are trained on, where none is."""
    return torch.zeros_like(rewards, dtype=torch.bool)


def best_draw(rewards: Float[Tensor, "*b m"], tie_breaker: Float[Tensor, "*b m"]) -> Bool[Tensor, "*b m"]:
    """True at one draw per row: the best, ties broken by the larger `tie_breaker`; failed (NaN) never.

    A row without any valid reward is all False.
    """
    highest = rewards.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1, keepdim=True)
    candidates = torch.where(rewards == highest, tie_breaker, -1.0)
    best = torch.zeros_like(rewards, dtype=torch.bool).scatter(-1, candidates.argmax(-1, keepdim=True), True)
    return best & ~rewards.isnan()


def rewards_differ(rewards: Float[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """True where two rewards of the row differ; failed ones (NaN) are left out."""
    failed = rewards.isnan()
    highest, lowest = rewards.masked_fill(failed, -torch.inf), rewards.masked_fill(failed, torch.inf)
    return highest.amax(-1) > lowest.amin(-1)


def first_valid(rewards: Float[Tensor, "b m"], n: int) -> Bool[Tensor, "b m"]:
    """True at the first n draws of each row whose reward did not fail; a row that has fewer is all False."""
    valid = ~rewards.isnan()
    return valid & (valid.cumsum(-1) <= n) & (valid.sum(-1, keepdim=True) >= n)
