"""Temperatures of single positions: each where its tempered law is ρ nats away from uniform, or at a bound."""

import math

import pytest
import torch

from extratime.models.tempnet import Temperatures, entropy, solve
from extratime.train.isogclr import individual

SAID = Temperatures(entropy=1.5, low=0.05, high=3.0)


def positions(many=64, vocabulary=40):
    scale = torch.linspace(0.2, 8, many)[:, None]
    return scale * torch.randn(many, vocabulary, generator=torch.Generator().manual_seed(0))


def test_with_all_tokens_it_converges_to_the_law_of_the_dual():
    """KL(p_τ ‖ U) = ρ within 1e-3 wherever τ meets no bound."""
    logits = positions()
    tau = individual(logits, SAID, 3000, average=1.0)
    inner = (tau > SAID.low * 1.001) & (tau < SAID.high * 0.999)
    assert inner.sum() > 20 and (~inner).any()
    rho = math.log(40) - SAID.entropy
    away = math.log(40) - entropy(logits.double(), tau.double())
    assert (away - rho).abs()[inner].max() < 1e-3
    torch.testing.assert_close(tau.double(), solve(logits, SAID), atol=5e-3, rtol=0)


def test_the_running_estimate_and_momentum_lead_to_the_same_place():
    logits = positions()
    tau = individual(logits, SAID, 3000, rate=0.01, average=0.2, momentum=0.1)
    assert (tau.double() - solve(logits, SAID)).abs().median() < 0.01


def test_scaled_logits_have_scaled_temperatures():
    logits = positions()[20:40]
    free = Temperatures(entropy=1.5, low=0.05, high=30.0)
    one, two = (individual(scale * logits, free, 4000, average=1.0, clip=50) for scale in (0.5, 1.0))
    torch.testing.assert_close(2 * one, two, atol=1e-2, rtol=1e-2)


def test_what_all_logits_share_changes_nothing_and_three_hundred_passes_are_enough():
    said = Temperatures(entropy=1.0)
    logits = positions(64, 500) + 15
    tau = individual(logits, said, 300)
    assert (tau.double() - solve(logits, said)).abs().median() < 1e-3
    torch.testing.assert_close(individual(logits + 50, said, 300), tau, atol=1e-3, rtol=0)


def test_large_logits_and_a_small_temperature_do_not_overflow():
    said = Temperatures(entropy=0.5, low=0.005, high=1.0)
    tau = individual(200 * positions(), said, 50)
    assert torch.isfinite(tau).all() and (tau >= said.low).all() and (tau <= said.high).all()


@pytest.mark.parametrize("entropy_of", [0.01, 5.0])
def test_targets_out_of_reach_end_at_a_bound(entropy_of):
    said = Temperatures(entropy=entropy_of, low=0.5, high=2.0)
    tau = individual(positions()[:30], said, 1000, average=1.0)
    assert (tau == (said.high if entropy_of > 1 else said.low)).float().mean() > 0.6
