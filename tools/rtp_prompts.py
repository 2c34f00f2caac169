"""RealToxicityPrompts' non-toxic prompts as train, validation and test files, split by document.

    python tools/rtp_prompts.py --data ../shared/data --output build/rtp

The split is that of `split.py`: the scorer and the embedded language model have trained on no test document.
"""

import argparse
import gzip
import json
from collections import defaultdict
from pathlib import Path

from split import split_of


def prompts_by_split(path: Path) -> dict[str, list[dict]]:
    """Prompts that Perspective gave less than .5, by the split of their document."""
    found = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            toxicity = record["prompt"]["toxicity"]
            if toxicity is not None and toxicity < 0.5:
                found[split_of(record["group"])].append({"prompt": record["prompt"]["text"].strip()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for split, rows in prompts_by_split(options.data / "rtp-scored" / "train.jsonl.gz").items():
        path = options.output / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
