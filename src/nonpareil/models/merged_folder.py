"""Write an adapter's base with the adapter merged in, as a plain checkpoint that says what was trained."""

from pathlib import Path

import torch

from nonpareil.models.adapters import adapter_base
from nonpareil.models.devices import cast_weights
from nonpareil.models.loading import load_merged, load_model, load_tokenizer
from nonpareil.models.memory import free_memory
from nonpareil.models.merging import SHARE, check_same_policy, probe_logprobs, rounding_share
from nonpareil.models.model_init import PLAIN, base_init
from nonpareil.models.pretrained import read_config, reading
from nonpareil.models.saving import mend_generation_config
from nonpareil.models.trained import keep_temperature, trained_temperature
from nonpareil.terminal import tell


def save_merged(directory: Path, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write base and adapter together to a folder, then read it again and compare.

    It has the type that the base is stored in; or float32, which is told, where rounding to that type would
    change the policy by more than a twentieth of what the training did.

    Raises:
        ModelError, ConfigError: as `load_policy`; or what was written is another policy. The folder is then void.
    """
    name, revision = adapter_base(str(directory)) or ("", None)
    init = base_init(str(directory), PLAIN)
    stored = (
        read_config(name, revision, trust_remote_code=trust_remote_code, init=init).dtype or torch.float32
    )
    merge = load_merged(str(directory), trust_remote_code=trust_remote_code)
    said, dtype = merge.trained, stored
    if dtype is not torch.float32:
        cast_weights(cast_weights(merge.model, dtype), torch.float32)
        said = probe_logprobs(merge.model)
        if (share := rounding_share(merge.trained, said, merge.base)) > SHARE:
            rounded = str(dtype).removeprefix("torch.")
            tell(
                f"the merged checkpoint is written in float32: rounded to the base's {rounded} its weights would "
                f"be another policy (the rounding is {share:.0%} of the KL that training made)"
            )
            del merge
            merge = load_merged(str(directory), trust_remote_code=trust_remote_code)
            said, dtype = merge.trained, torch.float32
    trained, base = said, merge.base
    mend_generation_config(merge.model)  # of which the training has told
    with reading(str(directory), f"the adapter {str(directory)!r} merged into {name!r} could not be written"):
        cast_weights(merge.model, dtype).save_pretrained(folder)
    load_tokenizer(str(directory), trust_remote_code=trust_remote_code).save_pretrained(folder)
    if (temperature := trained_temperature(str(directory))) is not None:
        keep_temperature(folder, temperature)
    del merge
    free_memory()
    written = load_model(str(folder), None, torch.float32, trust_remote_code=trust_remote_code)
    what = f"the adapter {str(directory)!r} merged into {name!r}, written and read again,"
    check_same_policy(trained, probe_logprobs(written.eval()), base, what)
