"""`--engine ray`: the transformers engine and the rewards in the workers of a Ray cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonpareil.commands.inputs import load_reward
from nonpareil.commands.policies.local import LocalPolicy, local_policy
from nonpareil.engines.decoding import TEXT
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.devices import best_device
from nonpareil.models.endings import Endings
from nonpareil.rollouts.cluster import ShardWorkers, check_alike
from nonpareil.rollouts.ray import RayPool

if TYPE_CHECKING:
    from nonpareil.options.sample import SampleOptions
    from nonpareil.rewards.combine import CombinedReward


class RayPolicy(LocalPolicy):
    """A policy that this process checks and the workers of a cluster draw from."""

    def __init__(self, options: "SampleOptions"):
        """Refuses numbers of workers that cannot work.

        Raises:
            ConfigError: as `RayPool`.
            ModelError: as `LocalPolicy`.
        """
        gpus = options.gpus_per_worker
        if gpus is None:
            gpus = 1 if best_device().type == "cuda" else 0
        cpus = 1 if options.cpus_per_worker is None else options.cpus_per_worker
        self.pool = RayPool(options.num_workers, cpus, gpus, options.ray_address)
        self.pool.check()
        super().__init__(
            options.model_name_or_path or "",
            options.model_revision,
            options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        self.check_drawable()
        self._options = options

    def drawn_by(self, max_tokens_per_batch: int) -> ShardWorkers:
        """What draws and scores, a shard at a time; nothing is started before there is something to do."""
        info = self.info()
        return ShardWorkers(
            _EngineOfWorker(self._options, info, self.endings),
            _RewardOfWorker(self._options),
            {"engine": "transformers", "dtype": info["dtype"], **TEXT},
            self.pool.map,
        )


@dataclass(frozen=True)
class _EngineOfWorker:
    options: "SampleOptions"
    info: dict[str, Any]
    endings: Endings | None

    def __call__(self) -> TransformersEngine:
        options = self.options
        policy = local_policy(options)
        policy.endings = self.endings  # decided from all prompts, where the run began
        check_alike("policy", policy.info(), self.info)
        return policy.engine(options.max_tokens_per_batch)


@dataclass(frozen=True)
class _RewardOfWorker:
    options: "SampleOptions"

    def __call__(self) -> "CombinedReward":
        options = self.options
        skips = options.reward_skip_special_tokens
        return load_reward(options, local_policy(options).tokenizer if skips else None)
