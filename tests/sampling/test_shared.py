"""Shared prompts give what a cache for each row gives, in the models that can have them, and leave the model as it was."""

import pytest
import torch
from tests.sampling.test_hf import CONFIGS, MIXED, requests, sample, tiny
from transformers import DynamicCache

from nlf.config import SamplingOptions
from nlf.models.cache import Rows
from nlf.sampling.hf import HFSampler
from nlf.sampling.shared import SharedRows, Sharing, attend

HEADS, WIDTH = 2, 4  # of keys


def states(rows, tokens, seed, heads=HEADS):
    return torch.randn(2, rows, heads, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).unbind()


def attended(query, keys, values):
    """Query (R, H, 1, D) over all keys (R, K, S, D), a list of tensors where rows differ in length."""
    rows = []
    for q, k, v in zip(query, keys, values, strict=True):
        k, v = (x.repeat_interleave(len(q) // HEADS, 0) for x in (k, v))  # (H, S, D)
        weights = (q @ k.transpose(1, 2) / 2).softmax(-1)
        rows.append((weights @ v)[:, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("owner", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 2, 1, 2]])
def test_attention_is_that_over_prompt_and_own_tokens(owner, group):
    lengths = [5, 2, 4]
    prompts = [states(1, length, seed=length) for length in lengths]
    caches = []  # the prompts were read in two passes: the second alone, then the third and the first
    for rows in ([1], [2, 0]):
        width = max(lengths[i] for i in rows)
        padded = [
            torch.cat([torch.nn.functional.pad(prompts[i][which], (0, 0, width - lengths[i], 0)) for i in rows])
            for which in (0, 1)
        ]
        caches.append(DynamicCache())
        caches[-1].update(*padded, 0)
    order, take = torch.tensor([1, 2, 0]), torch.tensor(owner)
    rows = SharedRows([], None, caches, order, torch.tensor(lengths), take, 3)
    own = [([], []) for _ in owner]
    for step in range(3):
        if step == 2:  # rows leave, and with them the prompt that nobody reads any more
            stay = [0, 1, 4]
            rows.keep(torch.tensor(stay))
            owner, own = [owner[r] for r in stay], [own[r] for r in stay]
        new = states(len(owner), 1, seed=10 + step)
        for row, k, v in zip(own, *new, strict=True):
            row[0].append(k)
            row[1].append(v)
        query = states(len(owner), 1, seed=20 + step, heads=HEADS * group)[0]
        got, _ = attend(None, query, *rows.cache.update(*new, 0), None, scaling=0.5)
        whole = [
            [torch.cat([prompts[i][which][0], *row[which]], 1) for i, row in zip(owner, own, strict=True)]
            for which in (0, 1)
        ]
        torch.testing.assert_close(got[:, 0], attended(query, *whole))
        assert rows.cache.get_seq_length() == 5 + step + 1
    assert len(rows.cache.layers[0].prompt[0]) == len(set(owner))


def test_rows_are_moved_only_where_prompts_have_unlike_numbers_of_them():
    lengths = torch.tensor([3, 3])
    assert Sharing(torch.tensor([0, 0, 1, 1]), lengths).slot is None
    uneven = Sharing(torch.tensor([0, 0, 1]), lengths)
    assert uneven.slot.tolist() == [0, 1, 2]
    x = torch.arange(3.0).view(3, 1, 1, 1)
    assert uneven.by_prompt(x).flatten(1).tolist() == [[0, 1], [2, 0]]
    assert torch.equal(uneven.by_row(uneven.by_prompt(x), 1), x)


@pytest.mark.parametrize("name", CONFIGS)
def test_which_models_share(name):
    model = tiny(name)
    sampler = HFSampler(model, eos_token_ids=(0,))
    sampler.sample(requests(MIXED), SamplingOptions(max_completion_length=3), seed=0, iteration=0)
    assert (sampler.rows.func is Rows) == (name == "mistral")  # its window needs a cache of its own kind
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("spoil", ["raises", "differs", "eager"])
def test_a_model_that_cannot_share_samples_the_same_without(spoil, monkeypatch):
    options = {"num_generations": 3, "max_completion_length": 8}
    model = tiny()
    expected = sample(model, requests(MIXED), **options)
    if spoil == "eager":
        model.set_attn_implementation("eager")
    else:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        def other(module, query, key, value, mask, **kwargs):
            if spoil == "raises":
                raise TypeError("no such argument")
            return attend(module, 2 * query, key, value, mask, **kwargs)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "nlf_shared_prompts", other)
    sampler = HFSampler(model, eos_token_ids=(0,))
    got = sampler.sample(requests(MIXED), SamplingOptions(**options), seed=3, iteration=0)
    assert sampler.rows.func is Rows and got == expected
    assert model.config._attn_implementation == ("eager" if spoil == "eager" else "sdpa")


def test_prompts_are_read_without_much_padding():
    model, read = tiny(), []
    sampler = HFSampler(model, eos_token_ids=())
    sampler.sample(requests([2]), SamplingOptions(max_completion_length=1), seed=0, iteration=0)  # the trial
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    lengths = [16] * 4 + [8] * 20
    sampler.sample(requests(lengths), SamplingOptions(max_completion_length=1), seed=0, iteration=0)
    assert [tuple(shape) for shape in read] == [(20, 8), (4, 16)]
