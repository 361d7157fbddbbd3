"""Table of attacks on real processes: `python -m benchmarks.attacks FOLDER` writes docs/attacks.md.

FOLDER is that of `fedprompt deploy rehearse --attacks --out FOLDER`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedprompt.records.atomic_files import write_atomic

PAGE = Path(__file__).parent.parent / "docs" / "attacks.md"
RESULT = "attacks.json"
HEAD = """# Attacks on real processes

Made by `fedprompt deploy rehearse --attacks --out FOLDER` and `python -m benchmarks.attacks FOLDER`, on
{platform}, {cores} cores, with Flower {flwr}, the backbone {backbone} and the method {method}. Of {count} outcomes
{held} held.

The processes are a server, {proxy}three sites with a worker each, and those that Flower starts for them. The numbers
are those of [robustness and privacy](privacy.md#threat-model), which says what is guaranteed, and what is not.

| attack | threat model | what happened | guarantee |
|---|---|---|---|
"""


def page(found: Mapping[str, Any]) -> str:
    """The text of docs/attacks.md."""
    results = found["results"]
    held, proxied = sum(one["held"] for one in results), any("proxy" in one["attack"] for one in results)
    head = HEAD.format(**found["about"], count=len(results), held=held, proxy="a proxy, " if proxied else "")
    return head + "".join(f"{line}\n" for line in rows(results))


def rows(results: list[Mapping[str, Any]]) -> Iterator[str]:
    """A line per outcome."""
    for one in results:
        cells = (one["attack"], one["threat"], one["happened"], "held" if one["held"] else "**failed**")
        yield f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


def main() -> None:
    (folder,) = sys.argv[1:]
    write_atomic(PAGE, page(json.loads(Path(folder, RESULT).read_text(encoding="utf-8"))))
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
