"""MRT: what a branch is, what its advantages are, and where no gradient flows."""

import json

import pytest
import tiny
import torch
from datasets import Dataset
from launch import reward_letters, train, write_rollouts, write_yaml
from safetensors.torch import load_file

from extratime.models.engines.text import decoder
from extratime.train import grpo, mrt
from extratime.train.mrt import MRTTrainer, branch, cut, weigh

SETTINGS = {
    "num_generations": 4,
    "max_completion_length": 8,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "learning_rate": 0.01,
    "end": "!",
    "cue": "\n\n!",
}
ROWS = [{"prompt": f"{i}+{i}=", "prefix": "ab\n\n" * (i % 3), "problem": i} for i in range(6)]


def letters(completions, opening=None, **_):
    """A random model knows no sums: rewarded is what it can do, letters whose codes are even."""
    opened = opening or [""] * len(completions)
    said = [o + text for o, text in zip(opened, completions, strict=True)]
    return [sum(ord(letter) % 2 == 0 for letter in text) / (len(text) + 1) for text in said]


def trainer(kind, folder, model=None, reward=letters, rows=ROWS, **more):
    args = mrt.Config(output_dir=str(folder), **SETTINGS | {"rollouts": "somewhere"} | more)
    model = model or tiny.model(eos=False)
    parts = {"processing_class": tiny.tokenizer(), "reward_funcs": reward, "train_dataset": Dataset.from_list(rows)}
    made = kind(args=args, model=model, **parts)
    made.model.train()
    return made


@pytest.mark.parametrize("form", ["branches", "episodes"])
@pytest.mark.parametrize("steps", [1, 3])
def test_without_alpha_it_is_grpo_to_the_bit(form, steps, tmp_path):
    weights = []
    for kind in (grpo.GRPOTrainer, MRTTrainer):
        made = trainer(kind, tmp_path, form=form, alpha=0.0, num_iterations=steps, max_steps=4)
        made.train()
        weights.append(made.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    start = tiny.model(eos=False).state_dict()
    assert not torch.equal(weights[0]["lm_head.weight"], start["lm_head.weight"])


@pytest.mark.parametrize("form", ["branches", "episodes"])
def test_with_alpha_it_is_not(form, tmp_path):
    weights = []
    for alpha in (0.0, 1.0):
        made = trainer(MRTTrainer, tmp_path, form=form, alpha=alpha, k=2)
        made.train()
        weights.append(made.model.state_dict()["lm_head.weight"])
    assert not torch.equal(*weights)


# --- branches


def test_half_of_a_group_goes_on_and_half_has_to_answer():
    row = {"prompt": "p", "prefix": "a\n\n", "problem": 3}
    assert branch(row, "\n\n!", False) == row | {"prompt": "pa\n\n", "opening": ""}
    assert branch(row, "\n\n!", True) == row | {"prompt": "pa\n\n!", "opening": "!"}
    assert branch(row | {"prefix": ""}, "\n\n!", True)["prompt"] == "p!"


@pytest.mark.parametrize("process", [0, 1, 2])
def test_which_half_depends_on_the_place_in_the_whole_batch(process, tmp_path, monkeypatch):
    made = trainer(MRTTrainer, tmp_path)
    monkeypatch.setattr(type(made.accelerator), "process_index", process)
    stops = [bool(row["opening"]) for row in made._branches([ROWS[0]] * 6)]
    assert stops == [(process * 6 + i) % 4 < 2 for i in range(6)]


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
def test_advantages_are_normalised_over_both_groups(alpha):
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True) + 1e-4
    arms = rewards.view(-1, 2, 2).mean(-1, keepdim=True).expand(-1, 2, 2).reshape(-1, 4)
    expected = ((rewards - arms) + alpha * (arms - mean)) / std
    joint = ((rewards - mean) / std).view(-1)
    torch.testing.assert_close(weigh(joint, 4, alpha).view(-1, 4), expected, atol=1e-6, rtol=0)
    assert torch.equal(weigh(joint, 4, 1.0), joint)


def test_going_on_is_rewarded_for_what_it_adds_and_stopping_where_going_on_breaks_it():
    gains = weigh(torch.tensor([0.0, 0, 1, 1]) - 0.5, 4, 1.0)
    breaks = weigh(torch.tensor([1.0, 1, 0, 0]) - 0.5, 4, 1.0)
    assert gains.tolist() == [-0.5, -0.5, 0.5, 0.5] and breaks.tolist() == [0.5, 0.5, -0.5, -0.5]
    neither = weigh(torch.tensor([1.0, 0, 1, 0]) - 0.5, 4, 3.0)
    assert neither.tolist() == [0.5, -0.5, 0.5, -0.5], "without progress alpha changes nothing"


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_the_trainer_gives_branches_these_advantages(alpha, tmp_path):
    seen = []

    def reward(completions, **columns):
        seen.append(letters(completions, **columns))
        return seen[-1]

    made = trainer(MRTTrainer, tmp_path, reward=reward, alpha=alpha)
    batch = made._generate_and_score_completions([ROWS[1]] * 4)
    joint = torch.tensor(seen[-1])
    joint = (joint - joint.mean()) / (joint.std() + 1e-4)
    torch.testing.assert_close(batch["advantages"], weigh(joint, 4, alpha))


def test_no_gradient_reaches_prompt_prefix_and_forced_words(tmp_path):
    made = trainer(MRTTrainer, tmp_path, rows=[ROWS[2]] * 2)
    batch = made._generate_and_score_completions([ROWS[2]] * 4)
    words = made.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    assert words == ["2+2=ab\n\nab\n\n!"] * 2 + ["2+2=ab\n\nab\n\n"] * 2
    states = []

    def keep(module, given, state):
        state.retain_grad()
        states.append(state)

    hook = made.model.model.norm.register_forward_hook(keep)
    made.current_gradient_accumulation_steps = 1
    made.compute_loss(made.model, batch).backward()
    hook.remove()
    grad, first = states[0].grad.abs().sum(-1), batch["prompt_ids"].shape[1] - 1
    assert torch.equal(grad[:, :first], torch.zeros_like(grad[:, :first])), "the state before a token decides it"
    assert bool((grad[:, first:-1][batch["completion_mask"].bool()] > 0).all())


# --- episodes


def test_a_rollout_is_cut_at_the_tokens_that_end_its_episodes():
    args, read = mrt.Config(output_dir=".", form="episodes", end="!", cue="\n\n!", use_cpu=True), tiny.tokenizer()
    text = "abc12\n\nab\n\n!c"
    ids = read(text)["input_ids"]
    found = cut(ids, args, decoder(read))
    assert [read.decode(ids[:n]) for n, _ in found] == ["", "abc12\n\n", "abc12\n\nab\n\n"]
    assert [words for _, words in found] == ["!", "!", "!"]
    assert cut([], args, decoder(read)) == [(0, "!")]


def test_a_token_gets_the_progress_of_its_episode(tmp_path):
    made = trainer(MRTTrainer, tmp_path, form="episodes", k=4)
    read = made.processing_class
    traces = ["ab\n\nc12\n\n!x", "zz", ""]
    ids = [[*read(text)["input_ids"], read.eos_token_id] for text in traces]
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    padded = torch.tensor([row + [read.pad_token_id] * (longest - len(row)) for row in ids])
    batch = {"completion_ids": padded, "completion_mask": mask}
    worth = {(0, 0): 0.25, (0, 2): 1.0, (0, 5): 0.5, (1, 0): 0.0, (1, 2): 0.75, (2, 0): 0.5}
    asked = []

    def forced(inputs, batch, contexts):
        asked.extend(contexts)
        places = [[(i, n) for i, n, _ in contexts[:at]].count((i, n)) for at, (i, n, _) in enumerate(contexts)]
        return [float(place < 4 * worth[i, n]) for place, (i, n, _) in zip(places, contexts, strict=True)]

    made._forced = forced
    bonus = made._progress(ROWS[:3], batch)
    ends = [worth[0, 0], worth[0, 2], worth[0, 5]]
    assert [(i, n) for i, n, _ in asked[::4]] == list(worth) and len(asked) == 4 * len(worth)
    assert bonus[0].tolist() == [ends[1] - ends[0]] * 2 + [ends[2] - ends[1]] * 3 + [0.0] * (longest - 5)
    assert bonus[1].tolist() == [0.75, 0.75] + [0.0] * (longest - 2) and not bonus[2].any()


def test_forced_answers_are_drawn_after_the_rollout_s_own_tokens(tmp_path):
    seen = []

    def reward(prompts, completions, problem, **_):
        seen.append((prompts, completions, problem))
        return [1.0] * len(completions)

    made = trainer(MRTTrainer, tmp_path, form="episodes", k=3, reward=reward)
    batch = made._generate_and_score_completions([ROWS[i // 2] for i in range(4)])
    assert batch["advantages"].shape == batch["completion_ids"].shape
    prompts, completions, problem = seen[-1]
    assert len(completions) % 3 == 0 and all(text.lstrip("\n").startswith("!") for text in completions)
    assert set(problem) == {0, 1} and prompts[0] == ROWS[0]["prompt"]
    assert not batch["advantages"].any(), "where every answer is right there is no progress"


def test_where_nothing_is_right_nothing_is_rewarded(tmp_path):
    made = trainer(
        MRTTrainer, tmp_path, form="episodes", k=2, reward=lambda completions, **_: [0.0] * len(completions)
    )
    assert not made._generate_and_score_completions([ROWS[0]] * 4)["advantages"].any()
    assert made._metrics["train"]["success/first"] == made._metrics["train"]["success/last"] == [0.0]


# --- prefixes of the previous policy


@pytest.fixture
def rollouts(tmp_path):
    return write_rollouts(tmp_path / "rollouts")


def test_a_prefix_is_any_but_the_complete_one(rollouts):
    args = mrt.Config(output_dir=".", rollouts=str(rollouts), end="Answer:", cue="\n\nAnswer:", use_cpu=True)
    problems = mrt.prefixed(args, tiny.tokenizer())
    assert {row["prefix"] for row in problems.rows} == {"", "1+1=2\n\n"}
    assert len(problems.documents) == 3 and [row["problem"] for row in problems.rows] == [0, 1, 2] * 10
    again = mrt.prefixed(args, tiny.tokenizer())
    assert again.rows == problems.rows, "the same wherever a run goes on"
    _, document = problems.documents[1]
    said = [f" {document['answer']}", f"Answer: {document['answer']}", " x"]
    assert mrt.outcome(problems)(said, ["Answer:", "", "Answer:"], problem=[1, 1, 1]) == [1, 1, 0]


def test_two_steps_on_the_tiny_model_move_its_weights(tmp_path, rollouts):
    base = tiny.save(tmp_path / "base")
    said = SETTINGS | {"end": "Answer:", "cue": "\n\nAnswer:", "rollouts": rollouts}
    file = write_yaml(tmp_path / "mrt.yaml", model=base, output_dir=tmp_path / "out", **said)
    code, told = train(tmp_path, "mrt", "--config", file, before=reward_letters)
    assert code == 0, told
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert json.loads((tmp_path / "out" / "extratime.json").read_text())["recipe"] == "mrt"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"end": ""}, "end must name the text"),
        ({"num_generations": 3}, "even, not 3"),
        ({"rollouts": ""}, "branches begin in traces of the previous policy"),
        ({"alpha": -1.0}, "alpha ≥ 0"),
        ({"form": "episodes", "rollouts": ""}, "name either tasks .* or a folder of draws"),
        ({"alfa": 1.0}, "unknown key 'alfa'; did you mean 'alpha'"),
        ({"rollouts": "nowhere"}, "data file 'nowhere/draws.jsonl' does not exist"),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused(more, why, tmp_path, rollouts):
    said = SETTINGS | {"rollouts": rollouts, "per_device_train_batch_size": 12} | more
    file = write_yaml(tmp_path / "mrt.yaml", model="embedded", output_dir=tmp_path / "out", **said)
    with pytest.raises(ValueError, match=why):
        mrt.main(["--config", str(file)])
    assert not (tmp_path / "out").exists()
