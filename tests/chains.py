"""Finite models whose posteriors are enumerated; they run particle programs without an engine."""

import bisect
import functools
import math
from itertools import accumulate

import numpy as np
from toy import problem, texts

from extratime.evaluate.algorithms.particles import State
from extratime.evaluate.program import Gather
from extratime.models.request import Completion, Sample, Sampling

V, T = 3, 6
PROBLEM = problem(max_tokens=40)
SHORT = problem(max_tokens=12)


class Model:
    """Texts of a known law, with a potential of each step; all are enumerated.

    `law(text)` gives the probabilities of next pieces, `potential(text)` the potential G of a text of whole steps.
    `others` are the laws of further roles.
    """

    def __init__(self, law, potential, length, **others):
        self.law, self.potential = functools.cache(law), functools.cache(potential)
        self.others = others
        self.prior, growing = texts(self.law, length)
        assert sum(growing.values()) < 1e-12
        self.drawn, self.tempered = 0, functools.cache(self._tempered)

    def gain(self, text):
        """Product of the potentials of all steps of a whole text."""
        return math.prod(map(self.potential, prefixes(text)))

    def target(self, gain=None):
        """Unnormalised: p(x) ∏ G(x_{1:t}), or p(x) times another gain of whole texts."""
        return {x: p * (gain or self.gain)(x) for x, p in self.prior.items()}

    def verify(self, problem, responses):
        """Scores whose odds are the potential."""
        yield from ()
        return [g / (1 + g) for g in (self.potential(r.text) for r in responses)]

    def states(self, text, problem=PROBLEM):
        """The trajectory of a whole text."""
        return [State(self._prefix(p, text, problem), *self._weight(p)) for p in prefixes(text)]

    def _prefix(self, prefix, text, problem):
        lp = (*self.spelt("", prefix, self.law), *[0.0] * (prefix == text))
        ids = tuple(range(len(lp) - (prefix == text)))
        return Completion(
            problem.prompt, prefix, len(lp), ids, lp, lp, "eos" if prefix == text else "pause", Sampling()
        )

    def _weight(self, prefix):
        g = self.potential(prefix)
        return g / (1 + g), math.log(g)

    def spelt(self, text, rest, law):
        """Log-probability of each piece of `rest` after `text`."""
        while rest:
            pieces = law(text)
            piece = next((p for p in pieces if p and rest.startswith(p)), None)
            if piece is None:
                yield -math.inf
                return
            yield math.log(pieces[piece])
            text, rest = text + piece, rest[len(piece) :]

    def _tempered(self, text, t):
        raw = self.law(text)
        hot = {piece: p ** (1 / t) for piece, p in raw.items() if p > 0}
        total = sum(hot.values())
        law = {piece: p / total for piece, p in hot.items()}
        return (
            list(law),
            list(accumulate(law.values())),
            [math.log(raw[x]) for x in law],
            [*map(math.log, law.values())],
        )

    def read(self, response, pause, rng):
        """Read `response` on, to the end of a step or to its end."""
        if not response.readable:
            return response
        self.drawn += 1
        law = response.sampling or Sampling()
        text, raw, hot, piece = response.text, list(response.logprobs), list(response.tempered), " "
        while piece and not (pause and piece.endswith("\n") and len(text) > len(response.text)):
            pieces, cumulative, raws, hots = self.tempered(text, law.temperature)
            i = min(bisect.bisect(cumulative, rng.random()), len(pieces) - 1)
            piece = pieces[i]
            raw.append(raws[i])
            hot.append(hots[i])
            text += piece
        n, finish = len(raw), "pause" if piece else "eos"
        ids = tuple(range(n - (not piece)))
        return Completion(response.prompt, text, n, ids, tuple(raw), tuple(hot), finish, law)

    def drive(self, program, rng):
        """What `program` returns when this model answers it."""
        reply = None
        while True:
            try:
                request = program.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = self._reply(request, rng)

    def _reply(self, request, rng):
        if isinstance(request, Gather):
            return [self.drive(child, rng) for child in request.programs]
        if isinstance(request, Sample):
            law = Sampling(request.temperature or 1.0)
            empty = Completion(request.prompt, "", 0, finish="length", sampling=law)
            return [self.read(r, bool(request.pause), rng) for r in request.along or [empty] * request.n]
        return [
            tuple(self.spelt(one.prompt.text.partition("?")[2], one.continuation, self.others.get(one.role, self.law)))
            for one in request
        ]


class Chain(Model):
    """Second-order chain over three letters with potentials on pairs: 729 texts of six steps."""

    def __init__(self, seed, spread=1.0, **others):
        rng = np.random.default_rng(seed)
        self.rows = rng.dirichlet(np.full(V, 0.7), size=(V, V))
        self.table = np.exp(spread * rng.normal(size=(T, V, V)))
        super().__init__(self._law, self._potential, T + 1, **others)

    def _law(self, text):
        x = [0, 0, *letters(text)]
        if len(x) == T + 2:
            return {"": 1.0}
        end = "\n" if len(x) < T + 1 else ""
        return {f"{v}{end}": float(self.rows[x[-2], x[-1], v]) for v in range(V)}

    def _potential(self, text):
        x = [0, *letters(text)]
        return float(self.table[len(x) - 2, x[-1], x[-2]])


def story(text):
    """Steps a or b until it ends; which is likelier after a."""
    if text and not text.endswith("\n"):
        return {"": 1.0}
    steps = text.count("\n")
    end = {".": 1.0} if steps == 4 else {".": 0.5 if text.endswith("a\n") else 0.2} if steps else {}
    left = 1 - sum(end.values())
    return end | ({"a\n": left / 2, "b\n": left / 2} if left else {})


STORY = Model(story, lambda text: 2.0 if text.endswith("a\n") else 0.5, 8)


def prefixes(text):
    """Of whole steps."""
    return list(accumulate(text.splitlines(keepends=True)))


def letters(text):
    return [int(c) for c in text if c != "\n"]


def marginals(target):
    """Of the letters of a chain, shape (T, V)."""
    table = np.zeros((T, V))
    for text, p in target.items():
        table[np.arange(T), letters(text)] += p
    return table / sum(target.values())


@functools.cache
def chain(seed=0, spread=1.0):
    """One chain for all tests."""
    return Chain(seed, spread)


def response(text, finish="eos", n_tokens=None, **fields):
    """A response to `SHORT` of one token a character."""
    return Completion(SHORT.prompt, text, len(text) if n_tokens is None else n_tokens, finish=finish, **fields)


def paused(*texts):
    """Responses at the end of a step."""
    return [response(text, "pause") for text in texts]
