"""``python -m tests.hostile``: the table without pytest; prints the figures, and what was not as expected."""

from __future__ import annotations

import asyncio
import sys

from tests.hostile.campaign import ROWS, Campaign, cases
from tests.hostile.reach import open_world, problem


async def _run(campaign: Campaign, rows: list[int]) -> None:
    await campaign.open()
    try:
        for row in rows:
            await campaign.run_row(row)
            failed = [line for line, outcome in campaign.outcomes.items() if line.row == row and outcome]
            print(f"row {row:2}: {'as expected' if not failed else f'{len(failed)} lines otherwise'}", flush=True)
            for line in failed:
                print(f"  {line}: {(campaign.outcomes[line] or '').strip().splitlines()[-1]}", flush=True)
    finally:
        print(campaign.figures(), flush=True)
        await campaign.close()


def main(arguments: list[str]) -> int:
    """Try these rows, or all; answer whether something was not as expected."""
    if what := problem():
        print(f"{what} is not there")
        return 1
    rows = [int(each) for each in arguments] or list(ROWS)
    with open_world() as world:
        campaign = Campaign(world, [line for line in cases() if line.row in rows])
        asyncio.run(_run(campaign, rows))
    return int(any(campaign.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
