"""Outcome-only GRPO: its problems, rewards and what a checkpoint keeps of its rollouts."""

import pytest
import tiny
import torch
from launch import reward_letters, train, write_yaml
from safetensors.torch import load_file

from extratime.train import grpo

SETTINGS = {
    "tasks": ["sums_easy"],
    "problems": 6,
    "num_generations": 2,
    "max_completion_length": 4,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "use_cpu": True,
    "report_to": "none",
}


def config(tmp_path, **more):
    return grpo.Config(output_dir=str(tmp_path), **SETTINGS | more)


def test_two_steps_on_the_tiny_model_move_its_weights(tmp_path):
    base = tiny.save(tmp_path / "base")
    file = write_yaml(tmp_path / "grpo.yaml", model=base, output_dir=tmp_path / "out", learning_rate=0.01, **SETTINGS)
    code, said = train(tmp_path, "grpo", "--config", file, before=reward_letters)
    assert code == 0, said
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_a_reward_is_the_metric_of_the_task(tmp_path):
    problems = grpo.load_problems(config(tmp_path, tasks=["sums_easy", "sums_hard"]))
    assert len(problems.rows) == len(problems.documents) == 12
    for row in problems.rows:
        _, document = problems.documents[row["problem"]]
        assert row["prompt"] == f"Sum: {document['expression']}\n"
        assert problems.reward(document["solution"], row["problem"]) == 1
    assert problems.reward("", 0) == problems.reward("no number", 0) == 0


def test_rewards_of_chats_are_those_of_their_last_turn(tmp_path):
    problems = grpo.load_problems(config(tmp_path, chat=True))
    _, document = problems.documents[3]
    assert problems.rows[3]["prompt"] == [{"role": "user", "content": f"Sum: {document['expression']}\n"}]
    turn = [{"role": "assistant", "content": document["solution"]}]
    assert grpo.outcome(problems)([turn, "=?"], [3, 3], trainer_state=None) == [1, 0]


def test_what_is_packed_comes_back(tmp_path):
    rows = torch.arange(12).reshape(4, 3)
    batches = [{"ids": rows[:2], "count": torch.tensor(7)}, {"ids": rows[2:].T, "count": torch.tensor(7)}]
    found = grpo.unpack(grpo.pack(batches))
    assert [batch.keys() for batch in found] == [batch.keys() for batch in batches]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(batches, found, strict=True) for key in a)
    assert grpo.unpack(grpo.pack([])) == []
    with pytest.raises(TypeError, match="'num_images', a list"):
        grpo.pack([{"num_images": [1]}])


def test_more_than_ten_batches_keep_their_order():
    batches = [{"place": torch.tensor(i)} for i in range(12)]
    assert [int(batch["place"]) for batch in grpo.unpack(grpo.pack(batches))] == list(range(12))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"tasks": []}, "name lm-eval tasks"),
        ({"sync_ref_model": True}, "sync_ref_model: true moves a model that checkpoints do not hold"),
        ({"taks": ["sums_easy"]}, "unknown key 'taks'; did you mean 'tasks'"),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused(more, why, tmp_path):
    file = write_yaml(tmp_path / "grpo.yaml", model="embedded", output_dir=tmp_path / "out", **SETTINGS | more)
    with pytest.raises(ValueError, match=why):
        grpo.main(["--config", str(file)])
    assert not (tmp_path / "out").exists()
