"""GPU memory and time of training recipes, by estimate, as a Markdown table.

    python scripts/estimate.py [--gpus 8] [--memory 80] [--flops 989e12] [--bandwidth 3.35e12]

Memory of one GPU: weights and gradients in bfloat16 and Adam's three float32 numbers, 2 + 2 + 12 bytes a trained
parameter, sharded as the ZeRO stage says; activations kept between layers, one layer's inside, and the logits of a
batch in float32. Time: 6 operations a trained parameter and token (8 where activations are computed anew), at a third
of the peak; drawing reads the weights once a token of 64 rows. Start-up, saving and waiting are left out. Sizes are of
the models' own configurations. Nothing here was measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

USE = 0.35
"""Share of the peak that training reaches."""
ROWS = 64
"""Rows drawn at once."""
GB = 1e9


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of a model.

    Attributes:
        parameters: all of them.
        layers, width, vocabulary: as its configuration says.
    """

    parameters: float
    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Job:
    """What a recipe does.

    Attributes:
        recipe: its file.
        model: that it trains.
        zero: DeepSpeed's stage; 0 is one whole copy on each GPU.
        rows: sequences of one GPU at a time.
        length: tokens of a sequence.
        tokens: trained on in all.
        drawn: tokens drawn in all.
        trained: share of the parameters with a gradient.
        again: whether activations are computed anew.
        labelled: share of positions that meet the vocabulary.
    """

    recipe: str
    model: Model
    zero: int
    rows: int
    length: int
    tokens: float
    drawn: float = 0.0
    trained: float = 1.0
    again: bool = False
    labelled: float = 1.0


QWEN = Model(1.54e9, 28, 1536, 151_936)
LLAMA = Model(8.03e9, 32, 4096, 128_256)
GSM8K = 7473 * 300
"""Tokens of the training split with prompts."""
STEPS = 7473 * 16 * (250 + 16 * 6 * 120)
"""Tokens of its labels of steps: 16 responses a problem, 16 completions of each of 6 steps."""
JUDGED = 20_000
"""Prompts of a judge: both orders of pairs."""
JOBS = [
    Job("sft/qwen2.5-1.5b", QWEN, 2, 16, 300, 2 * GSM8K),
    Job("sft/llama-3.1-8b", LLAMA, 3, 8, 300, 2 * GSM8K, again=True),
    Job("self_eval/qwen2.5-1.5b", QWEN, 2, 2, 2048, 2000 * 2048, 16_000 * 250, 0.02, labelled=0.01),
    Job("self_eval/llama-3.1-8b", LLAMA, 2, 1, 2048, 2000 * 2048, 16_000 * 250, 0.01, labelled=0.01),
    Job("grpo/qwen2.5-1.5b", QWEN, 2, 8, 600, 7473 * 8 * 400, 7473 * 8 * 300, again=True, labelled=0.6),
    Job("grpo/llama-3.1-8b", LLAMA, 3, 4, 600, 7473 * 8 * 400, 7473 * 8 * 300, again=True, labelled=0.6),
    Job("prm/qwen2.5-math-1.5b", QWEN, 2, 16, 350, 16 * 7473 * 350, STEPS, labelled=0),
    Job("prm/llama-3.1-8b", LLAMA, 3, 4, 350, 16 * 7473 * 350, STEPS, again=True, labelled=0),
    Job("mrt/deepseek-r1-1.5b", QWEN, 2, 2, 8192, 1744 * 4 * 8 * 4000, 1744 * 4 * 8 * 2000, again=True, labelled=0.5),
    Job("mrt/deepseek-r1-8b", LLAMA, 3, 1, 8192, 1744 * 4 * 8 * 4000, 1744 * 4 * 8 * 2000, again=True, labelled=0.5),
    Job("judge_sft/qwen2.5-1.5b", QWEN, 2, 4, 1500, JUDGED * 1500, 8 * JUDGED * 800, again=True, labelled=0.6),
    Job("judge_sft/llama-3.1-8b", LLAMA, 3, 4, 1500, JUDGED * 1500, 8 * JUDGED * 800, again=True, labelled=0.6),
    Job("judge_grpo/qwen2.5-1.5b", QWEN, 2, 8, 1700, 500 * 256 * 1500, 500 * 256 * 800, again=True, labelled=0.6),
    Job("judge_grpo/llama-3.1-8b", LLAMA, 3, 4, 1700, 500 * 256 * 1500, 500 * 256 * 800, again=True, labelled=0.6),
]


def memory(job: Job, gpus: int) -> float:
    """Bytes of one GPU."""
    held, model = job.model.parameters, job.model
    shards = {"weights": gpus if job.zero >= 3 else 1, "states": gpus if job.zero >= 1 else 1}
    states = held * (2 / shards["weights"] + job.trained * (2 + 12) / shards["states"])
    inside = 34 * job.rows * job.length * model.width
    between = 2 * job.rows * job.length * model.width * model.layers
    kept = between + inside if job.again else inside * model.layers
    logits = 3 * 4 * job.rows * job.length * job.labelled * model.vocabulary
    return states + kept + logits


def minutes(job: Job, gpus: int, flops: float, bandwidth: float) -> tuple[float, float]:
    """Minutes of training and of drawing."""
    forward = 4 if job.again else 2
    work = job.tokens * job.model.parameters * (forward + 2 + 2 * job.trained)
    reading = 2 * job.model.parameters / bandwidth
    return work / (USE * flops * gpus) / 60, job.drawn / ROWS * reading / gpus / 60


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--memory", type=float, default=80, help="of one GPU, in GB")
    parser.add_argument("--flops", type=float, default=989e12, help="peak of one GPU, bfloat16, a second")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="of one GPU's memory, bytes a second")
    args = parser.parse_args()
    print("| recipe | ZeRO | GB a GPU | fits | minutes drawing | minutes training |\n|---|---:|---:|---|---:|---:|")
    for job in JOBS:
        needed = memory(job, args.gpus) / GB
        training, drawing = minutes(job, args.gpus, args.flops, args.bandwidth)
        fits = "yes" if needed < 0.9 * args.memory else "NO"
        print(f"| `{job.recipe}` | {job.zero} | {needed:.0f} | {fits} | {drawing:.1f} | {training:.1f} |")


if __name__ == "__main__":
    main()
