"""Reward models: whole texts and steps, from a folder to a recipe's verifier."""

import json

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

from extratime.evaluate.grid import parse
from extratime.evaluate.named import RecipeError
from extratime.evaluate.run import run_recipe
from extratime.models.engines.reward import RewardEngine
from extratime.models.request import Completion, Failure, Probe, Prompt, Score
from extratime.models.reward import load_reward


def save(folder, kind=LlamaForSequenceClassification, labels=1):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=261,
        num_labels=labels,
    )
    kind(config).eval().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def ask(engine, *texts):
    for i, (prompt, said) in enumerate(texts):
        engine.submit(i, Score(Prompt(prompt), said))
    told = {}
    while answered := engine.poll():
        told |= dict(answered)
    return [told[i] for i in range(len(texts))]


def ids(text):
    return tiny.tokenizer()(text, add_special_tokens=False).input_ids


def test_a_text_s_reward_is_the_classifier_s_whatever_its_batch(tmp_path):
    reward = load_reward(save(tmp_path))
    texts = [("q?", "a" * n) for n in (1, 7, 20, 3)]
    told = ask(RewardEngine(reward), *texts)
    for (prompt, said), reply in zip(texts, told, strict=True):
        with torch.inference_mode():
            alone = reward.model(input_ids=torch.tensor([ids(prompt + said)])).logits.item()
        assert reply.values == pytest.approx((alone,), abs=1e-5)
        assert reply.work.prefill == len(ids(prompt + said))


@pytest.mark.parametrize(("labels", "problem"), [(1, None), (1, "multi_label_classification"), (2, None)])
def test_steps_are_weighed_at_their_separators(tmp_path, labels, problem):
    folder = save(tmp_path, LlamaForTokenClassification, labels)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
    reward = load_reward(folder, separator="\n")
    (reply,) = ask(RewardEngine(reward), ("q?", "one\ntwo"))
    with torch.inference_mode():
        logits = reward.model(input_ids=torch.tensor([ids("q?one\ntwo\n")])).logits[0]
    each = logits.softmax(-1)[:, 1] if labels == 2 else logits[:, 0].sigmoid() if problem else logits[:, 0]
    ends = [i for i, token in enumerate(ids("q?one\ntwo\n")) if token == ids("\n")[0]]
    assert reply.values == pytest.approx([each[i].item() for i in ends], abs=1e-5)


def test_a_text_beyond_the_context_fails_alone_and_tells_both_lengths(tmp_path):
    short, long = ask(RewardEngine(load_reward(save(tmp_path))), ("q?", "a"), ("q?", "x" * 100))
    assert len(short.values) == 1
    assert isinstance(long, Failure) and "102 tokens" in long.error and "64" in long.error


def test_texts_that_do_not_fit_together_are_read_in_smaller_batches(tmp_path):
    reward = load_reward(save(tmp_path))
    texts = [("q?", "ab" * n) for n in range(1, 9)] + [("q?", "x" * 50)]
    wanted = ask(RewardEngine(reward), *texts)
    sizes = []

    def starve(_, args, asked):
        sizes.append(asked["input_ids"].shape)
        if sizes[-1].numel() > 51:
            raise torch.OutOfMemoryError("CUDA out of memory")

    reward.model.register_forward_pre_hook(starve, with_kwargs=True)
    engine = RewardEngine(reward)
    *told, long = ask(engine, *texts)
    assert "out of memory with a single row of 52 tokens" in long.error
    for reply, other in zip(told, wanted, strict=False):
        assert reply.values == pytest.approx(other.values, abs=1e-5)
    assert sizes[0][0] == 9 and max(rows for rows, width in sizes if rows * width <= 51) > 1
    assert engine.counts.prefill == sum(reply.work.prefill for reply in told)


def test_without_a_padding_token_a_classifier_reads_one_text_at_a_time(tmp_path):
    reward = load_reward(save(tmp_path))
    wanted = ask(RewardEngine(reward), ("q?", "a"), ("q?", "abcde"))
    reward.model.config.pad_token_id = None
    told = ask(RewardEngine(reward), ("q?", "a"), ("q?", "abcde"))
    assert [r.values[0] for r in told] == pytest.approx([r.values[0] for r in wanted], abs=1e-5)


def test_a_blank_step_gets_no_reward_and_text_without_a_step_none(tmp_path):
    reward = load_reward(save(tmp_path, LlamaForTokenClassification, 2), separator="\n")
    one, none, blank = ask(RewardEngine(reward), ("q?", "a\n\nb\n"), ("q?", ""), ("q?", "\n\n"))
    assert (len(one.values), none.values, blank.values) == (2, (), ())
    assert one.work.prefill == len(ids("q?a")) + 3 + len(ids("b"))


def test_a_separator_keeps_its_own_tokens_and_is_part_of_the_name(tmp_path):
    folder = save(tmp_path, LlamaForTokenClassification, 2)
    reward, other = (load_reward(folder, separator=separator) for separator in ("c", "b"))
    assert len(ids("abc")) == 1 and reward.how.read("", "ab") == (tuple(ids("ab") + ids("c")), (1,))
    assert reward.fingerprint != other.fingerprint


def test_a_cancelled_request_gets_no_reply_and_others_do(tmp_path):
    engine = RewardEngine(load_reward(save(tmp_path)))
    for i in range(3):
        engine.submit(i, Score(Prompt("q?"), "a" * (i + 1)))
    engine.submit(3, Score(Prompt("q?"), "x" * 100))
    assert engine.cancel(1) is None and isinstance(engine.cancel(3), Failure)
    assert {ticket for ticket, _ in engine.poll()} == {0, 2} and not engine.poll()
    with pytest.raises(ValueError, match="only scores; it cannot answer a Probe"):
        engine.submit(4, Probe(Completion(Prompt("q?"), "a", 1), "?", ("a",)))


def test_a_recipe_without_a_verifier_says_how_to_name_one(tmp_path):
    said = {"tasks": ["sums_easy"], "strategies": [{"best_of_n": {"verify": "reward_model"}}], "chat": False}
    said |= {"model": str(tiny.save(tmp_path / "policy")), "output": str(tmp_path / "run")}
    with pytest.raises(RecipeError, match=r"asks the role 'verifier'.*add `verifier: \{model: …\}`"):
        run_recipe(parse(said))
    with pytest.raises(RecipeError, match="'model' is missing in verifier"):
        parse(said | {"verifier": {"dtype": "float32"}})
    with pytest.raises(RecipeError, match="verifier: the separator must not be empty"):
        parse(said | {"verifier": {"model": "m", "separator": ""}})


def test_what_is_no_reward_model_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM, no reward model"):
        load_reward(tiny.save(tmp_path / "policy"))
    with pytest.raises(ValueError, match=r"weighs steps: set verifier\.separator"):
        load_reward(save(tmp_path / "steps", LlamaForTokenClassification))
    with pytest.raises(ValueError, match=r"leave verifier\.separator out"):
        load_reward(save(tmp_path / "whole"), separator="\n")
    with pytest.raises(ValueError, match="has 3 outputs"):
        load_reward(save(tmp_path / "three", labels=3))
    with pytest.raises(ValueError, match="is an adapter: merge it into its base model"):
        load_reward(tiny.save_adapter(tmp_path / "policy", tmp_path / "adapter"))


def test_a_recipe_s_verifier_ranks_the_policy_s_draws_and_replays(tmp_path):
    said = {
        "model": str(tiny.save(tmp_path / "policy")),
        "verifier": {"model": str(save(tmp_path / "reward")), "device": "cpu"},
        "tasks": ["sums_easy"],
        "strategies": [{"best_of_n": {"verify": "reward_model"}}],
        "budgets": [4],
        "max_tokens": 8,
        "limit": 3,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu"},
        "output": str(tmp_path / "run"),
    }
    folder = run_recipe(parse(said))
    results = (folder / "results" / "0-of-1.jsonl").read_text()
    engine = RewardEngine(load_reward(tmp_path / "reward"))
    texts = {r["id"]: r["text"] for r in map(json.loads, (folder / "responses" / "0-of-1.jsonl").open())}
    for line in map(json.loads, results.splitlines()):
        replies = ask(engine, *((line["question"], texts[name]) for name, _ in line["pool"]))
        assert [w for _, w in line["pool"]] == pytest.approx([r.values[0] for r in replies], abs=1e-4)
    account = json.loads((folder / "run-0-of-1.json").read_text())
    assert set(account["counts"]) == {"policy", "verifier"}
    assert account["engine"].pop("judge") == account["engine"]["policy"], "where no judge is named it is the policy"
    assert set(account["engine"]) == {"policy", "verifier"}
    run_recipe(parse(said | {"model": "/nowhere", "verifier": {"model": "/nowhere"}}), replay=True)
    assert (folder / "results" / "0-of-1.jsonl").read_text() == results
