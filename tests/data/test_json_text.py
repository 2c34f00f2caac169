"""Values as JSON text."""

import json

import numpy as np
import pytest
import torch

from nlf.data.files import json_text

PLAIN = {
    "NaN and infinity": ({"a": float("nan"), "b": [1.5, float("-inf")]}, {"a": None, "b": [1.5, None]}),
    "NaN of numpy and torch": ([np.float32("nan"), torch.tensor(float("inf"))], [None, None]),
    "scalars of numpy and torch": ([np.int64(3), np.float32(0.5), torch.tensor(2)], [3, 0.5, 2]),
    "half a character": ({"a": "\ud800", "b": "ä"}, {"a": "\ud800", "b": "ä"}),
    "half a character beside NaN": (["\ud800", float("nan")], ["\ud800", None]),
    "another object": ([b"x", {"a": 1 + 2j}], ["b'x'", {"a": "(1+2j)"}]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_every_value_can_be_written_and_read_by_any_reader_of_json(name):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    value, expected = PLAIN[name]
    for indent in (None, 1):
        text = json_text(value, indent)
        assert json.loads(text.encode().decode(), parse_constant=refuse) == expected


def test_text_stays_readable():
    assert json_text({"a": "schön"}) == '{"a": "schön"}'
