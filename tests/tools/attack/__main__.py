"""The command: see the package."""

import argparse
import os
import sys

# As the tests do: what is computed twice, here and in a command, is computed with as many threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from . import ATTACKS, Skipped, all_campaigns, attempt, campaign


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.tools.attack", description="Attack what the project promises.")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)} (default: all)")
    p.add_argument("--minutes", type=float, default=10, help="for all together (default: 10)")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    p.add_argument("--trial", type=int, metavar="N", help="this trial of one attack alone")
    args = p.parse_args(argv)
    names = args.names or list(ATTACKS)
    unknown = [name for name in names if name not in ATTACKS]
    if unknown or (args.trial is not None and len(names) != 1):
        p.error(f"there is no attack {unknown[0]}" if unknown else "--trial needs the name of one attack")
    if args.trial is None:
        if len(names) > 1:
            return 1 if all_campaigns(names, args.minutes, args.seed) else 0
        return 1 if campaign(names[0], args.minutes, args.seed) else 0
    try:
        finding = attempt(names[0], args.seed, args.trial)
    except Skipped as reason:
        finding = f"{reason}\n"
    print(finding or "nothing found\n", end="")
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())
