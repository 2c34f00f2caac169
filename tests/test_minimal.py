"""examples/minimal.py gives the same credit, losses and gradients as the library, and runs."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nlf.method import credit
from nlf.method.losses import Coefficients, StepTotals, alt_loss, token_stats

PAGE = Path(__file__).parent.parent / "examples" / "minimal.py"
EOS = 3


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_a_page():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_credit_is_the_library_s(minimal, decay):
    r = np.random.default_rng(0)
    rows, most = 24, 6
    lengths, rewards, groups = r.integers(1, most + 1, rows), r.random(rows), np.arange(rows) // 3
    prompts = groups // 2  # sampled in two iterations
    scores = np.where(r.random((rows, most)) < 0.1, np.nan, r.random((rows, most)))
    scores[np.arange(most) >= lengths[:, None]] = np.nan
    tensors = [torch.from_numpy(each) for each in (scores, lengths, rewards, groups, prompts)]
    ours = minimal.credits(*tensors, decay)

    held = np.arange(most) < lengths[:, None]
    places = np.broadcast_to(np.arange(1.0, most + 1), held.shape)[held]
    prefixes = credit.Prefixes(lengths, places, scores[held], rewards, prompts, groups)
    start, values, _ = credit.prefix_values(prefixes, most)
    theirs = np.zeros((rows, most))
    theirs[held] = credit.advantages(start, values, lengths, decay)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-8)


def test_loss_and_gradient_are_the_library_s(minimal):
    torch.manual_seed(0)
    rows, length, vocabulary = 6, 7, 31
    logits = (2 * torch.randn(rows, length, vocabulary)).requires_grad_()
    ref, earned = 2 * torch.randn(rows, length, vocabulary), torch.randn(rows, length)
    labels = torch.randint(vocabulary, (rows, length))
    labels[0, 2] = EOS
    earned[labels == EOS] = 0
    mask = torch.arange(length) < torch.tensor([[7], [1], [3], [7], [5], [2]])

    ours = minimal.loss_of(logits, ref, labels, mask, earned, EOS, 0.3)
    theirs, _ = alt_loss(
        token_stats(logits, labels, ref, stop_ids=[EOS]),
        mask,
        None,
        totals=StepTotals(mask.sum(), rows),
        coefficients=Coefficients(0.0, 0.0, 0.3, 0.0, credit_coef=1.0),
        contrast_mask=labels != EOS,
        credit=earned,
    )

    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_it_runs(minimal, monkeypatch, capsys):
    few = "--iterations 2 --prompts 6 --generations 2 --length 4 --steps 2 --batch 4 --test_prompts 2"
    monkeypatch.setattr(sys, "argv", ["minimal.py", *few.split()])
    minimal.main()
    assert "mean toxicity after: 0." in capsys.readouterr().out
