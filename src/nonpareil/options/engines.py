"""Which engine draws, and the settings of each."""

from dataclasses import dataclass

from nonpareil.settings import CheckedOptions, option


@dataclass
class EngineOptions(CheckedOptions):
    """Which engine draws. A setting of another engine than the one chosen is refused by name."""

    engine: str = option(
        "transformers",
        "transformers, vllm, ray (many workers), or openai (a server).",
        choices=("transformers", "vllm", "ray", "openai"),
    )
    base_url: str | None = option(None, "Of engine openai: the server, such as http://127.0.0.1:8000/v1.")
    api_key_env: str | None = option(
        None, "Environment variable of the server's key. Default: OPENAI_API_KEY, if set."
    )
    request_timeout: float | None = option(None, "Seconds one request may take. Default: 600.", above=0)
    max_concurrency: int | None = option(None, "Requests under way at once. Default: 16.", at_least=1)
    max_retries: int | None = option(
        None, "Further tries of a request after 429, 5xx, time-outs, lost links. Default: 6.", at_least=0
    )
    tokenizer_name_or_path: str | None = option(
        None, "The served model's tokenizer: prompts are then sent as ids, and ids asked for."
    )
    vllm_gpu_memory_utilization: float | None = option(
        None,
        "Share of the memory for vLLM's weights and cache. Default: vLLM's own.",
        above=0,
        at_most=1,
        why="a share of the memory",
    )
    vllm_tensor_parallel_size: int | None = option(
        None, "Devices that vLLM splits the weights over. Default: 1.", at_least=1
    )
    vllm_max_model_len: int | None = option(
        None, "Most tokens of prompt and completion in vLLM. Default: the model's window.", at_least=1
    )
    num_workers: int | None = option(
        None, "ray: worker processes. Default: as many as there is room for.", at_least=1
    )
    cpus_per_worker: int | None = option(
        None, "ray: CPUs, and so threads, of a worker. Default: 1.", at_least=1
    )
    gpus_per_worker: float | None = option(
        None, "ray: GPUs of a worker. Default: 1 where this machine has one.", at_least=0
    )
    ray_address: str | None = option(
        None, "ray: auto, or host:port of a cluster's head. Default: one on this machine."
    )


SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "openai": (
        "base_url",
        "api_key_env",
        "request_timeout",
        "max_concurrency",
        "max_retries",
        "tokenizer_name_or_path",
    ),
    "vllm": ("vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_max_model_len"),
    "ray": ("num_workers", "cpus_per_worker", "gpus_per_worker", "ray_address"),
}
"""Fields of `EngineOptions` that one engine alone reads; their default is None."""
