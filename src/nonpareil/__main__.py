"""`python -m nonpareil`, which torchrun and accelerate launch start."""

from nonpareil.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
