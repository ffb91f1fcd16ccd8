"""Programs played by hand: a response, a verifier that reads a table, and the replies to each request in turn."""

import numpy as np
from toy import problem

from extratime.evaluate.program import Gather
from extratime.models.request import Completion

P = problem(max_tokens=12)


def rng():
    return np.random.default_rng(0)


def response(text, finish="eos", n_tokens=6, **fields):
    return Completion(P.prompt, text, n_tokens, finish=finish, **fields)


def scored(table):
    """A verifier that looks a response up by its text, and remembers what it was asked."""

    def verify(problem, responses):
        yield from ()
        verify.asked.append([r.text for r in responses])
        return [table(r.text) if callable(table) else table[r.text] for r in responses]

    verify.asked = []
    return verify


def play(program, *replies):
    """Answer a program's requests in turn, by an error if the reply is one: the requests, and what it returned."""
    asked = [next(program)]
    for i, reply in enumerate(replies):
        try:
            if isinstance(reply, Exception):
                asked.append(program.throw(reply))
            else:
                asked.append(program.send(reply(asked[-1]) if callable(reply) else reply))
        except StopIteration as stop:
            assert i == len(replies) - 1, "it returned before all replies were given"
            return asked, stop.value
    raise AssertionError(f"it still wants {asked[-1]}")


def steps(program, say):
    """Run a program whose samples are answered by `say(request, i)`: all its requests, and what it returned."""
    asked, value = [], None
    while True:
        try:
            request = program.send(value)
        except StopIteration as stop:
            return asked, stop.value
        if isinstance(request, Gather):
            parts = [steps(child, say) for child in request.programs]
            asked += [request for part, _ in parts for request in part]
            value = [told for _, told in parts]
        else:
            asked.append(request)
            value = [say(request, i) for i in range(len(request.along) or request.n)]


def saying(*texts):
    """Answers with these texts, one after the other."""
    left = iter(texts)
    return lambda request, i: response(next(left))
