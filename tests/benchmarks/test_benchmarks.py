"""The arithmetic of the benchmarks by hand: pairs, ratios, tables and necessary operations. No test uses a clock."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import paired
import roofline
import sampling


def test_sides_alternate_and_the_first_pair_is_left_out():
    called = []

    class Prepared:
        def prepare(self):
            called.append("prepare")

        def __call__(self, number):
            called.append(("b", number))
            return 10 + number

    def plain(number):
        called.append(("a", number))
        return number

    taken = paired.alternate({"a": plain, "b": Prepared()}, 2)
    assert called == [
        *(("a", 0), "prepare", ("b", 0)),
        *("prepare", ("b", 1), ("a", 1)),
        *(("a", 2), "prepare", ("b", 2)),
    ]
    assert [row.amount for row in taken["a"]] == [1, 2] and [row.amount for row in taken["b"]] == [11, 12]


def test_ratios_and_the_table_by_hand():
    rows = [paired.Taken(2.0, 1.0, 100), paired.Taken(1.0, 1.0, 90), paired.Taken(1.0, 0.5, 60)]  # 50, 90, 60 a second
    taken = {"nlf": rows, "other": [paired.Taken(1.0, 1.0, 20)] * 3}
    assert paired.ratios(taken) == ([2.5, 4.5, 3.0], [5.0, 4.5, 6.0])
    line = "nlf / other: 3.00 × (median of 3 pairs, 2.50 to 4.50); by CPU seconds 5.00 × (4.50 to 6.00)"
    assert paired.ratio_line(taken) == line
    assert "| nlf | 60 | 50 | 90 | 100 |" in paired.table(taken, "tokens")


def test_needed_operations_by_hand():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=4, n_layer=1, n_head=1, n_positions=8))
    # attention 4 x 12 + 12 and 4 x 4 + 4, mlp 4 x 16 + 16 and 16 x 4 + 4, three norms of 8: no table, no head of 11 x 4
    body, head = 60 + 20 + 80 + 68 + 24, 44
    assert roofline.forward_flops(model, 5, 2) == 2 * (5 * body + 2 * head)
    assert roofline.sampling_flops(model, 7, 3, 9) == 2 * ((7 + 9 - 3) * body + 9 * head)
    assert roofline.training_flops(model, 5, 2, 3, 1) == 3 * 2 * (5 * body + 2 * head) + 2 * (3 * body + head)


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.9), (0, 1.0)])
def test_completions_end_as_often_as_asked_on_both_sides(top_k, top_p):
    flags = f"--width 64 --layers 1 --vocabulary 500 --prompts 300 --generations 1 --ends 0.4 --top_k {top_k} --top_p {top_p}"
    args = sampling.options(flags.split())
    model, prompts = sampling.build(args), sampling.prompts_of(args)
    chance = 1 - 0.6 ** (1 / 19)
    expected = sum((1 - chance) ** t for t in range(20))  # 15.8: a token is there if none before it ended
    for side in (sampling.ours, sampling.theirs):
        assert side(model, prompts, args)(1) / 300 == pytest.approx(expected, abs=1.2)


def test_prompts_are_as_long_as_real_ones():
    lengths = torch.tensor(
        [len(p) for p in sampling.prompts_of(argparse.Namespace(prompts=4000, vocabulary=9, length=None))]
    )
    found = lengths.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    assert found == pytest.approx([8, 14, 26], abs=1)  # RealToxicityPrompts under GPT-2's tokenizer
