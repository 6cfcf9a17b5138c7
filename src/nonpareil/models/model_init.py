"""How a model is read besides its name: attention, further arguments, a GGUF file, quantised weights.

What a LoRA adapter's base was read with is kept beside the adapter, so that it is read again as the same model.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from nonpareil.errors import ConfigError, ModelError
from nonpareil.files import write_json
from nonpareil.setting_types import nearest

ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Of transformers; kernels of the hub are code that nobody asked to run."""
INIT_FILE = "base_model.json"
"""Beside an adapter: how its base was read, where that is more than by its name."""
ATTENTION_HELP = (
    f"Attention of the policy and the reference: {', '.join(ATTENTIONS)}. Default: what transformers takes."
)
KWARGS_HELP = (
    "Further arguments of from_pretrained for policy and reference, as JSON; settings of the model's config too: "
    """'{"rope_parameters": {"rope_type": "default", "rope_theta": 500000}}'."""
)
GGUF_HELP = "Read the policy from this GGUF file in the folder model_name_or_path (llama, qwen2, qwen3)."
REFERENCE_GGUF_HELP = "The same of the folder reference_model_name_or_path."
FOUR_BIT_HELP = "Read policy and reference in 4 bits, by bitsandbytes; trained under LoRA alone."
EIGHT_BIT_HELP = (
    "The same in 8 bits. A token's log-probs may then depend on what else a pass holds; refused where a trial of "
    "the model shows that."
)
QUANT_TYPE_HELP = "Kind of the 4 bits: nf4 or fp4."
NESTED_HELP = "Quantise the scales of the 4 bits too."
QUANT_TYPES = ("nf4", "fp4")
STORAGE_HELP = "What the 4 bits are packed into: the same weights. Default: uint8."
STORAGES = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")

OURS = {
    **dict.fromkeys(
        ("dtype", "torch_dtype"), "give dtype; distill trains in float32, and bf16 says what it computes in"
    ),
    **dict.fromkeys(
        ("device_map", "device", "max_memory", "tp_plan", "tp_size", "device_mesh"),
        "the model is put where it runs best; shard_weights splits it",
    ),
    "revision": "give model_revision to a command; to DistillationTrainer a model object, or a folder, of it",
    "trust_remote_code": "give trust_remote_code by itself",
    "gguf_file": "give gguf_file by itself",
    **dict.fromkeys(
        ("quantization_config", "load_in_4bit", "load_in_8bit"), "give load_in_4bit or load_in_8bit by itself"
    ),
    "use_cache": "a cache is used to draw and none to train",
    **dict.fromkeys(
        ("state_dict", "config", "ignore_mismatched_sizes", "output_loading_info", "key_mapping"),
        "weights must be those of the folder",
    ),
    **dict.fromkeys(
        (
            "token",
            "use_auth_token",
            "cache_dir",
            "local_files_only",
            "force_download",
            "proxies",
            "subfolder",
        ),
        "set HF_TOKEN, HF_HOME or HF_HUB_OFFLINE, or name a folder",
    ),
    **dict.fromkeys(("low_cpu_mem_usage", "offload_folder", "offload_buffers"), "the model is read whole"),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing"),
        "a pass gives what it is asked for",
    ),
}
"""Arguments of from_pretrained that contradict what is done here, and what to do instead."""
TAKEN = frozenset({"use_safetensors", "variant", "experts_implementation", "use_kernels"})
"""Those that no config has."""


@dataclass(frozen=True)
class ModelInit:
    """What `from_pretrained` is told besides a name, a revision and a dtype."""

    attn_implementation: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    gguf_file: str | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of transformers' BitsAndBytesConfig."""

    @property
    def law(self) -> dict[str, Any]:
        """What makes another model of the same files; attention only rounds otherwise."""
        found = {name: value for name, value in asdict(self).items() if value}
        return {name: value for name, value in found.items() if name != "attn_implementation"}

    def on_model(self, dtype: Any) -> dict[str, Any]:
        """Arguments for reading the weights; `dtype` is what they are computed with."""
        # Of a GGUF file the config is read beforehand, which takes long, and has them already.
        found = dict(self.kwargs) if self.gguf_file is None else {"gguf_file": self.gguf_file}
        if self.attn_implementation is not None:
            found["attn_implementation"] = self.attn_implementation
        if self.quantization:
            from nonpareil.models.quantized import quantization_config

            found["quantization_config"] = quantization_config(self.quantization, dtype)
        return found

    def over(self, recorded: "ModelInit") -> "ModelInit":
        """What is given here, and what was recorded where nothing is given."""
        return replace(
            recorded,
            attn_implementation=self.attn_implementation or recorded.attn_implementation,
            kwargs=self.kwargs or recorded.kwargs,
            quantization=self.quantization or recorded.quantization,
        )

    def keep(self, folder: str | Path) -> None:
        """Write it beside an adapter, where there is anything to write."""
        if self != PLAIN:
            write_json(Path(folder) / INIT_FILE, asdict(self))

    @classmethod
    def kept(cls, folder: str | Path) -> Self:
        """What was written beside an adapter.

        Raises:
            ModelError: a file that cannot be read.
        """
        path = Path(folder).expanduser() / INIT_FILE
        if not path.is_file():
            return cls()
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not isinstance(found.kwargs, dict) or not isinstance(found.quantization, dict):
                raise TypeError("kwargs and quantization must be objects")
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{str(path)!r} should say how the adapter's base was read: {error}") from error
        return found


PLAIN = ModelInit()


def base_init(adapter: str, init: ModelInit) -> ModelInit:
    """What an adapter's base is read with: as when it was trained, but for what `init` gives.

    Raises:
        ModelError: a note of it that cannot be read.
        ConfigError: a GGUF file for an adapter, whose base is known.
    """
    if init.gguf_file is not None:
        raise ConfigError(
            f"gguf_file={init.gguf_file!r} with the adapter {adapter!r}: its base is the one it was trained on; "
            "remove it"
        )
    return init.over(ModelInit.kept(adapter))


def model_init(options: Any, *, gguf_file: str | None = None) -> ModelInit:
    """How settings of the names here ask for a model to be read.

    Raises:
        ConfigError: arguments that contradict what is done here, or 4 and 8 bits at once.
    """
    bits: dict[str, Any] = {}
    if getattr(options, "load_in_4bit", False) and options.load_in_8bit:
        raise ConfigError("load_in_4bit and load_in_8bit: weights have one size; give one")
    if getattr(options, "load_in_4bit", False):
        bits = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": options.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": options.use_bnb_nested_quant,
        }
        if options.bnb_4bit_quant_storage is not None:
            bits["bnb_4bit_quant_storage"] = options.bnb_4bit_quant_storage
    elif getattr(options, "load_in_8bit", False):
        bits = {"load_in_8bit": True}
    if bits and gguf_file:
        raise ConfigError(
            f"gguf_file={gguf_file!r} with quantised weights: a GGUF file is read in full; give one"
        )
    kwargs, attention = parsed_kwargs(options.model_init_kwargs), options.attn_implementation
    if "attn_implementation" in kwargs:  # as TRL's scripts have it
        given = kwargs.pop("attn_implementation")
        if given not in (None, *ATTENTIONS):
            raise ConfigError(
                f"model_init_kwargs: attn_implementation={given!r} must be among {', '.join(ATTENTIONS)}"
            )
        if given is not None and attention not in (None, given):
            raise ConfigError(
                f"attn_implementation={attention!r}, and {given!r} in model_init_kwargs; give it once"
            )
        attention = attention or given
    return ModelInit(attention, kwargs, gguf_file, bits)


def parsed_kwargs(given: Any) -> dict[str, Any]:
    """`model_init_kwargs`, from a flag's JSON or a mapping.

    Raises:
        ConfigError: no JSON object, or an argument that is not to be given so.
    """
    if given is None:
        return {}
    _refuse_ours(
        given if isinstance(given, Mapping) else ()
    )  # some of their values, a torch.dtype, are no JSON
    try:
        value = json.loads(given) if isinstance(given, str) else json.loads(json.dumps(given))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"""model_init_kwargs={given!r} must be a JSON object, such as '{{"attention_bias": true}}': {error}"""
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"model_init_kwargs={given!r} must be a JSON object")
    _refuse_ours(value)
    return value


def _refuse_ours(names: Iterable[str]) -> None:
    for name in names:
        if name in OURS:
            raise ConfigError(f"model_init_kwargs: {name} is not taken; {OURS[name]}")


def check_known(unused: Iterable[str], known: Mapping[str, Any], name: str) -> None:
    """Refuse arguments that neither the config nor from_pretrained reads.

    Raises:
        ConfigError: naming the first.
    """
    for key in unused:
        if key not in TAKEN:
            near = nearest(key, [*known, *TAKEN, "attn_implementation"])
            raise ConfigError(
                f"model_init_kwargs: {key!r} is no setting of the config of {name!r}, and no argument that is "
                f"taken here ({', '.join(sorted(TAKEN))}){near}"
            )
