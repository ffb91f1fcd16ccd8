"""What sparse attention would cost (Kinetics, arXiv 2506.05333): for planning, since no engine here attends sparsely.

Of the tokens before it a token attends to `budget` at most, so that attention is linear in length once the budget is
full. At the middle of its step token t has L_in + t + ½ before it, and in all

    A = Σ_t min(L_in + t + ½, B) ≈ B·L − max(0, B − L_in)²/2        where L ≥ B − L_in, else (L_in + L/2)·L

are attended to. The published code adds the square where it has to be taken off, and both its forms are wrong for
short generations. Prefixes are chosen by each sample for itself, so that samples share no cache. Whoever looks for the
best blocks reads one averaged key for each, of all tokens; published code rounds their number down, to none for short
contexts.
"""

from __future__ import annotations

from extratime.models.request import Shape


def attended(prompt: int, generated: int, budget: int) -> float:
    """A: tokens attended to by `generated` tokens after `prompt`, of at most `budget` each."""
    rising = min(generated, max(0, budget - prompt))
    return (prompt + rising / 2) * rising + min(budget, prompt + rising) * (generated - rising)


def sparse_eflops(
    shape: Shape, prompt: int, generated: int, n: int, budget: int, intensity: float, block: int = 0
) -> float:
    """EFLOPs of `n` samples with sparse attention.

    Args:
        shape: the model.
        prompt: tokens of the prompt.
        generated: tokens of each sample.
        n: samples.
        budget: tokens attended to at most.
        intensity: FLOP/s by byte/s of the machine.
        block: tokens of a block of which the best are looked for; 0 looks for nothing, as a window does.
    """
    width, pairs = shape.head_dim * shape.layers, attended(prompt, generated, budget)
    compute = n * (2.0 * shape.parameters * generated + 4 * pairs * shape.heads * width)
    memory = 2.0 * shape.dtype_bytes * n * pairs * shape.kv_heads * width
    if block:
        compute += n * (2 * prompt + generated) / block * generated * shape.heads * width
        memory += shape.dtype_bytes * (prompt + n * generated / 2) / block * generated * shape.kv_heads * width
    return compute + intensity * memory
