"""Compute and memory of the cost model, in the form in which it is derived (arXiv 2506.05333), and what it decides."""

import math

import pytest

from extratime.evaluate.cost import eflops, flops, kv_bytes, span_pairs
from extratime.evaluate.statistics.crossover import Frontier
from extratime.models.request import Shape

QWEN3 = {
    "0.6B": Shape(parameters=752_000_000, layers=28, heads=16, kv_heads=8, head_dim=128),
    "14B": Shape(parameters=14_770_000_000, layers=40, heads=40, kv_heads=8, head_dim=128),
    "32B": Shape(parameters=32_760_000_000, layers=64, heads=64, kv_heads=8, head_dim=128),
}
B200 = 562.5


def derived(shape, prompt, generated, n, intensity):
    """2PN·L + 2rN·L_in·D·L + rN·D·L² + 2I·L_in·D·L + I·N·D·L², with D the width of keys and values together."""
    width, group = 2 * shape.kv_heads * shape.head_dim * shape.layers, shape.heads / shape.kv_heads
    compute = 2 * shape.parameters * n * generated + 2 * group * n * prompt * width * generated
    compute += group * n * width * generated**2
    return compute + intensity * (2 * prompt * width * generated + n * width * generated**2)


@pytest.mark.parametrize("shape", QWEN3.values(), ids=list(QWEN3))
@pytest.mark.parametrize(("prompt", "generated", "n"), [(256, 4096, 8), (100, 500, 1), (8192, 16, 64), (0, 1, 1)])
def test_the_published_code_and_the_derivation_are_one(shape, prompt, generated, n):
    for intensity in (0.0, 1.0, B200):
        expected = derived(shape, prompt, generated, n, intensity)
        assert eflops(shape, prompt, generated, n, intensity) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", QWEN3.values(), ids=list(QWEN3))
def test_both_accounts_differ_by_what_samples_share(shape):
    """A cell's bytes are of rows that share nothing; eFLOPs read the prompt's cache once for all samples."""
    prompt, generated, n = 512, 256, 8
    pairs = n * span_pairs(prompt, generated)
    ours = flops(shape, n * generated, pairs) + B200 * kv_bytes(shape, pairs)
    width = shape.kv_heads * shape.head_dim * shape.layers
    shared = B200 * 2 * shape.dtype_bytes * (n - 1) * prompt * generated * width
    half = n * generated / 2 * (4 * shape.heads * shape.head_dim * shape.layers + B200 * 2 * shape.dtype_bytes * width)
    assert ours == pytest.approx(eflops(shape, prompt, generated, n, B200) + shared + half, rel=1e-12)


def test_parameters_and_attention_meet_where_phi_is_one():
    """Phi = [2r·L_in·D + (r + I)·D·L] / 2P of one sample, in which the prompt's bytes are the samples' to share."""
    shape, prompt, generated = QWEN3["0.6B"], 256, 32_768
    width, group = 2 * shape.kv_heads * shape.head_dim * shape.layers, shape.heads / shape.kv_heads
    parameters = 2.0 * shape.parameters * generated
    rest = (eflops(shape, prompt, generated, 1, B200) - parameters) / parameters
    phi = (2 * group * prompt * width + (group + B200) * width * generated) / (2 * shape.parameters)
    assert rest == pytest.approx(phi + B200 * 2 * prompt * width / (2 * shape.parameters), rel=1e-12)
    assert phi == pytest.approx(rest, rel=0.02) and phi > 700


def test_what_is_cheapest_by_flops_is_not_by_memory():
    """A small model that thinks long against a large one that answers soon: their order turns with the traffic."""
    small, large = QWEN3["0.6B"], QWEN3["14B"]
    assert eflops(small, 256, 24_000, 1, 0.0) < eflops(large, 256, 8000, 1, 0.0)
    assert eflops(small, 256, 24_000, 1, B200) > 2 * eflops(large, 256, 8000, 1, B200)


def test_more_samples_cost_less_than_longer_ones():
    """Memory is linear in samples and quadratic in length: 8 of 4096 tokens against one of as many in all."""
    shape = QWEN3["0.6B"]
    wide, long = eflops(shape, 256, 4096, 8, B200), eflops(shape, 256, 8 * 4096, 1, B200)
    assert 6.5 < long / wide < 8
    assert eflops(shape, 256, 4096, 8, B200) < 8 * eflops(shape, 256, 4096, 1, B200), "they share their prompt"


def test_the_best_of_what_a_budget_pays_for():
    """Coverage of models by samples: the frontier over both takes the small one first, then the large one."""
    chances = {"0.6B": (0.2, 24_000), "14B": (0.6, 8000)}
    cells = [
        (eflops(QWEN3[name], 256, length, n, B200), 1 - (1 - p) ** n, name)
        for name, (p, length) in chances.items()
        for n in (1, 2, 4, 8, 16, 32)
    ]
    line = Frontier([c for c, _, _ in cells], [a for _, a, _ in cells])
    assert math.isnan(line.at(min(c for c, _, _ in cells) / 2))
    small = Frontier(*zip(*[(c, a) for c, a, name in cells if name == "0.6B"], strict=True))
    assert line.reaches(0.9) < small.reaches(0.9) / 5
