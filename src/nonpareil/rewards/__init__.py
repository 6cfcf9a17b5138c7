"""Rewards: classification models, Python functions, endpoints and judges, alone or as a weighted sum.

The names below are imported when first used: the worker process of a function starts without torch.
"""

import importlib
from typing import Any

_PUBLIC = {
    "CombinedReward": "nonpareil.rewards.combine",
    "FunctionReward": "nonpareil.rewards.functions.function",
    "JudgeReward": "nonpareil.rewards.judge.judge",
    "RemoteReward": "nonpareil.rewards.endpoints.json_protocol",
    "Reward": "nonpareil.rewards.base",
    "RewardModel": "nonpareil.rewards.models.transformers",
    "ServedRewardModel": "nonpareil.rewards.models.served",
    "VLLMRewardModel": "nonpareil.rewards.models.vllm",
    "load_function": "nonpareil.user_code.load",
    "load_rewards": "nonpareil.rewards.specs",
    "special_tokens": "nonpareil.rewards.skipped_tokens",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
