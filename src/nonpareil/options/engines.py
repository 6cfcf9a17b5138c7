"""Which engine draws, and the settings of each."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.settings import CheckedOptions, option


@dataclass
class ChosenEngineOptions(CheckedOptions):
    """Which engine draws, and what all that draw have. A setting of another engine is refused by name."""

    HEADING: ClassVar = "Engine"

    engine: str = option(
        "transformers",
        "transformers, vllm, ray (many workers), or openai (a server).",
        choices=("transformers", "vllm", "ray", "openai"),
    )
    base_url: str | None = option(
        None,
        "The server, such as http://127.0.0.1:8000/v1.",
        of="engine=openai",
        replaces_demo=True,
    )
    api_key_env: str | None = option(
        None, "Environment variable of the server's key. Default: OPENAI_API_KEY, if set.", of="engine=openai"
    )
    vllm_gpu_memory_utilization: float | None = option(
        None,
        "Share of the memory for vLLM's weights and cache. Default: vLLM's own.",
        above=0,
        at_most=1,
        why="a share of the memory",
        of="engine=vllm",
    )
    vllm_tensor_parallel_size: int | None = option(
        None, "Devices that vLLM splits the weights over. Default: 1.", at_least=1, of="engine=vllm"
    )
    vllm_max_model_len: int | None = option(
        None,
        "Most tokens of prompt and completion in vLLM. Default: the model's window.",
        at_least=1,
        of="engine=vllm",
    )


@dataclass
class EngineOptions(ChosenEngineOptions):
    """The same, with the settings of what draws stored groups."""

    HEADING: ClassVar = "Engine"

    request_timeout: float | None = option(
        None, "Seconds one request may take. Default: 600.", above=0, of="engine=openai"
    )
    max_concurrency: int | None = option(
        None, "Requests under way at once. Default: 16.", at_least=1, of="engine=openai"
    )
    max_retries: int | None = option(
        None,
        "Further tries of a request after 429, 5xx, timeouts, lost connections. Default: 6.",
        at_least=0,
        of="engine=openai",
    )
    tokenizer_name_or_path: str | None = option(
        None,
        "The served model's tokenizer: prompts are then sent as ids, and ids asked for.",
        of="engine=openai",
        names="input",
    )
    num_workers: int | None = option(
        None, "Worker processes. Default: as many as there is room for.", at_least=1, of="engine=ray"
    )
    cpus_per_worker: int | None = option(
        None, "CPUs, and so threads, of a worker. Default: 1.", at_least=1, of="engine=ray"
    )
    gpus_per_worker: float | None = option(
        None, "GPUs of a worker. Default: 1 where this machine has one.", at_least=0, of="engine=ray"
    )
    ray_address: str | None = option(
        None, "auto, or host:port of a cluster's head. Default: one on this machine.", of="engine=ray"
    )
