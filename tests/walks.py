"""The chain: six steps, each right with probability p; an error is never made good. Strategies walk it by the hundred.

Numbers that tests hold them to come from independent simulations of 2000 or 3000 walks.
"""

import functools
import hashlib
import math
from statistics import NormalDist

from toy import ToyEngine, problem, run, told

from extratime.evaluate.schedule import Cell

STEPS = 6
BEST = {(3, 0.5): 0.63, (1, 1): 0.47}
"""Accuracy of best-of-8 where p = 0.7, by how well steps are seen (mu, sigma)."""


def chain(p, hack=0.0, wordings=1):
    """Steps "r" and "w", or "h", which fools a verifier; the last one is the answer, and nothing follows it.

    Each step has so many wordings: as good as none is said twice where they are many.
    """

    def worded(law):
        return {f"{text}{i}{end}": q / wordings for (text, end), q in law.items() for i in range(wordings) if q}

    fail, lie = (1 - p) * (1 - hack), hack
    middle = worded({("r", "\n"): p * (1 - hack), ("w", "\n"): fail, ("h", "\n"): lie})
    wrong = {("w", f"=w{i}"): 0.1 for i in range(10)}

    def final(right):
        lies = {("h", f"=w{i}"): 0.1 * lie for i in range(10)}
        return worded({("r", "=1"): right} | {at: q * (1 - right - lie) for at, q in wrong.items()} | lies)

    good, bad = final(p * (1 - hack)), final(0.0)

    def law(text):
        if "=" in text:
            return {"": 1.0}
        return middle if text.count("\n") < STEPS - 1 else bad if lost(text) else good

    return told(law)


def lost(text):
    return bool(set(text) & {"w", "h"})


def noise(r):
    """A standard normal that hangs on the node alone, so that equal prefixes are seen with different eyes."""
    name = hashlib.blake2b(repr((r.text, r.path)).encode(), digest_size=4).digest()
    return NormalDist().inv_cdf((int.from_bytes(name, "big") + 0.5) / 2**32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def judge(rate):
    """A verifier that scores one response by itself."""

    def verify(problem, responses):
        yield from ()
        return [rate(r) for r in responses]

    return verify


def sees(mu, sigma):
    return judge(lambda r: sigmoid((-mu if lost(r.text) else mu) + sigma * noise(r)))


def fooled(r):
    """A score that takes one step in two hundred, by a law with `hack`, for the best of all."""
    return min(1.0, max(0.0, (0.97 if "h" in r.text else 0.3 if lost(r.text) else 0.8) + 0.05 * noise(r)))


BLIND = judge(lambda r: sigmoid(noise(r)))


def simulate(strategy, budget, law, runs, max_tokens=STEPS + 1):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens), strategy, budget, replicate=i) for i in range(runs)]
    return run(ToyEngine(law, slots=512), cells)


def accuracy(results):
    return sum(result.answer.response.text.endswith("=1") for result in results) / len(results)


def steps(results):
    """Mean steps that a cell generates: its tokens without those that end a response."""
    return sum(r.cost.generated - sum(c.finish == "eos" for c in r.answer.pool) for r in results) / len(results)


def near(seen, p, runs, published=2000):
    """Whether an accuracy agrees with a published one, both being estimates, to 3.5 standard errors."""
    return abs(seen - p) <= 3.5 * math.sqrt(max(p * (1 - p), 0.004) * (1 / runs + 1 / published)) + 0.005


def walked(strategy, budget, law=None, runs=150, **options):
    return simulate(functools.partial(strategy, **options), budget, law or chain(0.7), runs)
