"""Credits as training data: read and compared with this run's policy and groups, or made where none are given."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.options.distill import DistillOptions
from nonpareil.records import Group
from nonpareil.settings import differing, values_of
from nonpareil.terminal import tell
from nonpareil.training.stored_folder import manifest_of, reward_settings
from nonpareil.values.settings import CreditSettings, FitSettings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.commands.value.inputs import DrawnGroups
    from nonpareil.rollouts.credits import StoredCredits
    from nonpareil.training.config import DistillationConfig

CREDIT_TOKENS = 4096
"""Tokens and candidates of one pass."""


def load_credits(path: str, groups: str, policy: "LocalPolicy") -> "StoredCredits":
    """The credits of a folder; whether each is that of its completion is seen when the groups are read.

    Raises:
        DataError: no such credits, or some that are not whole.
        ConfigError: credits of another policy, other groups or another reward.
    """
    from nonpareil.files import jsonable
    from nonpareil.rollouts.credits import groups_identity, read_credits

    credits, manifest = read_credits(Path(path)), manifest_of(Path(groups))
    here = policy.info()["fingerprint"]
    if credits.source.policy != here:
        raise ConfigError(
            f"credits={path!r} were made with another policy ({credits.source.policy}) than "
            f"model_name_or_path={policy.name_or_path!r} ({here}); make them with the model that is trained"
        )
    if credits.source.groups != groups_identity(Path(groups)):
        raise ConfigError(
            f"credits={path!r} are of other groups than groups={groups!r}; make them of these, or give the groups "
            "that they are of"
        )
    if credits.source.rewards is not None:
        rewards = jsonable(reward_settings(manifest["rewards"])) if manifest.get("rewards") else {}
        for key, (theirs, ours) in differing(credits.source.rewards, rewards).items():
            raise ConfigError(
                f"credits={path!r} are of another reward than the groups', whose {key} is {ours!r}, and not "
                f"{theirs!r}; fit a value anew on these groups and make them of it (`nonpareil value`, "
                "`nonpareil credits`)"
            )
    return credits


def makes_credits(options: DistillOptions, config: "DistillationConfig") -> bool:
    """Whether this distillation makes the credits that its method reads.

    Raises:
        ConfigError: it has several processes, each of which would make them.
    """
    from nonpareil.models.distributed import num_processes
    from nonpareil.options.methods import reads_credits

    if options.credits is not None or not reads_credits(config.method):
        return False
    if num_processes() > 1:
        draw, give = ("`nonpareil sample`, ", "groups=FOLDER and ") if options.groups is None else ("", "")
        raise ConfigError(
            "credits is missing: several processes train, and credits are made by one; make them first "
            f"({draw}`nonpareil value`, then `nonpareil credits`), and give them: {give}credits=FOLDER"
        )
    return True


def make_credits(
    options: DistillOptions, config: "DistillationConfig", groups: list[Group], *, resumed: bool
) -> "StoredCredits":
    """The credits of the groups, by the value that is given or one that is fitted here; what is there is kept.

    Raises:
        NonpareilError: groups, or a value, of which no credits can be made; one that tells nothing.
    """
    from nonpareil.commands.credits import OWNER, check_candidates, write_all
    from nonpareil.folders import delete_listed, writing
    from nonpareil.models.memory import free_memory
    from nonpareil.rollouts.credits import read_credits

    folder = Path(str(config.output_dir)) / OWNER
    if options.overwrite and not resumed:
        delete_listed(folder, OWNER)
    drawn, settings = _drawn(options, config, groups), CreditSettings(**values_of(options, CreditSettings))
    check_candidates(drawn.policy, settings)  # before anything is fitted
    value = _value(options, config, drawn, resumed=resumed)
    free_memory()
    with writing(folder, OWNER) as held:
        held.refuse_other_command()
        totals = write_all(folder, drawn, value, settings, config.seed, CREDIT_TOKENS)
    free_memory()
    tell(
        f"credits of {totals.completions} completions; drift {totals.drift:.3f} of what next tokens differ by, "
        f"{totals.large_share:.3f} of the probability beyond 2 nats"
    )
    return read_credits(folder)


def _drawn(options: DistillOptions, config: "DistillationConfig", groups: list[Group]) -> "DrawnGroups":
    """The groups with their policy, in what the training computes in."""
    import torch

    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.commands.value.inputs import DrawnGroups, checked
    from nonpareil.models.devices import dtype_name

    path = options.groups or ""
    policy = LocalPolicy(
        options.model_name_or_path or "",
        options.model_revision,
        dtype_name(config.compute_dtype(torch.float32)),
        trust_remote_code=config.trust_remote_code,
        init=config.init(),
    )
    policy.check_plain("a value's network")
    return checked(DrawnGroups(path, groups, manifest_of(Path(path)), policy))


def _value(
    options: DistillOptions, config: "DistillationConfig", drawn: "DrawnGroups", *, resumed: bool
) -> str:
    """The folder of the value that was given, or that lies in output_dir, or else is fitted there now."""
    from nonpareil.commands.value.fit import OWNER, fit_into
    from nonpareil.commands.value.inputs import beginning
    from nonpareil.commands.value.named import check_named
    from nonpareil.folders import delete_listed, writing
    from nonpareil.values.model import NOTES

    own = Path(str(config.output_dir)) / OWNER
    settings = FitSettings(seed=config.seed, max_tokens_per_batch=config.max_tokens_per_batch)
    if options.value is not None:
        check_named(options.value, drawn.policy, drawn.temperature, drawn.manifest.get("rewards"))
        return options.value
    if options.overwrite and not resumed:
        delete_listed(own, OWNER)
    if (own / NOTES).is_file():
        _check_own(own, drawn, settings)
        return str(own)
    with writing(own, OWNER) as held:
        held.refuse_other_command()
        report = fit_into(held, drawn, beginning(drawn, None), settings)
    low, high = report.gain.low, report.gain.high
    tell(
        f"the value is {report.gain.estimate:.3f} [{low:.3f}, {high:.3f}] nats a prefix better than a uniform law "
        f"on {report.prompts} held-out prompts; squared correlation at the end "
        f"{report.by_position[-1].squared_correlation:.2f}"
    )
    return str(own)


def _check_own(own: Path, drawn: "DrawnGroups", settings: FitSettings) -> None:
    """Refuse the value in output_dir unless it is the one that would be fitted there now.

    Raises:
        ConfigError: naming all that differs.
    """
    from nonpareil.commands.value.fit import fitted_on
    from nonpareil.commands.value.named import differing_from
    from nonpareil.values.model import check_value_of, read_notes

    notes = read_notes(own)
    check_value_of(notes, drawn.policy.info()["fingerprint"], str(own))
    there = {"groups": notes.groups, **notes.fitted}
    asked = {"groups": drawn.identity, **fitted_on(drawn, settings)}
    lines = [
        f"  {key}: {theirs!r} there, {ours!r} now"
        for key, (theirs, ours) in {
            **differing_from(notes, drawn.manifest.get("rewards")),
            **differing({key: there.get(key) for key in asked}, asked),
        }.items()
    ]
    if lines:
        raise ConfigError(
            f"{own} is a value of other groups, another reward or other settings:\n"
            + "\n".join(lines)
            + "\nGive --overwrite, or another output_dir."
        )


def cost_of_credits(
    options: DistillOptions, config: "DistillationConfig", groups: list[Group]
) -> dict[str, Any]:
    """What is computed before the training: completions to fit, and candidates to score, each as a token.

    Raises:
        NonpareilError: groups, or a value, of which no credits can be made, as far as is seen without a weight.
    """
    from nonpareil.commands.credits import candidates_of, check_candidates
    from nonpareil.commands.value.named import check_named

    drawn, settings = _drawn(options, config, groups), CreditSettings(**values_of(options, CreditSettings))
    check_candidates(drawn.policy, settings)
    if options.value is not None:
        check_named(options.value, drawn.policy, drawn.temperature, drawn.manifest.get("rewards"))
    fitted = 0 if options.value is not None else sum(map(len, groups))
    return {
        "fitted_completions": fitted,
        **candidates_of(groups, settings),
    }
