"""A process that says it trains: answers runs with numbers made of their seeds, dies or refuses where told to."""

from __future__ import annotations

import json
import sys
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    seed = request["spec"]["seed"]
    return {
        "curve": [[100, 1.0], [200, 2.0 + seed]],
        "returns": [1.0, 2.0],
        "mean": 1.5 + seed,
        "choices": [[0.1, 3]],
        "train_s": 1.0,
        "peak_rss_bytes": 1 << 20,
    }


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        seed = request["spec"]["seed"]
        if seed == request.get("dies_at"):
            print("out of paper", file=sys.stderr)
            sys.exit(3)
        if seed == request.get("refuses"):
            print(json.dumps({"failed": "NaN in the rewards"}), flush=True)
            continue
        print("torch says hello", flush=True)
        print(json.dumps({"done": 1, "total": 2}), flush=True)
        print(json.dumps({"result": answer(request)}), flush=True)


if __name__ == "__main__":
    main()
