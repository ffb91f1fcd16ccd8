import math

import pytest
import torch
from scipy.stats import chisquare
from tiny import model
from transformers import GenerationConfig

from extratime.models.engines.law import Laws, cut, pick
from extratime.models.paths import uniforms
from extratime.models.request import Sampling

LAWS = [
    Sampling(),
    Sampling(0.7),
    Sampling(2.0),
    Sampling(top_k=5),
    Sampling(top_p=0.8),
    Sampling(min_p=0.1),
    Sampling(0.7, top_p=0.9, top_k=20),
    Sampling(1.5, top_p=0.95, min_p=0.05),
    Sampling(1.3, top_p=0.6, top_k=12, min_p=0.2),
]


def rows(many=4, vocabulary=50, seed=0, spread=2.0):
    return spread * torch.randn(many, vocabulary, generator=torch.Generator().manual_seed(seed))


def law_of(logits, sampling):
    """Probabilities of the next token by the definition, one row, in plain Python."""
    scaled = [x / sampling.temperature for x in logits.tolist()]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    total, mass, kept = sum(weights.values()), 0.0, []
    for i in order:
        if mass < sampling.top_p * total:
            kept.append(i)
        mass += weights[i]
    kept = [i for i in kept if weights[i] >= sampling.min_p]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(scaled))]


def draw(logits, samplings, uniform):
    return pick(logits, Laws.of(samplings, logits.device), torch.tensor(uniform, dtype=torch.float64))


@pytest.mark.parametrize("sampling", LAWS, ids=str)
def test_the_law_is_its_definition(sampling):
    logits = rows()
    laws = Laws.of([sampling] * 4, logits.device)
    found = cut(logits * laws.scale, laws).softmax(-1)
    wanted = torch.tensor([law_of(row, sampling) for row in logits])
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("sampling", LAWS, ids=str)
def test_the_law_is_that_of_transformers(sampling):
    logits = rows(seed=1)
    said = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    config = GenerationConfig(do_sample=True, **said, min_p=sampling.min_p or None)
    made = model()
    chain = made._get_logits_processor(config, input_ids_seq_length=1, encoder_input_ids=None)
    wanted = chain(torch.zeros(4, 1, dtype=torch.long), logits.clone()).softmax(-1)
    laws = Laws.of([sampling] * 4, logits.device)
    assert torch.allclose(cut(logits * laws.scale, laws).softmax(-1), wanted, atol=1e-6)


@pytest.mark.parametrize("sampling", LAWS, ids=str)
def test_draws_follow_the_law(sampling):
    logits, many = rows(1, seed=2), 20_000
    uniform = [uniforms(seed, 3, 1)[0] for seed in range(many)]
    tokens = draw(logits.expand(many, -1), [sampling] * many, uniform)[0]
    counts, wanted = torch.bincount(tokens, minlength=50).double(), torch.tensor(law_of(logits[0], sampling)) * many
    assert counts[wanted == 0].sum() == 0
    often = wanted >= 5
    counts, wanted = [torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, wanted.double())]
    counts, wanted = counts[wanted > 0], wanted[wanted > 0]
    assert chisquare(counts.numpy(), (wanted * counts.sum() / wanted.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("sampling", LAWS, ids=str)
def test_both_log_probabilities_are_told(sampling):
    logits = rows(seed=3)
    tokens, raw, tempered = draw(logits, [sampling] * 4, [0.1, 0.4, 0.7, 0.95])
    laws = [law_of(row, sampling)[token] for row, token in zip(logits, tokens, strict=True)]
    assert torch.allclose(raw, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(tempered, torch.tensor(laws).log(), atol=1e-5)


def test_rows_of_different_laws_do_not_mix():
    samplings = [Sampling(0.0), Sampling(top_k=1), *LAWS]
    logits = rows(len(samplings), seed=4)
    uniform = [uniforms(i, 0, 1)[0] for i in range(len(samplings))]
    together = draw(logits, samplings, uniform)
    for i, sampling in enumerate(samplings):
        alone = draw(logits[i : i + 1], [sampling], uniform[i : i + 1])
        assert together[0][i] == alone[0][0]
        assert [x[i].item() for x in together[1:]] == pytest.approx([x[0].item() for x in alone[1:]], abs=1e-6)


def test_greedy_takes_the_likeliest_with_certainty():
    logits = rows(seed=5)
    for greedy in (Sampling(0.0), Sampling(0.6, top_k=1), Sampling(0.0, top_p=0.5, min_p=0.5)):
        tokens, raw, tempered = draw(logits, [greedy] * 4, [0.99] * 4)
        assert tokens.tolist() == logits.argmax(-1).tolist()
        assert tempered.tolist() == [0.0] * 4
        assert torch.allclose(raw, logits.log_softmax(-1).amax(-1))


def test_a_nucleus_wider_than_the_sorted_head_is_found():
    logits = 0.1 * rows(2, 5000, seed=6)
    laws = Laws.of([Sampling(top_p=0.9), Sampling()], logits.device)
    kept = cut(logits, laws).isfinite().sum(-1).tolist()
    assert kept == [sum(p > 0 for p in law_of(logits[0], Sampling(top_p=0.9))), 5000]
    assert kept[0] > 1024


def test_the_extremes_of_the_uniform_fall_on_tokens_with_mass():
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf, -200.0]] * 2)
    assert draw(logits, [Sampling()] * 2, [0.0, 1 - 2**-53])[0].tolist() == [1, 2]
    wide = rows(2, 50_000, seed=7)
    wide[:, -10:] = -math.inf
    assert draw(wide, [Sampling()] * 2, [0.0, 1 - 2**-53])[0].tolist() == [0, 49_989]


def test_rare_tokens_keep_their_share_in_a_large_vocabulary():
    logits = torch.zeros(1, 150_000)
    uniform = [(i + 0.5) / 150_000 for i in (0, 70_000, 149_999)]
    tokens = draw(logits.expand(3, -1), [Sampling()] * 3, uniform)[0]
    assert tokens.tolist() == [0, 70_000, 149_999]


def test_ties_with_the_last_token_kept_are_kept():
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0]])
    laws = Laws.of([Sampling(top_k=2)], logits.device)
    assert cut(logits, laws).isfinite().tolist() == [[True, True, True, False]]
