"""Does it break? Damage, kills, full disks and hostile files, many times over, with figures.

    python tools/reliability.py fuzz --count 20000      damaged model and ratio files
    python tools/reliability.py kill --count 200        SIGKILL and SIGINT at random moments of compiling and calibrating
    python tools/reliability.py limits                  full disk, no room for a file, a folder that is none, little memory
    python tools/reliability.py hostile                 files that want to be somewhere else, or larger than the world
    python tools/reliability.py races --count 20        two processes and one output; data that changes while it is read
    python tools/reliability.py images --count 10000    photos of every size and mode, damaged ones among them
    python tools/reliability.py repeat                  the same bytes twice, the same plan on one and two threads
    python tools/reliability.py soak --count 500        compiles in one process: does memory grow?
    python tools/reliability.py threads --count 20      torch.compile in threads that run at once
    python tools/reliability.py plumbing --count 300    attentions and FFNs drawn at random, as modules and as files
    python tools/reliability.py all                     each of them, with these counts

Every check prints its row of figures and puts it into benchmarks/reliability.json (`--out`); the exit status is 1 if anything
was bad. What is random follows from `--seed`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from pathlib import Path

from reliable import ROOT, Row, merge

COUNTS = {"fuzz": 20_000, "kill": 200, "limits": None, "hostile": None, "races": 20, "images": 10_000, "repeat": 2, "soak": 500,
          "threads": 20, "plumbing": 300}  # None: so many as there are, and nothing of them is random  # fmt: skip


def run(name: str, args: argparse.Namespace) -> Row:
    check = importlib.import_module(f"reliable.{name}")
    wanted = {} if COUNTS[name] is None else {"count": args.count or COUNTS[name], "seed": args.seed}
    if name == "fuzz":
        return dict(check.run(**wanted, jobs=args.jobs, first=args.first)[0])
    return dict(check.run(**wanted))


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("check", choices=(*COUNTS, "all"))
    parser.add_argument("--count", type=int, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="fuzz: processes")
    parser.add_argument("--first", type=int, default=0, help="fuzz: the number of the first case")
    parser.add_argument("--json", action="store_true", help="the row as JSON on stdout")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "reliability.json", help="where the rows are merged")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bad = 0
    for name in COUNTS if args.check == "all" else [args.check]:
        row = run(name, args)
        merge(name, row, args.out)
        bad += row["bad"]
        print(json.dumps({name: row}, indent=1) if args.json else f"{name}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
