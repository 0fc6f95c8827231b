"""A run's report: `python -m train.report RUN` writes RUN/report.html, one page that needs no network.

What the page shows, and how, is in show/report.py and show/report.html.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .run.signals import end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.report")  # the page is written whole or not at all

from .options import DONE, FAILED, USAGE, Parser, UsageError, prepare_process, printable, refuse, say
from .show.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    p = Parser(prog="python -m train.report", description="Write a run's report.html.")
    p.add_argument("run", type=Path, metavar="RUN", help="a run's folder, the --out of train.cifar")
    p.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR", help="where data is (default: data)")
    args = p.parse_args(argv)
    prepare_process()
    try:
        say(printable(f"{write_report(args.run, args.data_root)} is written"))
        return DONE
    except (ValueError, OSError) as error:
        return refuse(error, p.prog, USAGE if isinstance(error, UsageError | FileNotFoundError) else FAILED)


if __name__ == "__main__":
    sys.exit(main())
