"""A policy guided by a value of prefixes: what it draws and what its KL is are known, and it is never on disk."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.commands.value.named import check_named, described, load_named
from nonpareil.engines.checks import check_prompts, refuse_changed_draws
from nonpareil.engines.guidance import GUIDED, Guide
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.maths.guidance import Guidance
from nonpareil.models.loading import stated_limits, widened
from nonpareil.models.pretrained import read_config
from nonpareil.records import Prompt, SamplingParams
from nonpareil.values.model import ModelValue, read_notes
from nonpareil.values.settings import CreditSettings

MAX_TOKENS = 4096
"""Of a pass of the value over stored completions."""


class GuidedPolicy(LocalPolicy):
    """A policy, the value of its prefixes, and the n as often as whose best-of-n it is to win.

    The target is the exponential tilt: of all policies that win so often the one with the least KL.
    """

    def __init__(self, policy: LocalPolicy, value: str, n: int, law: Guidance):
        """Reads what the value is of; none of its weights. `value`: a folder, or a function that makes one.

        Raises:
            ModelError, DataError: no value, or a damaged one.
            ConfigError: the value of another policy, or no such function.
        """
        super().__init__(
            policy.name_or_path,
            policy.revision,
            policy.dtype,
            trust_remote_code=policy.trust_remote_code,
        )
        self.value, self.law = value, law
        self.target = CreditSettings(target_n=float(n))
        check_named(value, self)

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """As of the policy alone; the value must be of this temperature and have room for prompt and completion."""
        super().check(prompts, sampling)
        refuse_changed_draws(sampling, f"{GUIDED} (value={self.value!r})")
        check_named(self.value, self, sampling.temperature)
        if Path(self.value).expanduser().is_dir():
            subject = f"value={self.value!r} has no readable config"
            config = read_config(self.value, None, subject=subject, trust_remote_code=self.trust_remote_code)
            window = stated_limits(config)[0]
            room = None if window is None else window - len(read_notes(self.value).first_ids)
            check_prompts(prompts, sampling.max_completion_length, room)

    @cached_property
    def guidance(self) -> dict[str, Any]:
        """What decides the law, beside the policy."""
        target = {"target": self.target.target, "n": self.target.target_n}
        return {"value": {**described(self.value, self.target), **target}, **asdict(self.law)}

    def info(self) -> dict[str, Any]:
        """The policy, the value and the law, so that groups of other guidance are never taken for this one's."""
        return {**super().info(), "guidance": self.guidance}

    def guide(self, products: torch.dtype | None = None) -> Guide:
        """The value, loaded now, and the law; `products`: as of `load`."""
        value = load_named(self.value, self.target, self, MAX_TOKENS)
        if products is not None and isinstance(value, ModelValue):
            widened(value.network, products)
        return Guide(value, self.law)

    def engine(self, max_tokens_per_batch: int) -> TransformersEngine:
        """The engine over policy and value, which are loaded now."""
        return TransformersEngine(
            self.load(), self.tokenizer, max_tokens_per_batch=max_tokens_per_batch, guide=self.guide()
        )
