"""`python -m nonpareil`, which torchrun and accelerate launch start."""

import os
import sys

from nonpareil.cli.main import main

if __name__ == "__main__":
    status = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads of gloo sometimes abort the interpreter's end (SIGABRT, "terminate called without an active
        # exception"), and torchrun would then end the process that still evaluates.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
