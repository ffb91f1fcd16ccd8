import json
import math
import random
from statistics import fmean
from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import draws, write_rows, write_yaml
from safetensors.torch import load_file

from extratime.models import manifest
from extratime.models.engines.hf import HFEngine
from extratime.models.load import load
from extratime.models.request import Completion, Probe
from extratime.models.self_eval import (
    SelfEval,
    invocation_ids,
    question_ids,
    question_suffix,
    read_out,
    target_ids,
    tell,
)
from extratime.train import self_eval
from extratime.train.guard import guarded
from extratime.train.readings import Collator, read_draws, rows
from extratime.train.self_eval import SelfEvalTrainer, adapter_config, contrast_loss, slot_loss

ASK = SelfEval("ok at {weakest}?", "n", "y")
PLAIN = SelfEval("ok?", "n", "y")


def trainer_of(folder, adapter="alora", layout="shared", seed=1, **settings):
    """A trainer as the recipe makes it, with an adapter that is not 0, and its one batch of all rows."""
    args = self_eval.Config(
        output_dir=str(folder),
        use_cpu=True,
        adapter=adapter,
        layout=layout,
        rank=4,
        alpha=4,
        report_to="none",
        **settings,
    )
    tokenizer = tiny.tokenizer()
    questions = question_ids(tokenizer, ASK)
    write_rows(folder / "draws.jsonl", known(draws(), tokenizer))
    made = rows(read_draws(folder / "draws.jsonl", tokenizer), questions, args.law, 0)
    collator = Collator(questions, tokenizer.pad_token_id, layout == "shared")
    SelfEvalTrainer.targets = target_ids(tokenizer, ASK)
    trainer = guarded(SelfEvalTrainer)(
        model=tiny.model(),
        args=args,
        processing_class=tokenizer,
        peft_config=adapter_config(args, invocation_ids(questions)),
        train_dataset=Dataset.from_list(made),
        data_collator=collator,
    )
    torch.manual_seed(seed)
    for name, weight in trainer.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return trainer, collator(made)


def known(told, tokenizer):
    """Draws with a log-probability for each of their tokens."""
    rng = random.Random(0)
    for row in told:
        count = len(tokenizer.encode(row["response"], add_special_tokens=False))
        yield row | {"logprobs": [-rng.expovariate(1) for _ in range(count)]}


def batch_of(inputs):
    return {key: value.clone() for key, value in inputs.items()}


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_slot_loss_is_the_cross_entropy_of_both_answers_over_the_whole_vocabulary(seed):
    torch.manual_seed(seed)
    logits = torch.randn(3, 4, 11, dtype=torch.double) * 3
    label, weight = torch.rand(3, 4, dtype=torch.double), torch.rand(3, 4, dtype=torch.double).round(decimals=1)
    expected, total = 0.0, 0.0
    for b in range(3):
        for n in range(4):
            log = [float(z) - math.log(sum(math.exp(float(y)) for y in logits[b, n])) for z in logits[b, n]]
            expected -= float(weight[b, n]) * float(label[b, n] * log[5] + (1 - label[b, n]) * log[2])
            total += float(weight[b, n])
    assert float(slot_loss(logits, (5, 2), label, weight)) == pytest.approx(expected / total, rel=1e-5)


def test_the_slot_loss_moves_each_slot_by_its_weight_and_places_without_one_not_at_all():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 11, requires_grad=True)
    label, weight = torch.rand(2, 3), torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.0, 0.3]])
    slot_loss(logits, (5, 2), label, weight).backward()
    target = torch.zeros(2, 3, 11)
    target[..., 5], target[..., 2] = label, 1 - label
    expected = (weight / weight.sum())[..., None] * (logits.softmax(-1) - target)
    assert torch.allclose(logits.grad, expected, atol=1e-6)
    assert not logits.grad[weight == 0].any()


def test_the_loss_is_least_where_the_read_out_is_the_label():
    label = torch.tensor([0.3])
    logits = torch.zeros(1, 4, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        slot_loss(logits, (1, 3), label, torch.ones(1)).backward()
        optimiser.step()
    p = logits.detach().softmax(-1)[0]
    assert read_out(float(p[1]), float(p[3])) == pytest.approx(0.3, abs=0.01)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_contrast_is_the_mean_over_pairs_of_one_group_that_differ(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 8)
    margin = [rng.gauss(0, 2) for _ in range(n)]
    label = [rng.choice([0.0, 0.5, 1.0]) for _ in range(n)]
    group = [rng.choice([-1, 0, 1]) for _ in range(n)]
    pairs = [
        math.log1p(math.exp(margin[j] - margin[i]))
        for i in range(n)
        for j in range(n)
        if label[i] > label[j] and group[i] == group[j] >= 0
    ]
    found = contrast_loss(torch.tensor(margin), torch.tensor(label), torch.tensor(group))
    assert float(found) == pytest.approx(sum(pairs) / len(pairs) if pairs else 0, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("adapter", ["alora", "lora", "full"])
def test_the_shared_layout_gives_the_loss_and_gradient_of_the_separate_one(adapter, tmp_path):
    found = {}
    for layout in ("shared", "separate"):
        options = {"cuts": 3, "contrast": 0.7, "responses": 3, "keep": 0.4}
        trainer, batch = trainer_of(tmp_path, adapter, layout, **options)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        grads = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        found[layout] = loss.item(), grads
    assert found["shared"][0] == pytest.approx(found["separate"][0], rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in found["shared"][1].values())
    for name, grad in found["shared"][1].items():
        assert grad.any() and torch.allclose(grad, found["separate"][1][name], atol=1e-5 * largest), name


def test_loss_reaches_the_vocabulary_at_the_slots_only(tmp_path):
    trainer, batch = trainer_of(tmp_path, "full", cuts=2)
    seen = []
    trainer.model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    trainer.compute_loss(trainer.model, batch_of(batch))
    assert seen == [(len(batch["label"]), len(batch["slots"].unique()))]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_no_gradient_comes_from_padding_or_from_tokens_after_a_cut(layout, tmp_path):
    trainer, batch = trainer_of(tmp_path, "full", layout, cuts=1, keep=0.0, responses=2)
    embeddings = {}

    def keep(module, args, output):
        output.retain_grad()
        embeddings["all"] = output

    trainer.model.get_input_embeddings().register_forward_hook(keep)
    trainer.compute_loss(trainer.model, batch_of(batch)).backward()
    if layout == "shared":
        sees = batch["attention_mask"][:, 0]
        columns = batch["logits_to_keep"][batch["slots"]]
        slots = sees.take_along_dim(columns[..., None], 1)
        read = (slots & (batch["weight"] > 0)[..., None]).any(1)
    else:
        read = batch["attention_mask"].bool()
    moved = embeddings["all"].grad.abs().sum(-1) > 0
    assert torch.equal(moved, read) and not read.all()


def test_the_activated_adapter_leaves_everything_before_the_question_bit_identical(tmp_path):
    trainer, batch = trainer_of(tmp_path, "alora", "separate")
    model = trainer.model.eval()
    length = len(question_ids(tiny.tokenizer(), ASK)[0])
    inputs = {key: batch[key] for key in ("input_ids", "position_ids", "attention_mask")}
    with torch.no_grad():
        on = model(**inputs, alora_offsets=batch["offsets"].tolist()).logits
        with model.disable_adapter():
            off = model(**inputs).logits
        plain = tiny.model()(**inputs).logits
        silent = model(input_ids=inputs["input_ids"][:, :-length]).logits
        expected = tiny.model()(input_ids=inputs["input_ids"][:, :-length]).logits
    assert torch.equal(off, plain) and torch.equal(silent, expected)
    assert torch.equal(on[:, :-length], plain[:, :-length])
    assert not torch.isclose(on[:, -length:], plain[:, -length:]).all(-1).any()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"adapter": "alora", "activation_checkpointing": True}, "activation_checkpointing"),
        ({"contrast": 0.5, "responses": 1}, "responses to 2 or more"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(wrong, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        self_eval.Config(output_dir=str(tmp_path), use_cpu=True, **wrong)


def recipe(folder, **more):
    told = {
        "model": folder / "base",
        "data": folder / "draws.jsonl",
        "use_cpu": True,
        "rank": 4,
        "disable_tqdm": True,
        "report_to": "none",
    }
    told |= {"question": "ok?", "good": "n", "bad": "y", "max_steps": 1, **more}
    return ["--config", str(write_yaml(folder / "self_eval.yaml", **told)), "--output_dir", str(folder / "out")]


@pytest.fixture
def folder(tmp_path):
    tiny.save(tmp_path / "base")
    write_rows(tmp_path / "draws.jsonl", draws())
    return tmp_path


@pytest.mark.parametrize(("wrong", "why"), [({"good": "no"}, "one"), ({"good": "y"}, "share their beginning")])
def test_answers_that_are_no_single_tokens_or_alike_are_refused_before_training(wrong, why, folder):
    with pytest.raises(ValueError, match=why):
        self_eval.main(recipe(folder, **wrong))


def test_a_question_that_tells_the_weakest_token_needs_log_probabilities(folder):
    with pytest.raises(ValueError, match=r"draws\.jsonl: the question tells the weakest token, but a draw lacks"):
        self_eval.main(recipe(folder, question="ok at {weakest}?"))


@pytest.mark.parametrize("adapter", ["alora", "lora", "full"])
def test_the_checkpoint_says_all_that_is_needed_to_ask_it_and_notices_any_change(adapter, folder):
    self_eval.main(recipe(folder, adapter=adapter, learning_rate=0.01))
    out = folder / "out"
    said = manifest.verify(out)
    assert (said.recipe, said.kind, said.base, said.self_eval) == ("self_eval", adapter, str(folder / "base"), PLAIN)
    assert said.template_sha256 == manifest.hash_template(load(out).tokenizer)
    beside = {path.name for path in out.iterdir() if path.is_file()} - {manifest.NAME, "README.md"}
    assert set(said.files) == beside
    assert "model.safetensors" in beside if adapter == "full" else "adapter_model.safetensors" in beside
    before = load_file(folder / "base" / "model.safetensors")
    if adapter == "full":
        assert not torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], before["lm_head.weight"])
    for name in said.files:
        content = bytearray((out / name).read_bytes())
        content[len(content) // 3] ^= 4
        (out / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            manifest.verify(out)
        content[len(content) // 3] ^= 4
        (out / name).write_bytes(content)
    manifest.verify(out)


def sorted_draws(problems, each, seed):
    """Responses whose first letter decides their reward."""
    rng = random.Random(seed)
    for problem in range(problems):
        for _ in range(each):
            right = rng.random() < 0.5
            tail = "".join(rng.choice("012345") for _ in range(rng.randint(0, 6)))
            text = rng.choice("abc" if right else "xyz") + tail
            yield {"problem": problem, "prompt": f"n{problem}?", "response": text, "reward": float(right)}


def read_all(base, adapter, told):
    """g of each response by the engine, as the checkpoint's manifest says; with `adapter` None by the plain model."""
    said = manifest.verify(adapter).self_eval if adapter else SelfEval("ok?", "n", "y", chat=False)
    loaded = load(base, adapters={"self_eval": adapter} if adapter else None)
    engine = HFEngine(loaded)
    question = question_suffix(loaded.tokenizer, said)
    for i, row in enumerate(told):
        ids = tuple(loaded.tokenizer.encode(row["response"], add_special_tokens=False))
        response = Completion(engine.encode(row["prompt"]), row["response"], len(ids), ids)
        asked = tell(question, row.get("logprobs", ()))
        engine.submit(i, Probe(response, asked, (said.good, said.bad), "self_eval" if adapter else None))
    found = {}
    while replies := engine.poll():
        found |= {i: read_out(*reply.values) for i, reply in replies}
    return [found[i] for i in range(len(told))]


def auroc(scores, rewards):
    right = [s for s, r in zip(scores, rewards, strict=True) if r]
    wrong = [s for s, r in zip(scores, rewards, strict=True) if not r]
    return sum((a > b) + 0.5 * (a == b) for a in right for b in wrong) / len(right) / len(wrong)


def test_the_recipe_teaches_what_decides_the_reward_and_shuffled_labels_teach_nothing(tmp_path):
    base = tiny.save(tmp_path / "base")
    data = write_rows(tmp_path / "draws.jsonl", sorted_draws(40, 8, seed=0))
    held = list(sorted_draws(25, 8, seed=1))
    rewards = [row["reward"] for row in held]

    def taught(**more):
        told = {"model": base, "data": data, "question": "ok?", "good": "n", "bad": "y", "chat": False, "cuts": 2}
        told |= {"keep": 0.7, "rank": 8, "alpha": 16, "responses": 4, "per_device_train_batch_size": 8}
        told |= {"max_steps": 80, "learning_rate": 0.01, "lr_scheduler_type": "constant", "use_cpu": True}
        out = tmp_path / f"out{len(more)}"
        file = write_yaml(tmp_path / "r.yaml", **told, **more, disable_tqdm=True, save_strategy="no", report_to="none")
        self_eval.main(["--config", str(file), "--output_dir", str(out)])
        g = read_all(base, out, held)
        gap = fmean(x for x, r in zip(g, rewards, strict=True) if r) - fmean(
            x for x, r in zip(g, rewards, strict=True) if not r
        )
        return SimpleNamespace(auroc=auroc(g, rewards), gap=gap)

    right, shuffled = taught(), taught(shuffle_labels=True)
    assert abs(auroc(read_all(base, None, held), rewards) - 0.5) < 0.2
    assert right.auroc > 0.9 and right.gap > 0.3
    assert abs(shuffled.auroc - 0.5) < 0.2 and abs(shuffled.gap) < 0.1


def test_a_resumed_folder_keeps_its_question(folder):
    self_eval.main(recipe(folder))
    said = json.loads((folder / "out" / manifest.NAME).read_text())
    assert said["self_eval"]["question"] == "ok?" and said["settings"]["question"] == "ok?"
    with pytest.raises(ValueError, match="question: ok\\? → better\\?"):
        self_eval.main(recipe(folder, question="better?"))


def test_what_the_question_tells_is_learned_where_the_response_shows_nothing(tmp_path):
    """Right and wrong differ in the chance of one token only; labels dealt at random teach nothing."""
    base, tokenizer = tiny.save(tmp_path / "base"), tiny.tokenizer()

    def drawn(problems, seed):
        rng = random.Random(seed)
        for problem in range(problems):
            for _ in range(8):
                text, right = "".join(rng.choice("abc") for _ in range(5)), rng.random() < 0.5
                logprobs = [-0.01] * len(tokenizer.encode(text, add_special_tokens=False))
                logprobs[rng.randrange(len(logprobs))] = -0.3 if right else -3.0
                row = {"problem": problem, "prompt": f"n{problem}?", "response": text, "reward": float(right)}
                yield row | {"logprobs": logprobs}

    data, held = write_rows(tmp_path / "draws.jsonl", drawn(40, seed=0)), list(drawn(15, seed=1))
    rewards = [row["reward"] for row in held]
    for shuffle, least, most in ((False, 0.95, 1.0), (True, 0.2, 0.8)):
        settings = {"model": base, "data": data, "question": "ok at {weakest}?", "good": "n", "bad": "y"}
        settings |= {"chat": False, "keep": 1.0, "rank": 8, "alpha": 16, "per_device_train_batch_size": 8}
        settings |= {"max_steps": 30, "learning_rate": 0.01, "lr_scheduler_type": "constant", "use_cpu": True}
        settings |= {"disable_tqdm": True, "save_strategy": "no", "report_to": "none", "shuffle_labels": shuffle}
        out = tmp_path / f"out{shuffle}"
        self_eval.main(["--config", str(write_yaml(tmp_path / "r.yaml", **settings)), "--output_dir", str(out)])
        assert least <= auroc(read_all(base, out, held), rewards) <= most
