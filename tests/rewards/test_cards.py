"""The model cards beside the embedded scorers: the form of Hugging Face's cards, and links that lead somewhere."""

import re

import pytest
from huggingface_hub import ModelCard

from nlf.rewards.embedded import SCORERS

CARDS = ["toxicity/README.md", "toxicity/README-1.md", "sentiment/README.md", "audit/README.md"]


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_the_hub_asks_for(name):
    card = ModelCard.load(SCORERS / name)
    found = card.data.to_dict()
    assert (found["language"], found["license"]) == ("en", "apache-2.0")
    assert found["pipeline_tag"] == "text-classification" and found["tags"] and found["metrics"]
    assert card.text.lstrip().startswith("# ")


@pytest.mark.parametrize("name", CARDS)
def test_every_file_that_a_card_names_exists(name):
    text = (SCORERS / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)", text)
    root = SCORERS.parents[3]
    tools = re.findall(r"`(tools/[\w/.]+)`", text) + re.findall(r"python (tools/\S+\.py)", text)
    assert links and tools
    assert [path for path in links if not (SCORERS / name).parent.joinpath(path).exists()] == []
    assert [path for path in tools if not (root / path).exists()] == []


def test_the_card_names_every_attribute_and_the_newest_version():
    from nlf.rewards.local import LocalToxicity

    text = (SCORERS / "toxicity/README.md").read_text(encoding="utf-8")
    assert f"# local@{LocalToxicity.version}" in text
    assert [name for name in LocalToxicity().names if name not in text] == []
