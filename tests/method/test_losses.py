"""Losses against a naive float64 implementation and by hand. Traps: added tokens, padding, denominators."""

import math

import pytest
import torch

from nlf.method.losses import Coefficients, StepTotals, TokenStats, alt_loss, credit_loss, going_on, token_stats

COEFS = {"nll_coef": 0.2, "contrast_coef": 1.0, "beta": 0.7, "entropy_coef": 0.06}
B, T, V = 3, 4, 9


def case(seed=0, ref_width=V, dtype=torch.float64):
    """Logits of both branches and the reference, labels and a mask with ragged ends."""
    g = torch.Generator().manual_seed(seed)
    right, wrong, ref = (3 * torch.randn(B, T, w, generator=g, dtype=dtype) for w in (V, V, ref_width))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    return right.requires_grad_(), wrong.requires_grad_(), ref, torch.randint(V, (B, T), generator=g), mask


def stats_of(logp, entropy, kl, stop=None):
    """Statistics of tokens after which the completion surely goes on, unless `stop` says otherwise."""
    return TokenStats(logp, entropy, kl, torch.full_like(logp, -math.inf) if stop is None else stop)


def naive(logits, label, ref, excluded=(), direction="forward", stop_ids=()):
    """Statistics of one position, term by term."""
    log_p = [float(x) - math.log(sum(math.exp(float(y)) for y in logits)) for x in logits]
    keep = [i for i in range(min(len(logits), len(ref))) if i not in excluded]
    p, q = ([math.exp(float(row[i])) for i in keep] for row in (logits, ref))
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    a, b = (q, p) if direction == "forward" else (p, q)
    kl = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
    ending = sum(math.exp(log_p[i]) for i in stop_ids)
    return log_p[label], -sum(math.exp(x) * x for x in log_p), kl, math.log(ending) if stop_ids else -math.inf


@pytest.mark.parametrize("stop_ids", [(), (1,), (8,), (0, 3, 8)], ids=lambda ids: f"stop {ids}")
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("excluded", "ref_width"),
    [
        ((), V),
        ((8,), V),
        ((3,), V),
        ((0, 8), V),
        ((8,), V - 1),
        ((7, 8), V - 2),
        ((), V + 2),
        ((2, 7), V - 1),
        ((-1, 40), V),
    ],
)
def test_token_stats_equal_the_naive_sum(direction, excluded, ref_width, stop_ids):
    """The ids that end a completion may be compared with the reference, excluded, or both."""
    logits, _, ref, labels, _ = case(ref_width=ref_width)
    stats = token_stats(logits, labels, ref, excluded, direction, stop_ids)
    for b in range(B):
        for t in range(T):
            expected = naive(logits[b, t].detach(), int(labels[b, t]), ref[b, t], excluded, direction, stop_ids)
            got = [float(each[b, t].detach()) for each in stats]
            assert got == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    ref = torch.log(torch.tensor([[[0.25, 0.25, 0.5]]]))
    labels = torch.tensor([[1]])
    logp, entropy, kl, stop = token_stats(logits, labels, ref, stop_ids=[0])
    assert logp.item() == pytest.approx(math.log(0.25))
    assert entropy.item() == pytest.approx(1.5 * math.log(2))
    assert stop.item() == pytest.approx(math.log(0.5))
    assert kl.item() == pytest.approx(0.25 * math.log(2))  # .25 ln(.25/.5) + .5 ln(.5/.25)
    without_last = token_stats(logits, labels, ref, excluded_ids=[2])  # (2/3, 1/3) against (1/2, 1/2)
    assert without_last.kl.item() == pytest.approx(0.5 * math.log(9 / 8), rel=1e-5)
    assert without_last.logp.item() == logp.item() and without_last.entropy.item() == entropy.item()


def test_kl_of_a_model_to_itself_is_zero_and_to_none_is_zero():
    logits, _, _, labels, _ = case()
    assert token_stats(logits, labels, logits.detach()).kl.abs().max() < 1e-12
    assert not token_stats(logits, labels, None).kl.any()


def test_half_precision_is_widened_and_the_reference_broadcast_over_branches():
    right, wrong, ref, labels, _ = case(dtype=torch.float32)
    stats = token_stats(right.bfloat16(), labels, ref.bfloat16(), stop_ids=[0, 7])
    assert all(each.dtype == torch.float32 for each in stats)
    exact = token_stats(right.bfloat16().float(), labels, ref.bfloat16().float(), stop_ids=[0, 7])
    assert all(torch.equal(a, b) for a, b in zip(stats, exact, strict=True))
    both = token_stats(torch.stack([right, wrong]), labels.expand(2, B, T), ref)
    for branch, logits in enumerate((right, wrong)):
        for a, b in zip(both, token_stats(logits, labels, ref), strict=True):
            torch.testing.assert_close(a[branch], b)


def test_added_tokens_may_take_all_the_mass():
    logits = torch.tensor([[[0.0, 0.0, 200.0]]], requires_grad=True)
    stats = token_stats(logits, torch.tensor([[0]]), torch.tensor([[[0.0, 1.0, 0.0]]]), excluded_ids=[2])
    stats.kl.sum().backward()
    q = 1 / (1 + math.e)
    assert stats.kl.item() == pytest.approx(q * math.log(2 * q) + (1 - q) * math.log(2 - 2 * q), abs=1e-4)
    assert torch.isfinite(logits.grad).all()


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="'forward' or 'reverse'"):
        token_stats(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), None, kl_direction="backward")


def naive_loss(right, wrong, ref, labels, mask, tokens, completions, direction="forward", excluded=()):
    """The formula of the module's docstring, differentiable by autograd."""
    keep = [i for i in range(min(right.shape[-1], ref.shape[-1])) if i not in excluded]
    log_q = torch.log_softmax(ref[..., keep], -1)
    total = 0.0
    for b in range(len(mask)):
        margin = 0.0
        for t in range(mask.shape[1]):
            if not mask[b, t]:
                continue
            for sign, logits in ((1, right), (-1, wrong)):
                log_p = torch.log_softmax(logits[b, t], -1)
                among = torch.log_softmax(logits[b, t, keep], -1)
                ref_row = log_q[b, t]
                kl = (
                    (ref_row.exp() * (ref_row - among)).sum()
                    if direction == "forward"
                    else (among.exp() * (among - ref_row)).sum()
                )
                total = total + COEFS["beta"] * kl / tokens
                margin = margin + sign * log_p[labels[b, t]]
                if sign > 0:
                    total = total - COEFS["nll_coef"] * log_p[labels[b, t]] / tokens
                    total = total + COEFS["entropy_coef"] * (log_p.exp() * log_p).sum() / tokens
        total = total - COEFS["contrast_coef"] * torch.log(torch.sigmoid(margin)) / completions
    return total


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("excluded", "ref_width"), [((), V), ((8,), V - 1), ((4,), V)])
def test_loss_and_gradients_equal_the_naive_ones(direction, excluded, ref_width):
    right, wrong, ref, labels, mask = case(1, ref_width)
    stats = [token_stats(x, labels, ref, excluded, direction) for x in (right, wrong)]
    loss, _ = alt_loss(stats[0], mask, stats[1], totals=StepTotals(11, 5), coefficients=Coefficients(**COEFS))
    expected = naive_loss(right, wrong, ref, labels, mask, 11, 5, direction, excluded)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    got, want = (torch.autograd.grad(x, (right, wrong)) for x in (loss, expected))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert not a[~mask].any()


def test_sums_by_hand():
    right = stats_of(torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[0.1, 0.2]]))
    wrong = stats_of(torch.tensor([[-2.0, -4.0]]), torch.zeros(1, 2), torch.tensor([[0.3, 0.4]]))
    loss, sums = alt_loss(
        right, torch.ones(1, 2).bool(), wrong, totals=StepTotals(2, 1), coefficients=Coefficients(**COEFS)
    )
    contrast = math.log(1 + math.exp(-3.0))
    expected = {"nll": 3.0, "kl": 1.0, "entropy": 0.75, "contrast": contrast, "margin": 3.0, "accuracy": 1.0}
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-6)
    assert float(loss) == pytest.approx(0.2 * 3 / 2 + contrast + 0.7 * 1 / 2 - 0.06 * 0.75 / 2, rel=1e-6)


def test_one_branch_has_no_contrast():
    right, _, ref, labels, mask = case()
    loss, sums = alt_loss(
        token_stats(right, labels, ref), mask, None, totals=StepTotals(7, 3), coefficients=Coefficients(**COEFS)
    )
    expected = (0.2 * sums["nll"] + 0.7 * sums["kl"] - 0.06 * sums["entropy"]) / 7
    torch.testing.assert_close(loss.detach(), expected)
    assert sums["contrast"] == sums["margin"] == sums["accuracy"] == 0


def test_micro_batches_add_up_to_the_step():
    """With denominators of the micro-batch, completions of different lengths would have different weights."""
    right, wrong, ref, labels, mask = case()

    def loss(rows):
        stats = [token_stats(x[rows], labels[rows], ref[rows]) for x in (right, wrong)]
        totals, coefficients = StepTotals(7, 3), Coefficients(**COEFS)
        return alt_loss(stats[0], mask[rows], stats[1], totals=totals, coefficients=coefficients)[0]

    torch.testing.assert_close(loss([0]) + loss([1, 2]), loss([0, 1, 2]))


def test_padded_positions_may_hold_anything():
    """0 · inf is NaN: padding is filled, not multiplied away, and passes no gradient back."""
    values = torch.tensor([[-1.0, float("-inf"), float("nan")]]).expand(4, 1, 3).clone().requires_grad_()
    stats = TokenStats(*values)
    mask = torch.tensor([[True, False, False]])
    credit = torch.tensor([[0.5, float("inf"), float("nan")]])
    coefficients = Coefficients(**COEFS, credit_coef=0.3)
    loss, _ = alt_loss(stats, mask, stats, totals=StepTotals(1, 1), coefficients=coefficients, credit=credit)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(values.grad).all() and not values.grad[..., 1:].any()


def test_an_empty_completion_is_undecided():
    """A completion without tokens has margin 0 and contrast ln 2."""
    right, wrong, ref, labels, _ = case()
    stats = [token_stats(x, labels, ref) for x in (right, wrong)]
    loss, sums = alt_loss(
        stats[0], torch.zeros(B, T).bool(), stats[1], totals=StepTotals(1, B), coefficients=Coefficients(**COEFS)
    )
    assert float(loss.detach()) == pytest.approx(math.log(2)) and sums["accuracy"] == 0


def test_very_unlikely_margins_keep_their_gradient():
    logp = torch.tensor([[-500.0]], requires_grad=True)
    zero = torch.zeros(1, 1)
    loss, _ = alt_loss(
        stats_of(logp, zero, zero), torch.ones(1, 1).bool(), stats_of(zero, zero, zero),
        totals=StepTotals(1, 1), coefficients=Coefficients(nll_coef=0, contrast_coef=1, beta=0, entropy_coef=0),
    )  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == pytest.approx(500) and float(logp.grad) == pytest.approx(-1)


# ---- ending and credit ----------------------------------------------------------------------------------------------

EOS = 5
ONLY_CREDIT = Coefficients(nll_coef=0, contrast_coef=0, beta=0, entropy_coef=0, credit_coef=1.0)


def credits(seed=3):
    """Credit of both signs, with a 0."""
    found = torch.randn(B, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found[0, 1] = 0
    return found


def naive_going_on(logits, labels, stop_ids=(EOS,)):
    """Log-softmax over the ids that do not end the completion. At a label that ends it, any number."""
    others = torch.ones(logits.shape[-1], dtype=torch.bool)
    others[list(stop_ids)] = False
    among = logits.masked_fill(~others, -math.inf)
    return torch.log_softmax(among, -1).gather(-1, labels.clamp(max=logits.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)


def credited_loss(right, wrong, ref, labels, mask, credit, coefficients, totals=(11, 5), rows=slice(None)):
    """`alt_loss` of rows of a case where token EOS ends a completion."""
    stats = [
        None if x is None else token_stats(x[rows], labels[rows], ref[rows], stop_ids=[EOS]) for x in (right, wrong)
    ]
    return alt_loss(
        stats[0], mask[rows], stats[1],
        totals=StepTotals(*totals), coefficients=coefficients, contrast_mask=labels[rows] != EOS,
        credit=None if credit is None else credit[rows],
    )  # fmt: skip


@pytest.mark.parametrize("excluded", [(), (8,), (4,), (EOS,)], ids=lambda ids: f"excluded {ids}")
@pytest.mark.parametrize("stop_ids", [(EOS,), (8,), (0, 4, 8)], ids=lambda ids: f"stop {ids}")
@pytest.mark.parametrize("with_ref", [True, False])
def test_gradient_of_every_statistic_is_that_of_autograd(with_ref, stop_ids, excluded):
    logits, _, ref, labels, _ = case(5)
    ways = torch.randn(4, B, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stats = token_stats(logits, labels, ref if with_ref else None, excluded, stop_ids=stop_ids)
    log_p = torch.log_softmax(logits, -1)
    keep = [i for i in range(V) if i not in excluded]
    q = torch.log_softmax(ref[..., keep], -1)
    kl = (q.exp() * (q - torch.log_softmax(logits[..., keep], -1))).sum(-1) if with_ref else torch.zeros(B, T)
    expected = [
        log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
        -(log_p.exp() * log_p).sum(-1),
        kl,
        log_p[..., list(stop_ids)].logsumexp(-1),
    ]
    for a, b in zip(stats, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=1e-10)
    got, want = (
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(ways, each, strict=True)), logits)[0]
        for each in (stats, expected)
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_gradient_of_ending_in_half_precision():
    logits, _, ref, labels, _ = case(dtype=torch.float32)
    rounded = logits.detach().bfloat16()
    found = []
    for x in (rounded, rounded.float()):
        x = x.requires_grad_()
        token_stats(x, labels, ref, stop_ids=[0, EOS]).stop.sum().backward()
        found.append(x.grad)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].float(), found[1], rtol=1e-2, atol=1e-2)


def test_without_ids_that_end_nothing_ends():
    logits, _, ref, labels, _ = case()
    for stats in (token_stats(logits, labels, ref), token_stats(logits, labels, None)):
        assert (stats.stop == -math.inf).all()
        assert torch.equal(going_on(stats), stats.logp)


def test_going_on_by_hand():
    """p = (1/2, 1/4, 1/4); the first id ends the completion, so that the second has probability 1/2 among the others."""
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    stats = token_stats(logits, torch.tensor([[1]]), None, stop_ids=[0])
    assert going_on(stats).item() == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("excluded", [(), (EOS,), (8,)])
def test_going_on_is_a_softmax_over_the_other_ids(excluded):
    logits, _, ref, labels, _ = case(2)
    labels = torch.where(labels == EOS, 0, labels)
    found = going_on(token_stats(logits, labels, ref, excluded, stop_ids=[EOS]))
    expected = naive_going_on(logits, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    got, want = (torch.autograd.grad(x.sum(), logits)[0] for x in (found, expected))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert got[..., EOS].abs().max() < 1e-12  # stopping is neither learned nor unlearned


@pytest.mark.parametrize("advantage", [5.0, 10.0, 40.0, 200.0])
def test_going_on_where_the_end_is_nearly_certain(advantage):
    """1 - p(EOS) rounds to 0 in float32; value and gradient stay finite, and exact while p(EOS) < 1 - 1e-6."""
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    labels = torch.tensor([[1]])
    shifted = logits + torch.tensor([advantage, 0.0, 0.0, 0.0])
    found = going_on(token_stats(shifted, labels, None, stop_ids=[0]))
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(logits.grad).all()
    if advantage <= 10:
        assert found.item() == pytest.approx(math.log(1 / 3), abs=0.01)


def test_credit_of_one_branch_is_the_policy_gradient():
    right, _, ref, labels, mask = case(4)
    credit, counted = credits(), mask & (labels != EOS)
    loss, sums = credited_loss(right, None, ref, labels, mask, credit, ONLY_CREDIT)
    expected = -(credit * naive_going_on(right, labels))[counted].sum() / 11
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    assert float(sums["credit"]) / 11 == pytest.approx(float(loss.detach()))
    got, want = (torch.autograd.grad(x, right)[0] for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_credit_of_two_branches_is_a_classifier_of_tokens():
    right, wrong, ref, labels, mask = case(4)
    credit, counted = credits(), mask & (labels != EOS)
    loss, _ = credited_loss(right, wrong, ref, labels, mask, credit, ONLY_CREDIT)
    odds = naive_going_on(right, labels) - naive_going_on(wrong, labels)
    terms = torch.where(credit > 0, -torch.log(torch.sigmoid(odds)), -torch.log(torch.sigmoid(-odds)))
    expected = 2 * (credit.abs() * terms)[counted].sum() / 11
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    got, want = (torch.autograd.grad(x, (right, wrong)) for x in (loss, expected))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_credit_by_hand():
    right, wrong = (
        stats_of(torch.tensor([x]), torch.zeros(1, 2), torch.zeros(1, 2)) for x in ([-1.0, -2.0], [-3.0, -2.5])
    )
    credit = torch.tensor([[2.0, -1.0]])
    assert credit_loss(right, None, credit).tolist() == [[2.0, -2.0]]
    expected = [4 * math.log(1 + math.exp(-2)), 2 * math.log(1 + math.exp(0.5))]
    assert credit_loss(right, wrong, credit)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("branches", [1, 2])
def test_ends_and_padding_get_no_gradient_from_credit(branches):
    right, wrong, ref, labels, mask = case(4)
    labels[0, 3] = labels[1, 1] = EOS
    loss, _ = credited_loss(right, wrong if branches > 1 else None, ref, labels, mask, credits(), ONLY_CREDIT)
    for grad in torch.autograd.grad(loss, (right, wrong)[:branches]):
        assert not grad[~mask].any() and not grad[labels == EOS].any()
        assert grad[mask & (labels != EOS) & (credits() != 0)].any(-1).all()
        assert grad[..., EOS].abs().max() < 1e-12


@pytest.mark.parametrize("branches", [1, 2])
def test_credit_of_micro_batches_adds_up_to_the_step(branches):
    right, wrong, ref, labels, mask = case()
    coefficients = Coefficients(**COEFS, credit_coef=0.4)

    def loss(rows):
        second = wrong if branches > 1 else None
        return credited_loss(right, second, ref, labels, mask, credits(), coefficients, (7, 3), rows)[0]

    torch.testing.assert_close(loss([0]) + loss([1, 2]), loss([0, 1, 2]))


@pytest.mark.parametrize("branches", [1, 2])
def test_without_credit_nothing_changes(branches):
    right, wrong, ref, labels, mask = case()
    second = wrong if branches > 1 else None
    old, sums = credited_loss(right, second, ref, labels, mask, None, Coefficients(**COEFS))
    unused, more = credited_loss(
        right, second, ref, labels, mask, credits(), Coefficients(**COEFS)
    )  # credit_coef is 0
    assert torch.equal(old, unused) and "credit" not in sums
    assert all(torch.equal(sums[name], more[name]) for name in sums)
    for a, b in zip(*(torch.autograd.grad(x, (right, wrong)[:branches]) for x in (old, unused)), strict=True):
        assert torch.equal(a, b)
