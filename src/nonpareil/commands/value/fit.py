"""Fit a value of prefixes on stored groups, and report how good it is on prompts that it was not fitted on."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.commands.value.doubt import REPORT, tell_doubt
from nonpareil.commands.value.inputs import Beginning, DrawnGroups, beginning, drawn_groups, policy_itself
from nonpareil.commands.value.show import show_value
from nonpareil.commands.value.spent import SPENT
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.folders import writing
from nonpareil.options.values import ValueOptions
from nonpareil.settings import values_of
from nonpareil.terminal import tell
from nonpareil.values.settings import FitSettings

if TYPE_CHECKING:
    from nonpareil.values.examples import Examples
    from nonpareil.values.model import ValueModel
    from nonpareil.values.report import ValueReport

OWNER = "value"


def run(options: ValueOptions) -> dict[str, Any]:
    """Fit, report, save; returns the report and where everything is.

    Raises:
        NonpareilError: whatever cannot work, before any weight is read where that can be known; or a value
            that tells nothing on held-out prompts.
    """
    check_output("output_dir", options.output_dir, inputs_of(options), deletes=options.overwrite)
    drawn = drawn_groups(options)
    begin = beginning(drawn, options.init_model_name_or_path)
    with writing(options.output_dir, OWNER) as folder:
        folder.refuse_other_command()
        if folder.holds_ours() and not options.overwrite:
            raise ConfigError(f"{folder.where} holds a value; give --overwrite, or another output_dir")
        folder.refuse_foreign(["*.json", "*.safetensors", "tokenizer*"])
        report = fit_into(folder, drawn, begin, FitSettings(**values_of(options, FitSettings)))
    tell_doubt(options.output_dir)
    return {"output_dir": str(Path(options.output_dir)), "begun_with": begin.path, "report": report}


def fit_into(folder: Any, drawn: DrawnGroups, begin: Beginning, settings: FitSettings) -> "ValueReport":
    """Fit a value, and save it with its report into a folder that is held; nothing is there before all of it is.

    Raises:
        DataError: too few prompts to hold some out, or a value that tells nothing on them.
        NonpareilError: a model that cannot be loaded, or a fit that diverged.
    """
    from nonpareil.files import write_json
    from nonpareil.values.report import value_report

    begun = time.perf_counter()
    fitted, held_out = _examples(drawn, settings)
    value = _fit(drawn, begin, fitted, settings)
    first = value.notes.first_ids
    report = value_report(
        value.model,
        held_out.behind(first),
        fitted.first_prompts(held_out.num_prompts).behind(first),
        settings.max_tokens_per_batch,
        settings.seed,
    )
    if report.tells_nothing:
        raise DataError(
            f"the value that was fitted on {len(fitted)} completions of {drawn.where} tells nothing: on held-out "
            f"prompts it is {-report.gain.estimate:.3g} nats a prefix worse than a uniform law. Draw more groups "
            "(thousands of completions), or begin with a reward model (init_model_name_or_path); nothing was saved"
        )
    folder.delete()
    with folder.staged() as staging:
        value.save(staging)
        write_json(staging / REPORT, report.to_dict())
        tokens = settings.num_train_epochs * sum(fitted.sequences.lengths())
        write_json(staging / SPENT, {"seconds": time.perf_counter() - begun, "tokens": tokens})
    return report


def _examples(drawn: DrawnGroups, settings: FitSettings) -> tuple["Examples", "Examples"]:
    from nonpareil.values.examples import Examples, split_groups

    fitted, held_out = (
        Examples.of(groups, settings.bins)
        for groups in split_groups(drawn.groups, settings.held_out_share, settings.seed)
    )
    if held_out.num_prompts < 2 or not len(fitted):
        raise DataError(
            f"{drawn.where}: {held_out.num_prompts} prompts with rewards are held out, and the report needs 2; "
            f"raise held_out_share ({settings.held_out_share:g}), or draw more groups"
        )
    return fitted, held_out


def _fit(drawn: DrawnGroups, begin: Beginning, fitted: "Examples", settings: FitSettings) -> "ValueModel":
    from nonpareil.models.devices import best_device
    from nonpareil.models.memory import keep_freed_memory
    from nonpareil.rollouts.progress import ProgressBar
    from nonpareil.values.fit import default_rate, fit_network
    from nonpareil.values.model import ValueModel, ValueNotes

    keep_freed_memory()
    model, begin = _network(drawn, begin, settings.bins)
    model.to(best_device())
    rate = settings.learning_rate or default_rate(model)
    tell(
        f"fitting a value to {len(fitted)} completions of {fitted.num_prompts} prompts, begun with {begin.path!r}"
    )
    with ProgressBar() as progress:
        progress.start("fit", settings.num_train_epochs * len(fitted), unit="completions")
        fit_network(model, fitted.behind(begin.first_ids), settings, progress.update)
    notes = ValueNotes(
        bins=settings.bins,
        policy=drawn.policy.info()["fingerprint"],
        groups=drawn.identity,
        rewards=drawn.manifest.get("rewards"),
        temperature=drawn.temperature,
        fitted={
            **fitted_on(drawn, settings),
            "peak_learning_rate": rate,
            "begun_with": begin.path,
            "prompts": fitted.num_prompts,
            "completions": len(fitted),
        },
        first_ids=list(begin.first_ids),
    )
    return ValueModel(model, drawn.policy.tokenizer, notes)


def fitted_on(drawn: DrawnGroups, settings: FitSettings) -> dict[str, Any]:
    """The settings of a fit and the content of its groups, of which `ValueNotes.fitted` has the same."""
    from nonpareil.training.checkpoints.identity import hash_of_groups

    unread = "max_tokens_per_batch"  # it bounds memory alone
    asked = {name: value for name, value in asdict(settings).items() if name != unread}
    return {**asked, "groups_sha256": hash_of_groups(drawn.groups)}


def _network(drawn: DrawnGroups, begin: Beginning, bins: int) -> tuple[Any, Beginning]:
    """The network, begun with the policy where the reward model that was to be taken by default is not causal."""
    from nonpareil.values.network import load_network

    trust = drawn.policy.trust_remote_code
    try:
        return load_network(begin.path, bins, begin.revision, fresh_head=True, trust_remote_code=trust), begin
    except ModelError as error:
        if not begin.is_default:
            raise
        tell(f"the value begins with the policy: {error}")
    begin = policy_itself(drawn.policy)
    return load_network(begin.path, bins, begin.revision, fresh_head=True, trust_remote_code=trust), begin


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The report's figures beside where it is."""
    return {**result, "report": result["report"].to_dict()}


COMMAND = Command(
    description=__doc__ or "",
    example="nonpareil value --groups nonpareil-groups --output_dir nonpareil-value",
    options=lambda: [ValueOptions],
    run=run,
    show=show_value,
    as_json=as_json,
)
