"""The fault campaign.

python -m loadtest.chaos [--seed N]                    the short run: the faults that every test run must survive
python -m loadtest.chaos --minutes 20 [--seed N]       the long one, with all of them
python -m loadtest.chaos --hold 10000 --minutes 10     no faults: requests that wait, and what they cost
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loadtest.chaos import campaign
from loadtest.chaos.campaign import Options
from loadtest.chaos.history import Limits
from loadtest.chaos.hold import hold
from loadtest.chaos.nemesis import FAULTS, ISOLATED, plan
from loadtest.postgres import programs

SHORT_REQUESTS, SHORT_SECONDS, SHORT_DRAIN = 2000, 75.0, 45.0
LONG_DRAIN = 180.0

OWN_PROGRAMS = ("unshare", "ip", "mount")
"""What a campaign needs for a network and disks of its own; Debian has ``ip`` in iproute2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; 0 if nothing was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="repeats a plan; drawn at random without it")
    parser.add_argument("--minutes", type=float, help="of load, with every fault there is")
    parser.add_argument("--requests", type=int, help=f"at the most; {SHORT_REQUESTS} in the short run")
    parser.add_argument("--faults", help="which ones, with commas between")
    parser.add_argument("--evidence", type=Path, help="a new directory for journals, logs and database; kept")
    parser.add_argument("--hold", type=int, metavar="COUNT", help="hold so many waiting requests for --minutes")
    parser.add_argument("--rate", type=float, default=40.0, help="polls a second during a hold")
    options = parser.parse_args(arguments)
    if programs() is None:
        print("PostgreSQL is not installed")
        return 2
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**31)
    _isolate(options)
    folder = options.evidence or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    if options.hold:
        kept = asyncio.run(hold(folder, options.hold, options.minutes or 10, options.rate))
    else:
        kept = _campaign(options, folder)
    if kept and not options.evidence:
        shutil.rmtree(folder, ignore_errors=True)
    if not kept:
        print(f"seed {options.seed}, evidence in {folder}", flush=True)
    return 0 if kept else 1


def _campaign(options: argparse.Namespace, folder: Path) -> bool:
    print(f"seed {options.seed}", flush=True)
    seconds = options.minutes * 60 if options.minutes else SHORT_SECONDS
    faults = options.faults.split(",") if options.faults else list(FAULTS) if options.minutes else []
    planned = plan(options.seed, seconds, faults)
    print("plan: " + ", ".join(f"{each.fault} at {each.second:.0f} s" for each in planned), flush=True)
    requests = options.requests or (SHORT_REQUESTS if not options.minutes else 10**9)
    drain = LONG_DRAIN if options.minutes else SHORT_DRAIN
    frozen = "F19" in {each.fault for each in planned}  # another dispatcher must be there to take what it held
    limits = Limits(claimers=2 if frozen else 1)
    chosen = Options(options.seed, requests, seconds, drain, limits=limits, keep=bool(options.evidence))
    return asyncio.run(campaign.run(chosen, planned, folder))


def _isolate(options: argparse.Namespace) -> None:
    """Go on with a network, mounts and processes of its own, where that is allowed: nothing outside is touched.

    Its processes end with it, however it ends: the shell is the first of them, and no process outlives the first.
    """
    if os.environ.get(ISOLATED) or not all(map(shutil.which, OWN_PROGRAMS)):
        return
    own = ["unshare", "--mount", "--net", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*own, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode:
        return
    again = [sys.executable, "-m", "loadtest.chaos", *sys.argv[1:], "--seed", str(options.seed)]
    script = 'ip link set lo up; "$@"; exit $?'  # the shell stays: it buries what has lost its parents
    os.environ[ISOLATED] = "1"
    os.execvp(own[0], [*own, "sh", "-c", script, "sh", *again])


if __name__ == "__main__":
    sys.exit(main())
