"""Compiled decoding samples what the sampler samples without, from one graph for all shapes, in memory that stays."""

import copy
import logging
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from tests.sampling.test_hf import CONFIGS, MIXED, requests, sample, tiny

from nlf.config import SamplerOptions, SamplingOptions
from nlf.errors import UserError
from nlf.models.policy import Policy, load_model
from nlf.sampling.factory import sampler_of
from nlf.sampling.hf import HFSampler
from nlf.sampling.shared import SharedRows
from nlf.sampling.static import FixedLayer, StaticRows, rounded_up

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
    assert sampler.rows.func is StaticRows
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


def held(sampler) -> dict:
    """Where the compiled pass finds what it reads."""
    return {
        (i, name): x.data_ptr() for i, layer in enumerate(sampler.compiled.layers) for name, x in layer.flat.items()
    }


def test_memory_stays_where_it_is_until_the_sampler_is_closed(graphs):
    model = tiny()
    sampler = HFSampler(model, eos_token_ids=(0,), token_budget=600, compile=True)  # several batches
    compiled(model, requests([20] * 4), sampler=sampler, num_generations=9, max_completion_length=8)
    places = held(sampler)
    assert len(places) == 3 * model.config.num_hidden_layers
    compiled(model, requests([9, 3]), sampler=sampler, num_generations=4, max_completion_length=5)
    assert held(sampler) == places
    sampler.close()
    assert sampler.compiled is None
    asked, options = requests([5]), {"num_generations": 2, "max_completion_length": 4}
    assert compiled(model, asked, sampler=sampler, **options) == sample(model, asked, **options)
    assert len(graphs) == 1


def test_out_of_memory_leaves_nothing_of_the_failed_batch(graphs, monkeypatch):
    """Memory for all of the batch but its last layer: with what the first layers took kept, no smaller one would fit."""
    model, asked, options = tiny(), requests([9] * 16), {"num_generations": 2, "max_completion_length": 6}
    expected = sample(model, asked, **options)
    sampler = HFSampler(model, eos_token_ids=(0,), compile=True)
    memory, taken, most = FixedLayer._memory, {}, 2 * 32 * 32 * 16 + 1000  # keys and values of 16 numbers a token

    def limited(self, name, size, like):
        places = [place for layer in sampler.compiled.layers if layer is not self for place in layer.flat.values()]
        if sum(map(len, places)) + size > most:
            raise torch.cuda.OutOfMemoryError("no memory left")
        taken[size] = name
        return memory(self, name, size, like)

    compiled(model, requests([3]), sampler=sampler, num_generations=1, max_completion_length=2)  # the trial
    monkeypatch.setattr(FixedLayer, "_memory", limited)
    assert compiled(model, asked, sampler=sampler, **options) == expected
    assert 16 * 32 * 16 in taken  # half as many rows


def test_numbers_that_are_not_finite_do_not_outlive_an_error(graphs):
    model, options = tiny("llama"), {"num_generations": 3, "max_completion_length": 6}
    expected, weights = sample(model, requests([4]), **options), copy.deepcopy(model.state_dict())
    sampler = HFSampler(model, eos_token_ids=(0,), compile=True)
    compiled(model, requests([4]), sampler=sampler, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        compiled(model, requests([30]), sampler=sampler, **options)
    model.load_state_dict(weights)
    assert compiled(model, requests([4]), sampler=sampler, **options) == expected


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps its state for the whole process, whatever test made it first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("compile", [True, False])
def test_mixed_precision_has_the_same_ways(name, compile, graphs, fresh_accelerator):
    """As in training: the forward that accelerate prepares computes in bfloat16 and answers in float32."""
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare(tiny(name)).eval()
    options = {"num_generations": 2, "max_completion_length": 4}
    sampler = HFSampler(model, eos_token_ids=(0,), compile=compile)
    with accelerator.autocast():
        sampler.sample(requests(MIXED), SamplingOptions(**options), seed=0, iteration=0)
        assert sampler.rows.func is (StaticRows if compile else SharedRows)


def test_the_flag_reaches_the_sampler():
    policy = Policy(*load_model("embedded"))
    for compile in (True, False):
        assert sampler_of(policy, SamplerOptions(sampler_compile=compile)).compile is compile


def test_sizes_are_few_and_not_much_too_large():
    sizes = [rounded_up(count, 8) for count in range(1, 2049)]
    assert all(count <= size <= max(8, 1.5 * count) for count, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]


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
    assert warning.startswith("sampling continues without compiled decoding: ")


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
