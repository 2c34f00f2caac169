"""examples/minimal_tags.py gives the same losses, gradients and quantiles as the library, and runs."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nlf.method.losses import Coefficients, StepTotals, alt_loss, token_stats
from nlf.method.quantize import quantize
from nlf.method.tags import DEFAULT_TAGS, SEPARATOR

PAGE = Path(__file__).parent.parent / "examples" / "minimal_tags.py"
OBJECTIVES = {
    "published": {"nll": 1.0, "contrast": 0.0, "beta": 0.05, "entropy": 0.06},
    "contrastive": {"nll": 0.0, "contrast": 1.0, "beta": 2.0, "entropy": 0.0},
    "everything": {"nll": 0.7, "contrast": 0.4, "beta": 0.3, "entropy": 0.2},
}


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal_tags", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_a_page():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 200


def test_same_tags_and_separator(minimal):
    assert tuple(minimal.TAGS) == DEFAULT_TAGS
    assert minimal.SEPARATOR == SEPARATOR


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient_are_the_library_s(minimal, objective):
    torch.manual_seed(0)
    coefs = OBJECTIVES[objective]
    rows, length, vocabulary = 6, 7, 31  # the last id is the separator
    right, wrong = (2 * torch.randn(rows, length, vocabulary) for _ in range(2))
    right.requires_grad_()
    ref = 2 * torch.randn(rows, length, vocabulary - 1)
    labels = torch.randint(vocabulary - 1, (rows, length))
    labels[0, 2] = 3  # EOS, which does not count in the contrast
    mask = torch.arange(length) < torch.tensor([[7], [1], [3], [7], [5], [2]])
    wrong = wrong if coefs["contrast"] else None

    ours = minimal.alt_loss(right, wrong, ref, labels, mask, 3, **coefs)
    theirs, _ = alt_loss(
        token_stats(right, labels, ref, [vocabulary - 1]),
        mask,
        wrong if wrong is None else token_stats(wrong, labels, ref, [vocabulary - 1]),
        totals=StepTotals(mask.sum(), rows),
        coefficients=Coefficients(coefs["nll"], coefs["contrast"], coefs["beta"], coefs["entropy"]),
        contrast_mask=labels != 3,
    )

    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(loss, right)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64, 1001])
@pytest.mark.parametrize("decimals", [1, 12], ids=["many ties", "no ties"])
def test_quantiles_are_the_library_s(minimal, size, decimals):
    rewards = np.random.default_rng(size).random(size).round(decimals)
    for k in (2, 5, 7):
        assert minimal.quantize(torch.from_numpy(rewards), k).tolist() == quantize(rewards, k).tolist()


def test_it_runs(minimal, monkeypatch, capsys):
    few = "--iterations 2 --prompts 6 --generations 2 --length 4 --steps 1 --batch 4 --test_prompts 2"
    monkeypatch.setattr(sys, "argv", ["minimal_tags.py", *few.split()])
    minimal.main()
    assert "mean toxicity Lowest Toxicity: 0." in capsys.readouterr().out
