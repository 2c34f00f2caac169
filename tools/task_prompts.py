"""Write the prompts on which models are evaluated, split by document.

    python tools/task_prompts.py --data ../shared/data --output build/prompts

It writes `rtp-{train,validation,test}.jsonl` (non-toxic prompts of RealToxicityPrompts), `writing-test.jsonl` (WritingPrompts,
out of domain) and `sentiment-{negative,neutral,positive}-test.jsonl` (OpenWebText). `split.py` gives the split: neither the
scorers nor the embedded language model trained on test documents.
"""

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lm_sources import SOURCES
from split import split_of

KEYS = {source.name: source.key for source in SOURCES}


def records(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def toxicity_prompts(data: Path) -> dict[str, list[str]]:
    """Prompts with a Perspective toxicity below .5, by the split of their document."""
    found = defaultdict(list)
    for record in records(data / "rtp-scored" / "train.jsonl.gz"):
        toxicity = record["prompt"]["toxicity"]
        if toxicity is not None and toxicity < 0.5:
            found[f"rtp-{split_of(record['group'])}"].append(record["prompt"]["text"].strip())
    return found


def test_prompts(path: Path, source: str) -> list[str]:
    """The prompts of test documents, on which the language model did not train."""
    return [row["prompt"]["text"].strip() for row in records(path) if split_of(KEYS[source](row)) == "test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    found = toxicity_prompts(options.data)
    found["writing-test"] = test_prompts(options.data / "writing-prompts-ood/train.jsonl.gz", "writing-prompts")
    for kind in ("negative", "neutral", "positive"):
        path = options.data / f"sentiment-prompts-owt/{kind}_prompts.jsonl.gz"
        found[f"sentiment-{kind}-test"] = test_prompts(path, "sentiment-prompts")
    for name, prompts in found.items():
        path = options.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        print(f"{path}: {len(prompts)} prompts")


if __name__ == "__main__":
    main()
