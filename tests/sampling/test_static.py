"""Compiled decoding samples what the sampler samples without, from one graph for all shapes, in memory that stays."""

import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.sampling.test_hf import CONFIGS, MIXED, requests, sample, tiny

from nlf.config import SamplingOptions
from nlf.sampling.cache import Rows
from nlf.sampling.hf import HFSampler
from nlf.sampling.static import StaticRows, size_of_graph

COMPILED = sorted(set(CONFIGS) - {"mistral"})


@pytest.fixture
def graphs():
    """Traced as for the compiler, and then run as they are: what inductor makes of them takes seconds to make. The list grows
    by one for each.
    """
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.compiler.set_default_backend(backend)
    yield made
    torch.compiler.set_default_backend("inductor")
    torch.compiler.reset()


def compiled(model, asked, *, seed=3, iteration=0, sampler=None, budget=None, **options):
    sampler = sampler or HFSampler(model, eos_token_ids=(0,), token_budget=budget, compile=True)
    found = sampler.sample(asked, SamplingOptions(**options), seed=seed, iteration=iteration)
    assert sampler.rows is not Rows and sampler.rows.func is StaticRows
    return found


@pytest.mark.parametrize("name", COMPILED)
def test_completions_are_those_without(name, graphs):
    model = tiny(name)
    for options in (
        {"num_generations": 5, "max_completion_length": 12, "top_p": 0.9},
        {"num_generations": 1, "max_completion_length": 3, "temperature": 0},
    ):
        assert compiled(model, requests(MIXED), **options) == sample(model, requests(MIXED), **options)
    assert len(graphs) == 1  # one graph, for other numbers of rows and tokens and for another sampler


def test_guided_completions_are_those_without(graphs):
    options = {"num_generations": 4, "max_completion_length": 9, "guidance_scale": 1.5}
    model, asked = tiny(), requests(MIXED, negative=True)
    assert compiled(model, asked, **options) == sample(model, asked, **options)


def test_an_adapter_samples_as_without(graphs):
    model = get_peft_model(tiny("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)  # adapters start at nothing
    options = {"num_generations": 3, "max_completion_length": 6}
    assert compiled(model, requests(MIXED), **options) == sample(model, requests(MIXED), **options)


def test_weights_are_those_at_the_time(graphs):
    model, options = tiny(), {"num_generations": 3, "max_completion_length": 8}
    sampler = HFSampler(model, eos_token_ids=(0,), compile=True)
    before = compiled(model, requests(MIXED), sampler=sampler, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = compiled(model, requests(MIXED), sampler=sampler, **options)
    assert after == sample(model, requests(MIXED), **options) != before
    assert len(graphs) == 1


def test_memory_stays_where_it_is_until_the_sampler_is_closed(graphs):
    model = tiny()
    sampler = HFSampler(model, eos_token_ids=(0,), token_budget=600, compile=True)  # several batches
    compiled(model, requests([20] * 4), sampler=sampler, num_generations=9, max_completion_length=8)
    places = {name: held.data_ptr() for name, held in sampler.store.memory.items()}
    assert len(places) == 3 * model.config.num_hidden_layers
    compiled(model, requests([9, 3]), sampler=sampler, num_generations=4, max_completion_length=5)
    assert {name: held.data_ptr() for name, held in sampler.store.memory.items()} == places
    sampler.close()
    assert not sampler.store.memory
    asked, options = requests([5]), {"num_generations": 2, "max_completion_length": 4}
    assert compiled(model, asked, sampler=sampler, **options) == sample(model, asked, **options)


def test_sizes_are_few_and_not_much_too_large():
    sizes = [size_of_graph(rows) for rows in range(1, 2049)]
    assert all(rows <= size <= max(8, 1.25 * rows) or size - rows < 8 for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 32 and sizes == sorted(sizes)


@pytest.mark.parametrize("spoil", ["window", "eager", "breaks"])
def test_a_model_that_does_not_allow_it_is_sampled_without(spoil, graphs, caplog, monkeypatch):
    model = tiny("mistral" if spoil == "window" else "gpt2")
    if spoil == "eager":
        model.set_attn_implementation("eager")
    if spoil == "breaks":
        monkeypatch.setattr(model.transformer.h[0], "forward", _breaking(model.transformer.h[0].forward))
    options = {"num_generations": 2, "max_completion_length": 5}
    sampler = HFSampler(model, eos_token_ids=(0,), compile=True)
    got = sampler.sample(requests(MIXED), SamplingOptions(**options), seed=3, iteration=0)
    assert got == sample(model, requests(MIXED), **options)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith("compiled decoding is not for this model, which is sampled without: ")


def _breaking(forward):
    def breaks(*args, **kwargs):
        torch._dynamo.graph_break()
        print(end="")
        return forward(*args, **kwargs)

    return breaks


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_what_the_compiler_makes_of_it():
    torch.compiler.reset()
    model, options = tiny("llama"), {"num_generations": 5, "max_completion_length": 8, "top_p": 0.9}
    assert compiled(model, requests(MIXED), **options) == sample(model, requests(MIXED), **options)
