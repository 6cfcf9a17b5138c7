"""Every command as a function: its options are keyword arguments, its result is what is returned.

They are `nonpareil.sample`, `nonpareil.curve` and so on; `docs/python.md` walks through them. A function prints
nothing: messages go to the logger `nonpareil`, or with `verbose=True` to stderr. A function, `Reward` or classifier
of transformers may stand for a reward's name, and for a dataset's its rows: texts, dicts or a `datasets.Dataset`.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nonpareil.commands.command import Command, without_bars
from nonpareil.errors import ConfigError
from nonpareil.options.called import Called
from nonpareil.options.given import instances_of
from nonpareil.options.keywords import options_text, signature_of
from nonpareil.options.objects import defaults_by_name
from nonpareil.terminal import quiet

if TYPE_CHECKING:
    from nonpareil.training.trainer import DistillationTrainer

Result = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _command(name: str, module: str) -> Callable[[_Function], _Function]:
    """Give a function the signature of a command's options, and their help."""

    def decorate(function: _Function) -> _Function:
        command: Command = importlib.import_module(module).COMMAND
        classes = (command.listed or command.options)()
        function._module = module  # type: ignore[attr-defined]
        function.__signature__ = signature_of(function, classes, open_ended=command.listed is not None)  # type: ignore[attr-defined]
        text = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = f"{text}\n\n{options_text(name, classes)}"
        return function

    return decorate


@_command("sample", "nonpareil.commands.sample")
def sample(*, verbose: bool = False, **options: Any) -> Result:
    """Draw m completions per prompt, score them, and keep the groups.

    Returns:
        `output_dir`, and the counts of its manifest: `prompts`, `completions`, `failed_rewards` by name with
        reasons, ...; `nonpareil.read_groups(output_dir)` reads the groups.

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn.
    """
    return _run(sample, verbose, options)


@_command("search", "nonpareil.commands.search")
def search(*, verbose: bool = False, **options: Any) -> Result:
    """Find one good answer per prompt, scoring completions while they are drawn (docs/segments.md).

    `nonpareil.rollouts.segments.driver.search` gives all candidates, of models and rewards in memory.

    Returns:
        `output`, the file of answers, and `prompts`, `answers`, `mean_reward`, `tokens_drawn`, `tokens_scored`, ...

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn.
    """
    return _run(search, verbose, options)


@_command("curve", "nonpareil.commands.curve")
def curve(*, verbose: bool = False, **options: Any) -> Result:
    """Say what best-of-N is worth for every N, from groups on disk.

    Returns:
        `report` (a `CurveReport`: `points` by N, `recommendation()`), and the paths `curve` (JSON) and `picture`;
        `unfinished`, in words, where groups are still being drawn.

    Raises:
        NonpareilError: no such groups, or groups without rewards.
    """
    return _run(curve, verbose, options)


@_command("distill", "nonpareil.commands.distill.command")
def distill(*, verbose: bool = False, **options: Any) -> Result:
    """Distil best-of-N into the policy, save it as a plain Hugging Face checkpoint, and evaluate it.

    Besides the options below it takes every field of `transformers.TrainingArguments`, and the settings of its
    method by name; `method` may also be an object that holds them: `method=BOND(n=4)`.

    Returns:
        `output_dir`, `steps` and `interrupted` (Ctrl-C: a checkpoint was saved, nothing evaluated); after the
        evaluation `evaluation` (an `Evaluation`: `comparison.win_rate`, `kl`, `equivalent_n`, ...) and `report`,
        the path of its page; `merged` and `at_strength` where asked for. With `dry_run`, what would be done.
        Empty in all processes but the first.

    Raises:
        NonpareilError: whatever cannot work, before any model is loaded where that can be known.
    """
    return _run(distill, verbose, options)


@_command("evaluate", "nonpareil.commands.evaluate.command")
def evaluate(
    trainer: "DistillationTrainer | None" = None, /, *, verbose: bool = False, **options: Any
) -> Result:
    """Draw policy and reference on held-out prompts, and measure how near the policy is to best-of-N.

    `nonpareil.evaluate(trainer)`, after `trainer.train()`, measures what the trainer has trained: it is saved first
    where it was not yet, and compared with what it was before on the trainer's `eval_dataset`, with the trainer's
    rewards, temperature and dtype, by the code that measures a folder. Options replace what follows from the
    trainer. The report goes to `<output_dir>/evaluation` and the figures into the model card; where the trainer's
    `push_to_hub` is set, the finished folder is pushed then.

    Returns:
        `evaluation` (an `Evaluation`: `comparison.win_rate`, `kl`, `equivalent_n`, each an interval; `to_dict()`)
        and `report`, the path of its page. With `strengths`: `path` (a `StrengthPath`) in the evaluation's place.

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn.
    """
    if trainer is None:
        return _run(evaluate, verbose, options)
    from nonpareil.commands.distill.trained import evaluate_trainer

    given = _called(evaluate, options).values
    return _told(evaluate, verbose, lambda: evaluate_trainer(trainer, given))


@_command("compare", "nonpareil.commands.compare.command")
def compare(*, verbose: bool = False, **options: Any) -> Result:
    """Run several methods under one budget, each in a process of its own, and draw all on one Pareto picture.

    `config` names the comparison's YAML file (docs/yardstick.md); its rewards are named there, by file or model.

    Returns:
        the table's rows and the paths of report and pictures, as `comparison.json` has them.

    Raises:
        NonpareilError: a file or settings that cannot work, before anything is drawn.
    """
    return _run(compare, verbose, options)


@_command("value", "nonpareil.commands.value.fit")
def value(*, verbose: bool = False, **options: Any) -> Result:
    """Fit what prefixes are worth on stored groups, and say how well it is known.

    Returns:
        `output_dir`, `begun_with` and `report` (a `ValueReport`).

    Raises:
        NonpareilError: groups or a model that cannot be used, or a value that tells nothing on held-out prompts.
    """
    return _run(value, verbose, options)


@_command("credits", "nonpareil.commands.credits")
def make_credits(*, verbose: bool = False, **options: Any) -> Result:
    """Credit other next tokens of stored completions by a value (the command `credits`).

    Returns:
        `output_dir` and `totals`.

    Raises:
        NonpareilError: groups, a value or models that cannot be used.
    """
    return _run(make_credits, verbose, options)


@_command("tilt", "nonpareil.commands.tilt.command")
def tilt(*, verbose: bool = False, **options: Any) -> Result:
    """Tilt a policy's vocabulary towards best-of-N: counted from stored groups, without any training.

    Returns:
        `output_dir`, `path` (rows by strength), `estimate` and `tokens`.

    Raises:
        NonpareilError: groups or a model that cannot be used.
    """
    return _run(tilt, verbose, options)


@_command("interpolate", "nonpareil.commands.interpolate")
def interpolate(*, verbose: bool = False, **options: Any) -> Result:
    """Write a policy with more or less of its training: weights between and beyond reference and policy.

    Returns:
        `output_dir`, `strength` and `dtype`.

    Raises:
        NonpareilError: two models between which nothing lies, or a folder that holds something else.
    """
    return _run(interpolate, verbose, options)


@_command("export", "nonpareil.commands.export")
def export(*given: Any, verbose: bool = False, **options: Any) -> Any:
    """Turn groups into TRL's preference, SFT or unpaired datasets.

    `groups`, `output` and `format` may be given by position. Groups in memory, as `read_groups` gives them, are
    written by `nonpareil.rollouts.export.export`, whose arguments then hold and whose `ExportReport` is returned.

    Returns:
        `output`, `groups`, `rows`, and `skipped`: how many groups gave none, by reason.

    Raises:
        NonpareilError: no such groups, groups without rewards, or a file that exists.
    """
    first = given[0] if given else options.get("groups", "")
    if not isinstance(first, str | Path):
        from nonpareil.rollouts.export import export as export_groups

        return export_groups(*given, **options)
    positions = ("groups", "output", "format")
    if len(given) > len(positions):
        raise ConfigError(
            f"export takes {', '.join(positions)} by position, and {len(given)} were given; name them"
        )
    named = dict(zip(positions, given, strict=False))
    if twice := sorted({*named} & {*options}):
        raise ConfigError(f"{twice[0]} is given twice; remove one")
    return _run(export, verbose, {**named, **options})


@_command("join", "nonpareil.commands.join")
def join(*, verbose: bool = False, **options: Any) -> Result:
    """Make one folder of several that were drawn and scored alike: of other prompts, or of other seeds.

    Returns:
        `output_dir`, the counts of its manifest, and `copies`, which two folders had and which are taken once.

    Raises:
        NonpareilError: folders that are missing, unfinished or drawn otherwise, or an output that is no new one.
    """
    return _run(join, verbose, options)


@_command("serve", "nonpareil.commands.serve.command")
def serve(*, verbose: bool = False, **options: Any) -> Result:
    """Serve best-of-N behind OpenAI's protocol; returns when the server is stopped (Ctrl-C, SIGTERM).

    Returns:
        `address`, and how many requests were `answered` and `failed`.

    Raises:
        NonpareilError: options, models or rewards that cannot work, or a port in use.
    """
    return _run(serve, verbose, options)


@_command("view", "nonpareil.commands.view.command")
def view(*, verbose: bool = False, **options: Any) -> Result:
    """Pages over stored groups and runs: served until it is stopped, or with `bundle` written as a folder.

    Returns:
        `address`, or `bundle` and its `groups`.

    Raises:
        NonpareilError: nothing to show, a port in use, or a place that cannot be written to.
    """
    return _run(view, verbose, options)


def _run(function: Callable[..., Any], verbose: bool, options: Mapping[str, Any]) -> Result:
    """Run a command with what was given."""
    command, given = _command_of(function), _called(function, options)
    instances = instances_of(
        command.options(), given.values, given.of_method, defaults_by_name(command.defaults)
    )
    for instance in instances:
        if hasattr(instance, "config_file"):
            instance.config_file = given.config
        if not verbose and "disable_tqdm" not in given.values and hasattr(instance, "disable_tqdm"):
            instance.disable_tqdm = True
    return _told(function, verbose, lambda: command.run(*instances))


def _told(function: Callable[..., Any], verbose: bool, run: Callable[[], Result]) -> Result:
    """What a command returns; meanwhile it speaks as the command line does, or not at all."""
    with without_bars(), nullcontext() if verbose else quiet():
        result = run()
        if verbose and result:
            _command_of(function).show(result)
    return result


def _command_of(function: Callable[..., Any]) -> Command:
    return importlib.import_module(function._module).COMMAND  # type: ignore[attr-defined]


def _called(function: Callable[..., Any], options: Mapping[str, Any]) -> Called:
    command = _command_of(function)
    return Called(function.__name__, command.options(), options, config_is_options=command.config_is_options)
