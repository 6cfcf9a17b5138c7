"""`nonpareil <command>`: parse, run, show. Heavy imports wait until a command needs them."""

import contextlib
import importlib
import json
import logging
import sys
from collections.abc import Sequence

from nonpareil import __version__
from nonpareil.cli.machine import check_words, failure_of, flush_output, leave_streams, prepare_streams
from nonpareil.commands.command import Command
from nonpareil.errors import ConfigError, NonpareilError
from nonpareil.setting_types import nearest
from nonpareil.terminal import PrintableRecord, printable_lines

COMMANDS = {
    "sample": ("nonpareil.commands.sample", "Draw m completions per prompt, score them, keep the groups."),
    "search": (
        "nonpareil.commands.search",
        "Find one good answer per prompt: score completions while they are drawn.",
    ),
    "join": ("nonpareil.commands.join", "Make one folder of several that were drawn and scored alike."),
    "curve": ("nonpareil.commands.curve", "Say what best-of-N is worth for every N, from those groups."),
    "distill": (
        "nonpareil.commands.distill.command",
        "Distil best-of-N into the policy, and evaluate the result.",
    ),
    "evaluate": (
        "nonpareil.commands.evaluate.command",
        "Measure how near a policy is to best-of-N of its reference.",
    ),
    "compare": (
        "nonpareil.commands.compare.command",
        "Run several methods under one budget, and draw all on one Pareto picture.",
    ),
    "value": (
        "nonpareil.commands.value.fit",
        "Fit what prefixes are worth on those groups, and say how well it is known.",
    ),
    "credits": (
        "nonpareil.commands.credits",
        "Credit other next tokens of stored completions by a value, for value_distillation.",
    ),
    "tilt": (
        "nonpareil.commands.tilt.command",
        "Tilt a policy's vocabulary towards best-of-N: counted from groups, without training.",
    ),
    "interpolate": (
        "nonpareil.commands.interpolate",
        "Write a policy with more or less of its training: weights between and beyond reference and policy.",
    ),
    "serve": (
        "nonpareil.commands.serve.command",
        "Serve best-of-N behind OpenAI's protocol, of a model here or of any server's.",
    ),
    "export": (
        "nonpareil.commands.export",
        "Turn groups into TRL's preference, SFT or unpaired datasets.",
    ),
    "view": ("nonpareil.commands.view.command", "Look at groups and training runs in a browser."),
}
"""By name: the module whose `COMMAND` it is, imported when it is called, and its line in the help."""

USAGE = (
    f"""nonpareil {__version__}: one sample as good as the best of N.

usage: nonpareil <command> [--config FILE.yaml] [--flag value ...] [--json]

commands:
"""
    + "\n".join(f"  {name:<11} {summary}" for name, (_, summary) in COMMANDS.items())
    + """

nonpareil distill                  runs the embedded demo
nonpareil <command> --help         lists a command's options, with an example
"""
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    prepare_streams()
    logging.setLogRecordFactory(PrintableRecord)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        check_words(arguments)
        status = _run(arguments)
        flush_output()
    except ConfigError as error:
        return _complain(str(error), status=2)
    except NonpareilError as error:
        return _complain(str(error), status=1)
    except KeyboardInterrupt:
        return _complain("interrupted", status=130)
    except Exception as error:  # noqa: BLE001 (its traceback is kept in a file)
        return _complain(failure_of(error), status=1)
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        return _complain(f"unknown command {name!r}{hint}", status=2)
    return _run_command(name, importlib.import_module(COMMANDS[name][0]).COMMAND, rest)


def _run_command(name: str, command: Command, argv: Sequence[str]) -> int:
    from nonpareil.cli.help import HELP, help_text
    from nonpareil.cli.parsing import parse

    if {*HELP} & {*argv}:
        print(help_text(name, command, argv), end="")
        return 0
    options, _, as_json = parse(
        name,
        command.options(),
        argv,
        defaults=command.defaults,
        config_is_options=command.config_is_options,
    )
    result = command.run(*options)
    if not result:
        return 0
    command.show(result)
    if as_json:
        print(json.dumps(command.as_json(result)))
    return command.status(result)


def _complain(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # where nobody listens, the status says it
        print(f"nonpareil: {printable_lines(message)}", file=sys.stderr, flush=True)
    leave_streams()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
