"""Continuous batching: completions equal those of `HFSampler`, whatever shares the batch; rows join, leave and are cancelled."""

import copy
import random

import pytest
import test_hf
import torch
from test_hf import requests, tiny

from nlf.config import SamplingOptions
from nlf.errors import UserError
from nlf.sampling.continuous import Decoder, rows_of
from nlf.sampling.hf import HFSampler
from nlf.sampling.slots import Slots, WholeSlots

EOS, BANNED = 0, (7,)
RULES = [
    SamplingOptions(num_generations=3, max_completion_length=9, top_p=0.9),
    SamplingOptions(num_generations=1, max_completion_length=14, temperature=0.7, top_k=5),
    SamplingOptions(num_generations=2, max_completion_length=5, temperature=0, min_completion_length=3),
    SamplingOptions(num_generations=2, max_completion_length=7, guidance_scale=1.5, top_p=0.8),
    SamplingOptions(num_generations=1, max_completion_length=11, guidance_scale=0.5),
]


def decoder(model, **options) -> Decoder:
    return Decoder(model, eos=(EOS,), banned=BANNED, **options)


def expected(model, asked) -> list[list[list[int]]]:
    sampler = HFSampler(model, eos_token_ids=(EOS,), banned_token_ids=BANNED)
    return [sampler.sample([request], options, seed=seed, iteration=-1)[0] for request, options, seed in asked]


def work(seed: int, count: int = 12):
    """Requests of different lengths, rules and seeds."""
    draw = random.Random(seed)
    prompts = requests([draw.choice((1, 2, 4, 9, 17)) for _ in range(count)], negative=True)
    return [(each, draw.choice(RULES), draw.choice((0, 3))) for each in prompts]


def served(running: Decoder, asked, joining) -> list[list[list[int]]]:
    """The completions of requests, of which `joining()` come between two tokens."""
    left, rows = list(asked), []
    while left or running.busy:
        for _ in range(min(joining(), len(left))):
            request, options, seed = left.pop(0)
            rows.append(rows_of(request, options, seed=seed, iteration=-1))
            running.check(rows[-1])
            running.add(rows[-1])
        running.step()
    return [[row.out for row in each] for each in rows]


@pytest.mark.parametrize("name", test_hf.CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_completions_do_not_depend_on_what_shares_the_batch(name, seed):
    model, asked, draw = tiny(name), work(seed), random.Random(seed)
    running = decoder(model)
    assert isinstance(running.slots, Slots)
    assert served(running, asked, lambda: draw.choice((0, 0, 1, 2))) == expected(model, asked)


def test_a_model_whose_cache_cannot_be_used_is_read_whole(monkeypatch, caplog):
    model, asked = tiny(), work(2, 5)
    monkeypatch.setattr("nlf.sampling.slots.SlotLayer.update", lambda self, keys, values, *args: (keys, values))
    running = decoder(model)
    assert isinstance(running.slots, WholeSlots) and "decoding is slow: GPT2LMHeadModel" in caplog.text
    monkeypatch.undo()
    assert served(running, asked, lambda: 1) == expected(model, asked)


@pytest.mark.parametrize("limits", [{"most_rows": 2}, {"token_budget": 60}, {"token_budget": 1}])
def test_rows_wait_while_the_batch_is_full(limits):
    model, asked = tiny("llama"), work(3)
    running, most = decoder(model, **limits), 0
    original = running.step

    def step() -> list:
        nonlocal most
        found = original()
        most = max(most, len(found))
        return found

    running.step = step
    assert served(running, asked, lambda: 3) == expected(model, asked)
    assert most <= (2 if "most_rows" in limits else 1 if limits["token_budget"] == 1 else 6)


def test_memory_is_given_back_and_columns_are_used_again():
    model = tiny("llama")
    running, draw = decoder(model, most_rows=4), random.Random(0)
    served(running, work(4, 60), lambda: draw.choice((0, 1, 2)))
    assert running.slots.columns <= 17 + 14 + 2 * 64 and running.slots.size <= 8
    running.step()
    assert running.slots.size == 0 and running.step() == []


def test_a_cancelled_row_leaves_the_others_as_they_are():
    model = tiny()
    options = SamplingOptions(num_generations=3, max_completion_length=12, min_completion_length=12)
    (request,) = requests([4])
    rows = rows_of(request, options, seed=0, iteration=-1)
    running = decoder(model)
    running.add(rows)
    running.step()
    rows[1].cancel()
    while running.busy:
        assert rows[1] not in running.step()
    assert len(rows[1].out) == 1 and rows[1].reason == "cancelled"
    whole = expected(model, [(request, options, 0)])[0]
    assert [rows[0].out, rows[2].out] == [whole[0], whole[2]]


def test_the_reason_and_the_log_probabilities_of_a_token():
    model = tiny()
    (request,) = requests([4])
    options = SamplingOptions(num_generations=1, max_completion_length=2, temperature=0, min_completion_length=2)
    (row,) = rows_of(request, options, seed=0, iteration=-1, top=3)
    running = decoder(model)
    running.add([row])
    assert running.step() == [row] and row.reason is None
    assert running.step() == [row] and row.reason == "length" and not running.step()
    with torch.no_grad():
        logits = model(torch.tensor([request.input_ids])).logits[0, -1]
    logits[[EOS, *BANNED]] = -torch.inf
    log_p = logits.log_softmax(-1)
    first = row.log_probs[0]
    assert len(row.log_probs) == 2 and row.out[0] == int(log_p.argmax()) == first.best[0][0]
    assert first.chosen == pytest.approx(float(log_p.max()), abs=1e-5)
    assert [value for _, value in first.best] == pytest.approx(log_p.topk(3).values.tolist(), abs=1e-5)


def test_what_the_model_cannot_read_is_refused():
    running = decoder(tiny())
    for length, message in ((0, "no tokens"), (64, "context of 64")):
        (request,) = requests([length])
        with pytest.raises(UserError, match=message):
            running.check(rows_of(request, RULES[0], seed=0, iteration=-1))


def test_broken_weights_are_told_and_the_decoder_can_be_used_again():
    model = copy.deepcopy(tiny())
    running, (request,) = decoder(model), requests([4])
    weight = model.transformer.h[0].mlp.c_fc.weight
    kept = weight.detach().clone()
    weight.data.fill_(torch.nan)
    running.add(rows_of(request, RULES[0], seed=0, iteration=-1))
    with pytest.raises(UserError, match="not finite"):
        running.step()
    weight.data.copy_(kept)
    running.reset()
    assert served(running, [(request, RULES[0], 0)], lambda: 1) == expected(model, [(request, RULES[0], 0)])
