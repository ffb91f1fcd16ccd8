"""TempNet's laws: the gradient, the label that cancels, the exact solver, and what the engine draws with it."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from extratime.models import tempnet
from extratime.models.engines.hf import HFEngine
from extratime.models.load import Loaded
from extratime.models.request import Draw, Sampling
from extratime.models.tempnet import Cooler, Temperatures, TempNet, best_constant, entropy, loss, solve

SAID = Temperatures(entropy=1.0, low=0.05, high=2.0, width=16)


def positions(many=64, vocabulary=40, seed=0):
    """Logits from nearly even to nearly certain."""
    torch.manual_seed(seed)
    return torch.randn(many, vocabulary) * torch.logspace(-1, 1.5, many)[:, None]


def net(vocabulary=40, seed=0, **more):
    torch.manual_seed(seed)
    return TempNet(replace(SAID, **more), vocabulary).eval()


@given(st.integers(0, 1000), st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_the_slope_of_the_loss_is_the_entropy_less_its_target_whatever_the_label(seed, target):
    logits = positions(seed=seed)
    tau = torch.empty(64).uniform_(0.3, 2).requires_grad_()
    slopes = []
    for labels in torch.randint(0, 40, (2, 64)):
        (slope,) = torch.autograd.grad(loss(logits, labels, tau, target).sum(), tau)
        slopes.append(slope)
    expected = entropy(logits, tau.detach()) - target
    for slope in slopes:
        torch.testing.assert_close(slope, expected, atol=1e-4, rtol=0)


def test_the_loss_is_the_dual_of_the_robust_loss_up_to_a_constant():
    """τ log((1/K) Σ exp((h_k − h_y)/τ)) + τρ, with T_H = ln K − ρ."""
    logits, tau, labels = positions().double(), torch.full((64,), 0.7).double(), torch.arange(64) % 40
    rho = math.log(40) - SAID.entropy
    gaps = logits - logits.gather(1, labels[:, None])
    dual = tau * ((gaps / tau[:, None]).logsumexp(-1) - math.log(40)) + tau * rho
    torch.testing.assert_close(loss(logits, labels, tau, SAID.entropy).double(), dual, atol=1e-4, rtol=1e-5)


def test_the_model_s_own_gradient_has_no_factor_of_the_temperature():
    logits = positions().requires_grad_()
    labels, tau = torch.arange(64) % 40, torch.full((64,), 0.4)
    (slope,) = torch.autograd.grad(loss(logits, labels, tau, 1.0).sum(), logits)
    expected = (logits.detach() / 0.4).softmax(-1) - torch.nn.functional.one_hot(labels, 40)
    torch.testing.assert_close(slope, expected, atol=1e-5, rtol=0)


def test_the_solver_reaches_the_target_or_a_bound():
    logits = positions(seed=3)
    tau = solve(logits, SAID)
    reached = entropy(logits.double(), tau)
    low, high = (entropy(logits.double(), torch.full((64,), bound).double()) for bound in (SAID.low, SAID.high))
    inner = (low < 1) & (high > 1)
    assert inner.sum() > 20 and (~inner).any()
    assert (reached[inner] - 1).abs().max() < 1e-4
    torch.testing.assert_close(tau[low >= 1], torch.full_like(tau[low >= 1], SAID.low))
    torch.testing.assert_close(tau[high <= 1], torch.full_like(tau[high <= 1], SAID.high))


def test_the_solver_at_the_edges():
    """Ties at the top give their logarithm at every temperature, even logits ln K; a sure token gives nothing."""
    tied = torch.tensor([[0.0] * 40, [50.0, 50.0, 50.0] + [-1e4] * 37, [1e4] + [0.0] * 39])
    assert solve(tied, SAID).tolist() == pytest.approx([SAID.low, SAID.low, SAID.high])


def test_positions_surer_than_the_target_are_heated_and_the_others_cooled():
    logits = positions(many=256)
    heated = solve(logits, SAID) > 1
    assert torch.equal(heated, entropy(logits, 1.0) < SAID.entropy)


def test_the_best_constant_is_the_least_of_the_mean_loss():
    logits, labels = positions(), torch.arange(64) % 40
    grid = torch.linspace(SAID.low, SAID.high, 400)
    means = [loss(logits, labels, tau.expand(64), SAID.entropy).mean().item() for tau in grid]
    assert best_constant(logits, SAID) == pytest.approx(grid[means.index(min(means))].item(), abs=0.01)


@given(st.integers(0, 100), st.floats(-50, 50), st.booleans())
@settings(max_examples=20, deadline=None)
def test_temperatures_lie_within_their_bounds_and_do_not_change_with_a_shift(seed, shift, normalise):
    made = net(seed=seed, normalise=normalise)
    torch.nn.init.normal_(made.pooling.weight, std=30)
    with torch.no_grad():
        tau, moved = made(positions()), made(positions() + shift)
    assert ((tau >= SAID.low) & (tau <= SAID.high)).all() and tau.std() > 0
    torch.testing.assert_close(moved, tau, atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_normalised_logits_lose_their_scale(normalise):
    made = net(normalise=normalise)
    torch.nn.init.normal_(made.pooling.weight, std=30)
    with torch.no_grad():
        alike = torch.allclose(made(positions()), made(2 * positions()), atol=1e-4)
    assert alike == normalise


def test_it_begins_at_the_best_constant_and_labels_do_not_move_it():
    made, logits = net(), positions()
    made.settle(logits)
    with torch.no_grad():
        assert made(logits).mean().item() == pytest.approx(best_constant(logits, SAID), abs=0.05)
    slopes = []
    for labels in torch.randint(0, 40, (2, 64)):
        made.zero_grad()
        loss(logits, labels, made(logits), SAID.entropy).mean().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in made.parameters()]))
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 3.0}, {"entropy": 0.0}, {"width": 1}])
def test_bounds_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="temperatures need"):
        replace(SAID, **wrong)


def test_weights_of_another_network_are_refused(tmp_path):
    made = net()
    save_file(made.state_dict(), tmp_path / tempnet.NAME)
    with torch.no_grad():
        assert torch.equal(tempnet.load(SAID, tmp_path)(positions()), made(positions()))
    with pytest.raises(ValueError, match="does not hold the network that its manifest describes"):
        tempnet.load(replace(SAID, width=8), tmp_path)


@pytest.fixture
def cooled():
    """A toy model, and the same beside a network whose temperatures differ widely."""
    made = net(vocabulary=264)
    torch.nn.init.normal_(made.transformation.weight, std=30)
    torch.nn.init.normal_(made.pooling.weight, std=60)
    loaded = Loaded(tiny.model(), tiny.tokenizer(), "tiny", "tiny")
    return loaded, replace(loaded, tempnet=made)


def test_greedy_decoding_is_unchanged(cooled):
    draws = [Draw(tiny.prompt(9, i), i, Sampling(0), 12) for i in range(5)]
    plain, cool = (tiny.serve(HFEngine(loaded), draws) for loaded in cooled)
    assert all(map(tiny.same, plain, cool))


def test_the_engine_draws_from_the_law_of_each_token_s_own_temperature(cooled):
    _, loaded = cooled
    prompt = tiny.prompt(9)
    for law in (Sampling(), Sampling(0.5)):
        for reply in tiny.serve(HFEngine(loaded), [Draw(prompt, seed, law, 8) for seed in range(4)]):
            logits = tiny.logits_of(loaded.model, [*prompt.ids, *reply.tokens])[len(prompt.ids) - 1 :]
            with torch.no_grad():
                tau = loaded.tempnet(logits) * law.temperature
            assert tau.std() > 0.05
            raw, tempered = logits.log_softmax(-1), (logits / tau[:, None]).log_softmax(-1)
            for i, token in enumerate(reply.tokens):
                assert reply.logprobs[i] == pytest.approx(raw[i, token].item(), abs=1e-3)
                assert reply.tempered[i] == pytest.approx(tempered[i, token].item(), abs=1e-3)


def test_the_ledger_counts_the_network(cooled):
    plain, cool = (HFEngine(loaded).profile.shape.parameters for loaded in cooled)
    assert cool - plain == sum(p.numel() for p in cooled[1].tempnet.parameters())


def test_inside_transformers_own_loop_it_divides_each_row(cooled):
    logits = positions(vocabulary=264)
    made = cooled[1].tempnet
    with torch.no_grad():
        torch.testing.assert_close(Cooler(made)(None, logits), logits / made(logits)[:, None])
