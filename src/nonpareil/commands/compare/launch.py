"""Run one command and write what it took: `python launch.py RESULT.json COMMAND ...`.

A script of its own, without imports of ours, because a process inherits its parent's peak memory when it starts:
started by a comparison that has evaluated large models, every run would look as large. It asks the command to stop
(SIGTERM) when its standard input closes, so that a run never outlives the comparison that started it.
"""

import json
import os
import subprocess
import sys
import threading
import time


def main(result: str, command: list[str]) -> int:
    """Run the command; returns its exit status, 128 + the signal's number where one ended it."""
    begun = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_at_end_of_input, args=(child,), daemon=True).start()
    _, status, usage = os.wait4(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    spent = {
        "status": code,
        "seconds": time.monotonic() - begun,
        "peak_memory_bytes": usage.ru_maxrss * unit,
    }
    with open(f"{result}.tmp", "w", encoding="utf-8") as file:
        json.dump(spent, file)
    os.replace(f"{result}.tmp", result)
    return code if code >= 0 else 128 - code


def _stop_at_end_of_input(child: subprocess.Popen) -> None:
    os.read(0, 1)  # not sys.stdin: a thread that waits in its buffer aborts the interpreter's end
    child.terminate()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
