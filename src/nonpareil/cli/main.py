"""`nonpareil <command>`: parse, call the job, print. Heavy imports wait until a command needs them."""

import contextlib
import importlib
import json
import logging
import sys
from collections.abc import Sequence

from nonpareil import __version__
from nonpareil.cli.machine import check_words, failure_of, flush_output, leave_streams, prepare_streams
from nonpareil.errors import ConfigError, NonpareilError
from nonpareil.terminal import PrintableRecord, printable_lines

COMMANDS = {
    "sample": "Draw m completions a prompt, score them, keep the groups.",
    "curve": "Say what best-of-N is worth for every N, from those groups.",
    "distill": "Distil best-of-N into the policy, and evaluate the result.",
    "evaluate": "Measure how near a policy is to best-of-N of its reference.",
    "compare": "Run several methods under one budget, and draw all on one Pareto picture.",
    "export": "Turn groups into TRL's preference, SFT or unpaired datasets.",
}

USAGE = (
    f"""nonpareil {__version__}: one sample as good as the best of N.

usage: nonpareil <command> [--config FILE.yaml] [--flag value ...] [--json]

commands:
"""
    + "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
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
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        return _complain(_unknown(command), status=2)
    result = importlib.import_module(f"nonpareil.cli.{command}").run(rest)
    if result.json is not None:
        print(json.dumps(result.json))
    return result.status


def _unknown(command: str) -> str:
    import difflib

    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"unknown command {command!r}; {hint}"


def _complain(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # where nobody listens, the status says it
        print(f"nonpareil: {printable_lines(message)}", file=sys.stderr, flush=True)
    leave_streams()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
