"""Archon: words, stages, rules, budgets, and the laws of whole pipelines."""

import functools
import math

import numpy as np
import pytest
from composed import RUNS, answers, recipe, repeated, replying, response, right
from laws import within
from played import P, rng, scored
from toy import ToyEngine, ended

from extratime.evaluate.algorithms.pipeline import check, cost, layered, paid
from extratime.evaluate.algorithms.prompts import blocks, fill, order
from extratime.evaluate.algorithms.stages import Critic, Fuser, Generator, Ranker, State, Verification
from extratime.evaluate.grid import bind
from extratime.evaluate.means import refuse_beyond_means
from extratime.evaluate.named import RecipeError
from extratime.evaluate.strategies.archon import archon
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.request import fail

# --- words


def test_a_template_is_filled_once_and_must_have_its_places():
    assert fill("{a} and {b}, {c}", a="{b}", b=" x ") == "{b} and x, {c}"
    with pytest.raises(ValueError, match=r"no place for \{b\}"):
        fill("{a}", a="", b="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[3] > [1]", [2, 0, 1]),
        ("[1] is better than [2].\nSo: [2] > [1] > [3]", [1, 0, 2]),
        ("[2]", [1, 0, 2]),
        ("[9] > [0] > [3] > [3]", [2, 0, 1]),
        ("I can't say.", [0, 1, 2]),
        ("", [0, 1, 2]),
    ],
)
def test_a_ranking_names_some_and_the_others_follow_in_their_order(text, expected):
    assert order(text, 3) == expected


def test_each_block_belongs_to_its_number():
    assert blocks("Well.\n[2] weak\nin all [1] ways\n[1]: strong", 3) == ["strong", "weak\nin all [1] ways", ""]
    assert blocks("**[1]** good\n[7] what", 2) == ["good", ""]


# --- Archon's stages


def staged(stages, answer, budget=9):
    return replying(archon(P, budget, rng(), stages), answer)


def about(request):
    """What a request is about, by its words."""
    words = {"Weigh each": "critic", "Rank the": "ranker", "better than each": "fuser", "step by step": "reasons"}
    found = [kind for word, kind in words.items() if word in request.prompt.text]
    return found[0] if found else "verdict" if "[Incorrect]" in request.prompt.text else "generator"


def test_a_pipeline_hands_candidates_and_critiques_from_stage_to_stage():
    def answer(request):
        kind = about(request)
        if kind == "critic":
            return ["[1] short\n[2] sound\n[4] long"]
        return {"generator": ["a=1", "b=2", "c=3", "d=4"], "ranker": ["[4] > [2]"], "fuser": ["e=4"]}[kind]

    stages = (Generator(4), Critic(), Ranker(k=2), Fuser())
    asked, result = staged(stages, answer)
    assert [(about(ask), ask.n) for ask in asked] == [("generator", 4), ("critic", 1), ("ranker", 1), ("fuser", 1)]
    assert "[2] b=2\n\nCritique: sound\n\n[3] c=3\n\n[4] d=4\n\nCritique: long" in asked[2].prompt.text
    assert "[1] d=4\n\nCritique: long\n\n[2] b=2\n\nCritique: sound" in asked[3].prompt.text
    assert asked[3].prompt.text.endswith(P.question) and "a=1" not in asked[3].prompt.text
    assert result.response.text == "e=4" and [r.text for r in result.pool] == ["a=1", "b=2", "c=3", "d=4", "e=4"]
    assert result.weights == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_new_candidates_have_no_critiques():
    """The published code carries old critiques on to what a fuser wrote."""
    fused = iter(["e=1", "f=2"])

    def answer(request):
        kind = about(request)
        if kind == "fuser":
            return [next(fused, "g=3") for _ in range(request.n)]
        return {"generator": ["a=1", "b=2"], "critic": ["[1] short\n[2] sound"]}[kind]

    asked, result = staged((Generator(2), Critic(), Fuser(n=2), Fuser()), answer)
    assert "sound" in asked[2].prompt.text and "Critique" not in asked[3].prompt.text
    assert result.response.text == "g=3"


def test_what_reads_no_critiques_is_not_told_them():
    said = {"generator": ["a=1", "b=2"], "critic": ["[1] short\n[2] sound"], "ranker": ["[2] > [1]"], "fuser": ["e=1"]}
    asked, _ = staged((Generator(2), Critic(), Ranker(), Fuser(critiques=False)), lambda ask: said[about(ask)])
    assert "sound" in asked[2].prompt.text and "sound" not in asked[3].prompt.text


def test_a_critic_is_asked_again_until_it_has_spoken_of_all():
    told = iter(["[1] short", "nothing", "[1] brief\n[2] sound", "[1] too late"])
    said = {"generator": ["a=1", "b=2"], "fuser": ["e=1"]}
    asked, _ = staged((Generator(2), Critic(tries=4), Fuser()), lambda ask: said.get(about(ask)) or [next(told)])
    assert [about(ask) for ask in asked].count("critic") == 3 and "Critique: sound" in asked[-1].prompt.text
    assert "Critique: brief" in asked[-1].prompt.text


def test_critiques_stand_beside_their_candidates():
    with pytest.raises(ValueError, match="1 critiques stand beside 2 candidates"):
        State((response("a"), response("b")), ("x",))


@pytest.mark.parametrize(("first", "verified"), [(None, "abcd"), (1, "ab"), (2, "abcd")])
def test_a_verifier_stage_stops_when_enough_have_passed(first, verified):
    """Reasons, then a verdict, for each; `[Incorrect]` holds the letters of "correct"."""
    verdict = {"a": "[Incorrect]", "b": "It is [Correct]", "c": "no [incorrect]", "d": "[Correct]"}

    def answer(request):
        kind = about(request)
        name = request.prompt.text.partition("Response:\n")[2][:1]
        if kind == "ranker":
            return ["[1] > [2]"]
        return (
            ["a=1", "b=2", "c=3", "d=4"]
            if kind == "generator"
            else [f"why {name}", verdict[name]][kind == "verdict" :][:1]
        )

    asked, result = staged((Generator(4), Verification(first=first), Ranker(k=1)), answer, budget=20)
    judged = [ask for ask in asked if about(ask) in ("reasons", "verdict")]
    assert [about(ask) for ask in judged] == ["reasons", "verdict"] * len(verified)
    assert all(f"why {name}" in ask.prompt.text for name, ask in zip(verified, judged[1::2], strict=True))
    assert result.response.text == "b=2"
    assert [r.text for r, w in zip(result.pool, result.weights, strict=True) if w] == ["b=2"]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.4, 0.6, math.nan, 0.5], [1, 3]),
        ([0.4, -math.inf, math.nan, 0.1], [2]),
        ([0.4, -math.inf, 0.0, 0.1], [0, 1, 2, 3]),
        ([math.nan] * 4, [0, 1, 2, 3]),
    ],
)
def test_where_none_passes_the_undecided_stay_or_else_all(scores, kept):
    table = dict(zip("abcd", scores, strict=True))
    state = State(tuple(map(response, "abcd")), tuple("ABCD"))
    _, after = replying(Verification(verify=scored(table))(P, state), None)
    assert [r.text for r in after.candidates] == ["abcd"[i] for i in kept]
    assert after.critiques == tuple("ABCD"[i] for i in kept)


def test_a_ranker_by_scores_keeps_the_order_of_ties_and_ranks_nan_last():
    table = dict(zip("abcde", [0.5, math.nan, 0.5, -math.inf, 0.9], strict=True))
    state = State(tuple(map(response, "abcde")))
    for k, kept in ((5, "eacbd"), (2, "ea")):
        _, after = replying(Ranker(k=k, verify=scored(table))(P, state), None)
        assert "".join(r.text for r in after.candidates) == kept


def test_unfinished_and_failed_responses_are_no_candidates_while_others_finished():
    drawn = [response("a", "length"), fail(response("b"), "no"), response("c=3")]
    said = {"generator": drawn, "fuser": ["e=1"]}
    asked, result = staged((Generator(3), Fuser()), lambda ask: said[about(ask)])
    assert "[1] c=3" in asked[1].prompt.text and "[2]" not in asked[1].prompt.text and len(result.pool) == 4


@pytest.mark.parametrize("last", [response("e", "length"), response("", "cut"), fail(response(""), "no")])
def test_a_fuser_that_ends_nothing_leaves_the_candidates(last):
    said = {"generator": ["a=1", "b=2"], "fuser": [last]}
    _, result = staged((Generator(2), Fuser()), lambda ask: said[about(ask)])
    assert result.response.text == "a=1" and result.weights == (1.0, 1.0, 0.0)


def test_where_every_draw_failed_nobody_is_asked_about_them():
    asked, result = staged((Generator(3), Critic(), Fuser()), lambda ask: [fail(response(""), "no")] * ask.n)
    assert len(asked) == 1 and result.response.error == "no" and len(result.pool) == 3


def test_generators_and_fusers_stand_side_by_side():
    def answer(request):
        if about(request) == "fuser":
            return [f"{request.role}=5"]
        return [f"{request.role}{i}=1" for i in range(request.n)]

    stages = ([Generator(2), Generator(1, role="judge", temperature=0.7)], [Fuser(), Fuser(role="judge")], Fuser())
    asked, result = staged(stages, answer)
    assert [(ask.role, ask.n, ask.temperature) for ask in asked[:2]] == [("policy", 2, None), ("judge", 1, 0.7)]
    assert (
        asked[2].prompt.text == asked[3].prompt.text
        and asked[3].prompt.ids is None
        and "[3] judge0=1" in asked[2].prompt.text
    )
    assert "[1] policy=5\n\n[2] judge=5" in asked[4].prompt.text and len(result.pool) == 6


# --- Archon's rules

GOOD = {
    "example": (Generator(4), Critic(), Ranker(k=2), Fuser(n=1)),
    "published": (Generator(10), Ranker(k=5), Fuser(n=1)),
    "one draw": (Generator(1),),
    "first to pass": (Generator(), Verification(first=1)),
    "critiques survive a filter": (Generator(), Critic(), Verification(), Fuser(critiques=True)),
    "side by side": ((Generator(2), Generator(2)), (Fuser(), Fuser()), Fuser()),
}
WRONG = {
    "no stage": ((), "no stage"),
    "no generator": ((Ranker(k=1),), "stage 1 (ranker): the first stage must be a generator"),
    "late generator": ((Generator(), Fuser(n=2), Generator(1)), "stage 3 (generator): generators stand in the first"),
    "mixed": ((Generator(), (Critic(), Ranker(k=1))), "stage 2 (critic, ranker): a stage holds one kind"),
    "rankers side by side": ((Generator(), (Ranker(k=1), Ranker(k=1))), "stage 2 (ranker, ranker): only generators"),
    "nobody reads": ((Generator(), Critic(), Ranker(k=1, verify=oracle)), "stage 2 (critic): no ranker or fuser"),
    "read too late": (
        (Generator(), Critic(), Fuser(n=3, critiques=False), Ranker(k=1)),
        "stage 2 (critic): no ranker or fuser",
    ),
    "no critic": ((Generator(), Fuser(critiques=True)), "stage 2 (fuser): it reads critiques, but no critic"),
    "stale critiques": (
        (Generator(), Critic(), Fuser(n=3), Ranker(k=1, critiques=True)),
        "stage 4 (ranker): it reads critiques, but no critic",
    ),
    "many left": ((Generator(), Ranker(k=2)), "stage 2 (ranker): the last stage must leave one candidate"),
    "many drawn": ((Generator(),), "stage 1 (generator): the last stage must leave one"),
    "two fusers": ((Generator(), (Fuser(), Fuser())), "stage 2 (fuser, fuser): the last stage must leave one"),
    "all that pass": ((Generator(), Verification()), "stage 2 (verifier): the last stage must leave one"),
}


@pytest.mark.parametrize("stages", GOOD.values(), ids=GOOD)
def test_good_pipelines_pass(stages):
    check(stages)


@pytest.mark.parametrize(("stages", "words"), WRONG.values(), ids=WRONG)
def test_a_pipeline_that_breaks_a_rule_is_told_stage_and_rule(stages, words):
    with pytest.raises(ValueError) as caught:
        check(stages)
    assert words in str(caught.value)
    with pytest.raises(ValueError, match="stage"):
        next(archon(P, 4, rng(), stages))


def test_a_recipe_writes_a_pipeline():
    stages = [["generator", {"generator": {"n": 2, "role": "judge"}}], {"ranker": {"k": 1, "verify": "oracle"}}]
    (spec,) = recipe(archon={"stages": stages}).strategies
    (drawing, (ranker,)) = bind(spec, {}).keywords["stages"]
    assert drawing == (Generator(), Generator(2, role="judge")) and ranker.verify.func is oracle


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["generator", "critic"], "archon: stage 2 (critic): no ranker or fuser"),
        (["generator", {"fuser": {"m": 1}}], "archon: stage 2 (fuser): Fuser has no option 'm'; it has n, critiques"),
        (["generator", {"fuser": {"n": 0}}], "archon: stage 2 (fuser): n must be at least 1, not 0"),
        (["generator", "fusor"], "archon: stage 2: no component 'fusor'; there are generator, critic"),
        (["generator", {"ranker": {"k": 1, "verify": "oracel"}}], "archon: stage 2 (ranker): no verifier 'oracel'"),
        (["generator", {"fuser": {"prompt": "{problem}"}}], "archon: stage 2 (fuser): a prompt has no place"),
        ("generator", "archon: stages must be a list"),
    ],
)
def test_a_recipe_with_a_wrong_pipeline_is_refused_when_it_is_read(stages, words):
    with pytest.raises(RecipeError) as caught:
        recipe(archon={"stages": stages})
    assert words in str(caught.value)


def test_what_the_stages_ask_of_engines_is_found_out_before_any_work():
    engine = ToyEngine(answers({"1": 1.0}))
    for said, words in (
        ({"fuser": {"role": "poet"}}, "x: a stage or draw asks the role 'poet', but the recipe's engines are: policy"),
        ({"ranker": {"k": 1, "verify": "reward_model"}}, "x: its verifier asks the role 'verifier'"),
    ):
        (spec,) = recipe(archon={"stages": ["generator", said]}).strategies
        with pytest.raises(RecipeError) as caught:
            refuse_beyond_means({"x": bind(spec, {})}, {"policy": engine})
        assert words in str(caught.value)


# --- Archon's budget


@pytest.mark.parametrize(
    ("stages", "budget", "n", "spent"),
    [
        (GOOD["example"], 16, 4, 7),
        (GOOD["example"], 6, 3, 6),
        (GOOD["example"], 4, 4, 4),  # does not pay for all with two candidates: draws only
        (GOOD["published"], 8, 6, 8),
        ((Generator(), Critic(tries=3), Fuser(n=2), Fuser()), 10, 4, 10),
        ((Generator(), Verification(), Fuser()), 10, 3, 10),
        ((Generator(), Verification(role="judge"), Fuser(role="judge")), 10, 10, 10),
        ((Generator(), Ranker(k=1, verify=oracle)), 10, 10, 10),
        (((Generator(), Generator()), Fuser()), 8, 3, 7),
        (((Generator(role="judge"), Generator()), Fuser()), 8, 7, 8),
        (GOOD["published"], 1, 1, 1),
    ],
)
def test_generators_draw_what_the_other_stages_leave(stages, budget, n, spent):
    layers = paid(layered(stages), budget)
    assert [stage.n for stage in layers[0]] == [n] * len(layers[0]) and cost(layers, n) == spent <= budget


@pytest.mark.parametrize("budget", range(1, 12))
@pytest.mark.parametrize("name", GOOD)
def test_what_is_asked_keeps_within_the_budget(name, budget):
    asked, result = staged(GOOD[name], lambda ask: [f"[1] [Incorrect] {i}=1" for i in range(ask.n)], budget)
    paid_for = sum(ask.n for ask in asked if ask.role == "policy")
    assert paid_for <= max(budget, 2 if name == "side by side" else 1) and result.response.finished
    assert budget < 9 or name == "one draw" or len(asked) > 1


# --- Archon's laws


def test_with_an_oracle_as_ranker_a_pipeline_is_pass_at_n():
    strategy = functools.partial(archon, stages=(Generator(5), Ranker(k=1, verify=oracle)))
    for p in (0.1, 0.4):
        assert within(right(repeated(strategy, 9, answers({"1": p, "2": 1 - p}))), 1 - (1 - p) ** 5, RUNS)


@pytest.mark.parametrize(("a", "b", "p"), [(0.9, 0.7, 0.3), (0.6, 0.8, 0.5)])
def test_the_first_to_pass_a_noisy_verifier_is_right_by_bayes(a, b, p):
    """Sensitivity a, specificity b: a·p / (a·p + (1 − b)(1 − p)) of those that pass are right."""
    noise = np.random.default_rng(7)

    def noisy(problem, responses):
        yield from ()
        return [float(noise.random() < (a if ended(r.text) == "1" else 1 - b)) for r in responses]

    strategy = functools.partial(archon, stages=(Generator(5), Verification(verify=noisy, first=1)))
    results = repeated(strategy, 5, answers({"1": p, "2": 1 - p}))
    passed = [result for result in results if sum(result.answer.weights) == 1]
    assert within(len(passed), 1 - (1 - a * p - (1 - b) * (1 - p)) ** 5, RUNS)
    assert within(right(passed), a * p / (a * p + (1 - b) * (1 - p)), len(passed))


def test_a_fuser_of_the_majority_has_the_law_of_the_plurality():
    """The fused answer is what most of the three listed candidates say."""

    def law(prompt, text):
        if text:
            return {"": 1.0}
        if "better than each" not in prompt:
            return {"=1": 0.4, "=2": 0.6}
        ones, twos = prompt.count("=1"), prompt.count("=2")
        assert ones + twos == 3
        return {"=1": 1.0} if ones > twos else {"=2": 1.0}

    results = repeated(functools.partial(archon, stages=(Generator(), Fuser())), 4, law)
    assert within(right(results), 0.4**3 + 3 * 0.4**2 * 0.6, RUNS)
    assert all(result.cost.generated == 8 and result.cost.judged == 0 for result in results)


def test_another_role_is_no_part_of_the_budget():
    results = repeated(functools.partial(archon, stages=(Generator(), Fuser(role="judge"))), 4, answers({"1": 1.0}), 3)
    assert all((result.cost.generated, result.cost.judged) == (8, 2) for result in results)
