"""Draw a step's completions with vLLM, which is given policy and anchor anew whenever they have moved."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.canary import Canary, canary_sequences
from nonpareil.errors import ConfigError
from nonpareil.models.adapters import REFERENCE
from nonpareil.models.distributed import of_first_process, wait_for_all
from nonpareil.models.loading import end_token_ids
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Draws, Prompt, SamplingParams
from nonpareil.training.actors.base import ActorDraws, Scorers, no_draws, scored
from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.engines.vllm.server import VLLMServerEngine

    PushedEngine = VLLMEngine | VLLMServerEngine


class VLLMActors:
    """Draws with vLLM and scores with the trainer's own models.

    After every push the engine's log-probs of a few canary sequences must be the trainer's: training on another
    model's draws would look like training. `shared`: one server draws for all processes; the first one pushes.
    """

    on_progress: Callable[[int, int], None] | None = None

    def __init__(
        self,
        inner: Scorers,
        engine: "PushedEngine",
        config: DistillationConfig,
        prompts: Sequence[Prompt],
        shared: bool,
    ):
        self.inner, self.engine, self.config, self.shared = inner, engine, config, shared
        self.canary = Canary(canary_sequences(prompts, config.max_completion_length), engine.dtype)
        self._versions = {"policy": 0, "anchor": 0}
        self._held: dict[str, tuple[str, int]] = {}
        """Whose weights, and from which step, each adapter of the engine has; "" is the whole model."""

    def begin_step(self) -> None:
        """See `Actors`."""
        self.inner.begin_step()
        self._versions["policy"] += 1
        self._versions["anchor"] += self.inner.anchor_moves

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> ActorDraws:
        """See `Actors`. Log-probs are the trainer's; the engine's own of the policy's draws are beside them."""
        ours = self._draw("policy", prompts, k, policy)
        sampled = [draws.logprobs for draws in ours] if k else None
        theirs = self._draw("anchor", prompts, m, anchor)
        # Where nothing was asked for there is nothing to score; an empty share is scored with the other processes'.
        ours = scored(self.inner, "policy", prompts, ours, self.config.temperature) if k else ours
        theirs = scored(self.inner, "anchor", prompts, theirs, self.config.temperature) if m else theirs
        return ActorDraws(ours, theirs, sampled)

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """See `Actors`."""
        return self.inner.token_logprobs(role, sequences, temperature)

    def release(self) -> None:
        """See `Actors`."""
        self.engine.release()

    def _draw(
        self, role: str, prompts: Sequence[Prompt], count: int, sampling: SamplingParams
    ) -> list[Draws]:
        if not count:
            return no_draws(prompts)
        options = self._bring(role)
        drawn = self.engine.draw(prompts, count, sampling, self.on_progress, **options)
        if self.shared:
            wait_for_all()  # the next push must not meet another process's draws
        return drawn

    def _bring(self, role: str) -> dict[str, Any]:
        """Let the engine hold a role's model as it is now; returns the options to draw from it with."""
        name, now = self.inner.adapters[role], (role, self._versions[role])
        if name == REFERENCE:
            return {}  # the base, which never moves
        options: dict[str, Any] = {"adapter": name} if name else {}
        if self._held.get(name) != now:
            self._push(role, options)
            self._held[name] = now
        return options

    def _push(self, role: str, options: dict[str, Any]) -> None:
        """Hand a role's weights over, and see by the canaries that the engine draws from them."""
        ours = self._canary_logprobs(role)
        self.inner.hand_over(role, self.engine)
        if self.shared:
            wait_for_all()
        # One process asks for all, so that all find the same.
        theirs = of_first_process(partial(self.engine.completion_logprobs, self.canary.sequences, **options))
        other = "anchor" if role == "policy" else "policy"
        others = {f"the {other}": partial(self._canary_logprobs, other)}
        self.canary.check(theirs, ours, pushed=f"the {role}", others=others)

    def _canary_logprobs(self, role: str) -> list[float]:
        values = self.inner.token_logprobs(role, self.canary.sequences, 1.0)
        return [float(each.sum()) for each in values]


def vllm_engine(
    model: PreTrainedModel, tokenizer: Tokenizer, config: DistillationConfig, lora_rank: int | None
) -> "PushedEngine":
    """The engine that the settings ask for, over the model's own path; its first weights are never drawn from.

    Raises:
        ConfigError: a model in memory that lies nowhere, or vLLM is not installed.
        ModelError: vLLM cannot load the model.
    """
    path = model.name_or_path
    if not path:
        raise ConfigError(
            "use_vllm: vLLM loads the model from its path, and this one has none; give the path"
        )
    dtype = str(config.compute_dtype(model.dtype)).removeprefix("torch.")
    if config.vllm_mode == "server":
        from nonpareil.engines.vllm.server import VLLMServerEngine

        folder = Path(str(config.output_dir))  # what server and trainer share, if anything
        folder.mkdir(parents=True, exist_ok=True)
        return VLLMServerEngine(
            config.vllm_server_base_url or "",
            tokenizer,
            end_token_ids(model, tokenizer),
            push_directory=str(folder.resolve()),
        )
    from nonpareil.engines.vllm.engine import VLLMEngine

    return VLLMEngine(
        path,
        tokenizer,
        dtype=dtype,
        end_ids=end_token_ids(model, tokenizer),
        max_lora_rank=lora_rank,
        gpu_memory_utilization=config.vllm_gpu_memory_utilization
        or (0.3 if model.device.type == "cuda" else None),
    )
