import pytest
import torch
from tiny import engine, logits_of, model, prompt, same, serve
from torch import nn

from extratime.models.engines import packed
from extratime.models.engines.packed import Packed
from extratime.models.request import Draw, Sampling


@pytest.fixture(autouse=True)
def every_layer(monkeypatch):
    """Copies even of the small layers of a toy model."""
    monkeypatch.setattr(packed, "_SMALLEST", 1)


def big(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48, bias=bias), nn.ReLU(), nn.Linear(48, 16))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 32), (16, 32), (3, 5, 32), (300, 32)])
def test_copies_compute_what_the_layers_do(bias, shape):
    layers, x = big(bias), torch.randn(shape)
    with torch.inference_mode():
        wanted = layers(x)
        with Packed(layers).used():
            assert layers[0].forward.func is packed._linear
            assert torch.allclose(layers(x), wanted, atol=1e-5)


def test_copies_of_bfloat16_compute_what_the_layers_do():
    layers, x = big().bfloat16(), torch.randn(4, 32).bfloat16()
    with torch.inference_mode():
        wanted = layers(x)
        with Packed(layers).used():
            assert torch.allclose(layers(x), wanted, atol=0.02)


def test_the_model_is_itself_again_afterwards_whatever_happens():
    layers = big()
    with pytest.raises(KeyError), Packed(layers).used():
        raise KeyError
    assert all("forward" not in vars(layer) for layer in layers)


def test_a_weight_that_was_written_to_is_copied_again():
    layers, x = big(), torch.randn(2, 32)
    copies = Packed(layers)
    with torch.inference_mode(), copies.used():
        layers(x)
    with torch.no_grad():
        layers[0].weight.mul_(2)
    layers[2].weight = nn.Parameter(torch.ones(16, 48))
    with torch.inference_mode():
        wanted = layers(x)
        with copies.used():
            assert torch.allclose(layers(x), wanted, atol=1e-4)


def test_copies_that_would_not_fit_are_not_made(monkeypatch):
    monkeypatch.setattr(packed, "spare_bytes", lambda device: 100)
    layers = big()
    with Packed(layers).used():
        assert all("forward" not in vars(layer) for layer in layers)


def test_other_types_are_left_alone():
    layers = big().double()
    with Packed(layers).used():
        assert all("forward" not in vars(layer) for layer in layers)


def test_the_engine_draws_the_same_with_copies(monkeypatch):
    draws = [Draw(prompt(5 + i, i), i, Sampling(0.8, top_p=0.9), 20) for i in range(6)]
    runs = engine("qwen2")
    with_copies = serve(runs, draws)
    assert runs._packed._copies
    monkeypatch.setattr(packed, "_SMALLEST", 1 << 30)
    plain = engine("qwen2")
    assert all(same(a, b) for a, b in zip(with_copies, serve(plain, draws), strict=True))
    assert not plain._packed._copies
    assert torch.equal(logits_of(runs._run.model, prompt(9).ids), logits_of(model("qwen2"), prompt(9).ids))
    runs.close()
    assert not runs._packed._copies
