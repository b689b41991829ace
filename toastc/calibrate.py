"""`python -m toastc.calibrate`, which torchrun can start: the command `toastc calibrate`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
