import json

import pytest
import tiny
import torch
from datasets import Dataset
from launch import sums, write_rows
from trl import SFTTrainer

from extratime.train.sft import ColumnTrainer, Config, read_rows


def both(folder, rows, **settings):
    """TRL's trainer and ours on the same model, with TRL's batch of all rows."""
    args = Config(output_dir=str(folder), use_cpu=True, report_to="none", **settings)
    parts = {"args": args, "processing_class": tiny.tokenizer(), "train_dataset": Dataset.from_list(rows)}
    made = [kind(model=tiny.model(), **parts) for kind in (SFTTrainer, ColumnTrainer)]
    batch = made[0].data_collator([made[0].train_dataset[i] for i in range(len(made[0].train_dataset))])
    return made, batch


CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in sums()
]


@pytest.mark.parametrize("rows", [sums(), CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("items", [None, 37])
def test_loss_and_gradient_are_those_of_trl(rows, items, tmp_path):
    trainers, batch = both(tmp_path, rows)
    found = []
    for trainer in trainers:
        given = {key: value.clone() for key, value in batch.items()}
        loss = trainer.compute_loss(trainer.model.train(), given, num_items_in_batch=items)
        loss.backward()
        found.append((loss.item(), [weight.grad for weight in trainer.model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_only_the_completion_carries_loss(tmp_path):
    _, batch = both(tmp_path, sums(4))
    tokenizer = tiny.tokenizer()
    for row, labels in zip(sums(4), batch["labels"], strict=True):
        assert tokenizer.decode(labels[labels != -100]) == row["completion"] + "<|im_end|>"


def test_only_columns_with_a_label_meet_the_vocabulary(tmp_path):
    trainers, batch = both(tmp_path, sums())
    seen = []
    trainers[1].model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    trainers[1].compute_loss(trainers[1].model.train(), batch)
    assert seen == [int((batch["labels"][:, 1:] != -100).any(0).sum())]
    assert seen[0] < batch["labels"].shape[1] - 1


@pytest.mark.parametrize(
    "line",
    ["{broken", "[]", '"words"', '{"prompt": "a"}', '{"prompt": "a", "completion": []}'],
)
def test_a_line_that_is_no_row_is_named(line, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: "):
        read_rows(str(tmp_path / "rows.jsonl"))


def test_rows_keep_prompt_and_completion_only(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row | {"more": 1} for row in sums(3)])
    assert read_rows(str(path)) == sums(3)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(str(path))
