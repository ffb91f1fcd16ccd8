"""Training stops before the optimiser moves on a number that is not finite, and saves nothing of it."""

import pytest
import tiny
import torch
from datasets import Dataset
from launch import poison, sums

from extratime.train.guard import NotFinite, agreed, guarded
from extratime.train.sft import Config


def poisoned(folder, harm, at=2, **settings):
    args = Config(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=5,
        save_steps=1,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        **settings,
    )
    rows = Dataset.from_list(sums())
    return guarded(poison(at, harm))(
        model=tiny.model(), processing_class=tiny.tokenizer(), args=args, train_dataset=rows
    )


@pytest.mark.parametrize("harm", ["loss", "infinite", "gradient"])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_not_a_number_stops_before_the_optimiser_moves_and_before_anything_is_saved(harm, clip, tmp_path):
    trainer = poisoned(tmp_path, harm, max_grad_norm=clip, gradient_accumulation_steps=2)
    with pytest.raises(NotFinite, match=r"step 3: (loss|gradient norm) is (nan|inf); stopped before saving"):
        trainer.train()
    after = list(trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(trainer.before, after, strict=True))
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    steps = {float(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {2.0}


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = poisoned(tmp_path, "loss")
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=float("inf"))
    with pytest.raises(NotFinite, match="step 1: a weight is NaN or infinite"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_evaluation_of_loss_is_not_stopped(tmp_path):
    trainer = poisoned(tmp_path, "loss", at=0)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    assert torch.isnan(trainer.compute_loss(trainer.model, batch))


def test_one_process_agrees_with_itself():
    assert agreed(7, torch.device("cpu")) == 7


def test_no_pickle_of_ours_is_written(tmp_path):
    trainer = poisoned(tmp_path, "loss", at=99)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "training_args.bin" not in written and "model.safetensors" in written
    pickles = {name for name in written if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for path in tmp_path.rglob("*.pt*"):
        with torch.serialization.safe_globals([*numpy_state()]):
            assert torch.load(path, weights_only=True)


def numpy_state():
    import numpy as np

    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
