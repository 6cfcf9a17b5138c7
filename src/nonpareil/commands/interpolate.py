"""Write a policy at a strength of its training: reference + strength * (trained - reference), over all weights.

Strength 0 is the reference and 1 the trained policy; between them KL and win rate are smaller, and above 1 larger:
one training gives a policy for every KL. `nonpareil evaluate --strengths` measures which strength has which.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.console import console
from nonpareil.errors import ConfigError
from nonpareil.folders import is_bookkeeping, is_vacant, writing
from nonpareil.markers import OutputFolder
from nonpareil.options.strengths import InterpolateOptions

if TYPE_CHECKING:
    from nonpareil.models.interpolated_folder import Source

OWNER = "interpolate"


def run(options: InterpolateOptions) -> dict[str, Any]:
    """Write the folder; returns where it lies, the strength and the dtype.

    Raises:
        NonpareilError: two models between which nothing lies, before any weight is read where that can be known;
            or a folder that holds anything, and with `overwrite` anything but an earlier interpolation.
    """
    for name in ("model_name_or_path", "reference_model_name_or_path", "strength", "output_dir"):
        if getattr(options, name) is None:
            raise ConfigError(f"{name} is missing; give --{name}")
    check_output("output_dir", options.output_dir or "", inputs_of(options), deletes=options.overwrite)
    with writing(options.output_dir or "", OWNER) as folder:
        return _interpolate(options, folder)


def _interpolate(options: InterpolateOptions, folder: OutputFolder) -> dict[str, Any]:
    from nonpareil.models.devices import dtype_name
    from nonpareil.models.interpolated_folder import save_interpolated

    folder.refuse_other_command()
    _check_folder(folder, overwrite=options.overwrite)
    trained, reference = _sources(options)
    strength = float(options.strength or 0.0)
    earlier = folder.listed()
    with folder.staged() as staging:
        wide = save_interpolated(
            trained,
            reference,
            strength,
            staging,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        for name in earlier:  # only now that the new one is whole
            folder.delete(name)
    return {"output_dir": str(options.output_dir), "strength": strength, "dtype": dtype_name(wide)}


def _check_folder(folder: OutputFolder, *, overwrite: bool) -> None:
    """Nothing may lie there but, with `overwrite`, an earlier interpolation, which is replaced as a whole."""
    if is_vacant(folder.path):
        return
    if not overwrite:
        raise ConfigError(
            f"{folder.where} is not empty; name another directory, or give --overwrite to replace an earlier "
            "interpolation there"
        )
    if foreign := [name for name in folder.foreign(["**/*"]) if not is_bookkeeping(Path(name))]:
        raise ConfigError(f"{folder.where} holds {foreign[0]!r}, which is not ours; name another directory")


def _sources(options: InterpolateOptions) -> "tuple[Source, Source]":
    """Both models, which can be interpolated as far as configs and tokenizers tell."""
    from nonpareil.commands.policies.local import local_policy, reference_policy
    from nonpareil.models.interpolated_folder import Source
    from nonpareil.models.interpolation import check_interpolable

    trained, reference = local_policy(options), reference_policy(options)
    check_interpolable(
        (trained.config, trained.tokenizer),
        (reference.config, reference.tokenizer),
        (trained.name_or_path, reference.name_or_path),
    )
    one, other = (
        Source(each.name_or_path, each.revision, each.tokenizer, each.init) for each in (trained, reference)
    )
    return one, other


def show(result: dict[str, Any]) -> None:
    """Where the policy lies, on stderr."""
    console().print(
        f"The policy at strength {result['strength']:g} ({result['dtype']}) lies in {result['output_dir']}",
        soft_wrap=True,
    )


COMMAND = Command(
    description=__doc__ or "",
    example=(
        "nonpareil interpolate --model_name_or_path ./distilled --reference_model_name_or_path ./my-model \\\n"
        "      --strength 1.4 --output_dir ./stronger"
    ),
    options=lambda: [InterpolateOptions],
    run=run,
    show=show,
)
