"""A trained adapter and its base as one plain checkpoint."""

from pathlib import Path


def merge_adapter(output_dir: Path) -> str:
    """A plain checkpoint of base and adapter together, in the type that the base is stored in."""
    from transformers import AutoConfig

    from nonpareil.models.adapters import adapter_base
    from nonpareil.models.loading import cast_weights, load_policy
    from nonpareil.models.saving import mend_generation_config

    model, tokenizer = load_policy(str(output_dir), dtype="float32")
    mend_generation_config(model)  # of which the training has told
    name, revision = adapter_base(str(output_dir)) or ("", None)
    stored = AutoConfig.from_pretrained(name, revision=revision).dtype
    cast_weights(model, stored or model.dtype).save_pretrained(output_dir / "merged")
    tokenizer.save_pretrained(output_dir / "merged")
    return str(output_dir / "merged")
