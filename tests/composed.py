"""Programs that are composed of others, played by hand or run on models that answer at once."""

import itertools

from played import P
from toy import ToyEngine, ended, problem, run, told

from extratime.evaluate.grid import parse
from extratime.evaluate.program import Gather
from extratime.evaluate.schedule import Cell
from extratime.models.request import Completion

RUNS = 300


def response(text, finish="eos", prompt=None, **fields):
    return Completion(prompt or P.prompt, text, 6, finish=finish, **fields)


def replying(program, answer):
    """Run a program; `answer(request)` gives the texts of each sample. The samples asked for, and what it returned."""
    asked, value = [], None
    while True:
        try:
            request = program.send(value)
        except StopIteration as stop:
            return asked, stop.value
        if isinstance(request, Gather):
            pairs = [replying(child, answer) for child in request.programs]
            asked += itertools.chain.from_iterable(child for child, _ in pairs)
            value = [result for _, result in pairs]
        elif request.along:
            value = list(request.along)
        else:
            asked.append(request)
            replies = answer(request)
            value = [r if isinstance(r, Completion) else response(r, prompt=request.prompt) for r in replies]


def answers(law):
    """A model that answers at once, whatever it is told before the question."""
    return told(lambda text: {"": 1.0} if "=" in text else {f"={answer}": p for answer, p in law.items()})


def repeated(strategy, budget, law, n=RUNS, max_tokens=4):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens), strategy, budget, replicate=i) for i in range(n)]
    return run(ToyEngine(law, slots=64), cells)


def right(results):
    return sum(ended(result.answer.response.text) == "1" for result in results)


PLAIN = {"model": "m", "tasks": ["t"], "output": "o"}


def recipe(**strategies):
    return parse(PLAIN | {"strategies": [{name: options} for name, options in strategies.items()]})
