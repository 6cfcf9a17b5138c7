"""A policy guided by a value of prefixes: what it draws and what its KL is are known, and it is never on disk."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.engines.checks import check_prompts
from nonpareil.engines.guidance import Guide
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.maths.guidance import Guidance
from nonpareil.maths.target_weights import TargetLaw
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import stated_limits, widened
from nonpareil.models.pretrained import read_config
from nonpareil.records import Prompt, SamplingParams
from nonpareil.values.model import check_value_of, load_value, read_notes

TARGET: TargetLaw = "tilt"
"""Of all policies that win as often as best-of-n the one with the least KL."""


class GuidedPolicy(LocalPolicy):
    """A policy, the value of its prefixes in a folder, and the n whose best-of-n it is guided towards."""

    def __init__(self, policy: LocalPolicy, value: str, n: int, law: Guidance):
        """Reads what the value is of; none of its weights.

        Raises:
            ModelError, DataError: no value, or a damaged one.
            ConfigError: the value of another policy.
        """
        super().__init__(
            policy.name_or_path,
            policy.revision,
            policy.dtype,
            trust_remote_code=policy.trust_remote_code,
        )
        self.value, self.n, self.law = value, n, law
        check_value_of(read_notes(value), self.fingerprint, f"value={value!r}")

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """As of the policy alone; the value must have room for prompt and completion too."""
        super().check(prompts, sampling)
        subject = f"value={self.value!r} has no readable config"
        config = read_config(self.value, None, subject=subject, trust_remote_code=self.trust_remote_code)
        check_prompts(prompts, sampling.max_completion_length, stated_limits(config)[0])

    def info(self) -> dict[str, Any]:
        """The policy, the value and the law, so that groups of other guidance are never taken for this one's."""
        own = fingerprint(self.value, trust_remote_code=self.trust_remote_code)
        value = {"fingerprint": own, "target": TARGET, "n": self.n}
        return {**super().info(), "guidance": {"value": value, **asdict(self.law)}}

    def guide(self, products: torch.dtype | None = None) -> Guide:
        """The value, loaded now, and the law; `products`: as of `load`."""
        value = load_value(self.value, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        if products is not None:
            widened(value.model, products)
        return Guide(value.at(self.n, TARGET), self.law)

    def engine(self, max_tokens_per_batch: int) -> TransformersEngine:
        """The engine over policy and value, which are loaded now."""
        return TransformersEngine(
            self.load(), self.tokenizer, max_tokens_per_batch=max_tokens_per_batch, guide=self.guide()
        )
