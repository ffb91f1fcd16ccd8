"""An evaluation recipe: one YAML file = checkpoint × tasks × strategies × budgets.

    model: runs/demo/self_eval          # hub id, folder, adapter folder, or "embedded"
    tasks: [sums_easy, sums_hard]
    budgets: [1, 2, 4, 8, 16]
    sampling: {temperature: 1.0}
    strategies:
      - greedy
      - self_consistency
      - best_of_n: {verify: self_eval}
      - beam_search: {verify: {reward_model: {aggregate: min}}, width: 4, label: beam, budgets: [4, 16]}
    output: runs/demo/report

An unknown key, strategy, verifier or option is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from extratime.evaluate.binding import Known, bound
from extratime.evaluate.named import RecipeError, listed, named
from extratime.models.request import Sampling
from extratime.models.unmasking import Unmasking


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What runs the model.

    Attributes:
        kind: "hf" runs it in this process, and so do "early_exit" if it is the folder of a controller (for which "hf"
            does the same) and "diffusion" if it is a masked-diffusion model; "openai" asks a server.
        dtype: of the weights; "auto" takes the checkpoint's own.
        device: where; None takes a GPU if there is one.
        slots: draws worked on at a time; None takes the engine's own number.
        server: for "openai": vllm, sglang, llama_cpp or transformers.
        url: for "openai".
        timeout: for "openai": seconds for one attempt.
        tokenizer: for "openai": folder or hub id of the model's tokenizer; it renders chats and reads prompts. None
            leaves the reading to the server, and then there are no chats.
        exit, stop: thresholds for a controller of early exit in place of its own; 1 turns either off.
    """

    kind: Literal["hf", "early_exit", "diffusion", "openai"] = "hf"
    dtype: str = "auto"
    device: str | None = None
    slots: int | None = None
    server: str = "vllm"
    url: str = "http://127.0.0.1:8000"
    timeout: float = 600.0
    tokenizer: str | None = None
    exit: float | None = None
    stop: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("hf", "early_exit", "diffusion", "openai"):
            raise ValueError(f"kind must be hf, early_exit, diffusion or openai, not {self.kind!r}")
        if self.kind in ("diffusion", "openai") and (self.exit, self.stop) != (None, None):
            raise ValueError(f"exit and stop are thresholds of a controller, of which {self.kind} knows none")


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """A reward model for the role "verifier".

    Attributes:
        model: hub id or folder of a sequence classifier with one output, of a token classifier that weighs steps, or
            of a published process reward model.
        dtype: of the weights; "auto" takes the checkpoint's own.
        device: where; None takes a GPU if there is one.
        separator: what ends a step, where neither the checkpoint nor its convention tells.
        convention: how a published model is asked (`extratime.models.conventions`), where its configuration does not
            tell.
        url: of a vLLM pooling server that has the model, under the name `model`; None runs it in this process.
        tokenizer: for a server: folder or hub id of the model's tokenizer and configuration; None takes `model`.
    """

    model: str
    dtype: str = "auto"
    device: str | None = None
    separator: str | None = None
    convention: str | None = None
    url: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ValueError("the separator must not be empty; leave it out where whole texts are weighed")
        if self.url and (self.device or self.dtype != "auto"):
            raise ValueError("dtype and device are the server's own; leave them out beside url")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec(EngineSpec):
    """A generative judge for the role "judge", run as `EngineSpec` says.

    Attributes:
        model: hub id, folder, "embedded", or a server's name for it.
    """

    model: str


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a task's responses are read, where it leaves a choice.

    Attributes:
        filter: the task's filter pipeline; None takes its first.
        metric: the task's metric; None takes its first.
        answer: what a response votes for: "task" takes the filter's extraction, "math" the value of the formula. None
            takes "task" where the task extracts an answer, else "math".
    """

    filter: str | None = None
    metric: str | None = None
    answer: Literal["task", "math"] | None = None


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """One strategy with its options.

    Attributes:
        name: file and function under `evaluate/strategies`.
        label: unique name in reports.
        options: keyword arguments; "verify" names a verifier, alone or with options; "strategies" lists strategies as
            a recipe does.
        budgets: instead of the recipe's.
    """

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    budgets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one evaluation does; see the module for an example.

    Attributes:
        model: hub id, folder, adapter folder or "embedded".
        tasks: lm-eval task names.
        strategies: what to run.
        output: run folder.
        budgets: full-length samples' worth of policy tokens.
        replicates: independent repetitions of each cell.
        sampling: the policy's law; with its schedule of unmasking where the engine is "diffusion".
        max_tokens: length of a full response; None takes the task's `max_gen_toks`, else 256.
        limit: documents per task.
        engine: what runs the model.
        verifier: the reward model that the verifier `reward_model` asks.
        judge: the model that the verifier `generative` asks; None asks the policy.
        adapters: folders of further adapters, by the name that verifiers use.
        chat: whether to render prompts with the chat template.
        system: system instruction.
        fewshot: examples; None takes the task's own number.
        fewshot_multiturn: whether examples are turns of the chat.
        data: folders with a task's documents, by task: one `<split>.jsonl` a split, in place of the hub.
        overrides: changes to a task's own YAML, by task; e.g. another split.
        scoring: how a task is read, by task.
        strip_thinking: whether `<think>` blocks are removed before extraction; they stay in the response and count.
    """

    model: str
    tasks: tuple[str, ...]
    strategies: tuple[StrategySpec, ...]
    output: Path
    budgets: tuple[int, ...] = (1, 2, 4, 8)
    replicates: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    limit: int | None = None
    engine: EngineSpec = field(default_factory=EngineSpec)
    verifier: VerifierSpec | None = None
    judge: JudgeSpec | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    chat: bool = True
    system: str | None = None
    fewshot: int | None = None
    fewshot_multiturn: bool = True
    data: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scoring: Mapping[str, Scoring] = field(default_factory=dict)
    strip_thinking: bool = False

    def __post_init__(self) -> None:
        if self.engine.kind == "openai" and self.chat and self.engine.tokenizer is None:
            raise RecipeError(
                "chat is on, but a server takes text and no chat template is known: set engine.tokenizer to "
                "the folder or hub id of the model's tokenizer, or chat: false"
            )

    def reading(self, task: str) -> Scoring:
        """How the recipe reads a task."""
        return self.scoring.get(task, Scoring())


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the grid: a strategy at one budget, in one replicate."""

    spec: StrategySpec
    budget: int
    replicate: int

    @property
    def key(self) -> str:
        """Its name in files and filters."""
        return f"{self.spec.label}@{self.budget}#{self.replicate}"


def columns(recipe: Recipe) -> list[Column]:
    """All columns of a recipe; greedy decoding has one budget and one replicate, since more change nothing."""
    found = []
    for spec in recipe.strategies:
        budgets = (1,) if spec.name == "greedy" else spec.budgets or recipe.budgets
        replicates = 1 if spec.name == "greedy" else recipe.replicates
        found += [Column(spec, budget, r) for budget in budgets for r in range(replicates)]
    return found


def read_recipe(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (dots reach into mappings, values are YAML).

    Raises:
        RecipeError: names the file and the key.
    """
    raw = read_raw(file, overrides)
    try:
        return parse(raw)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from error


def read_raw(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a recipe, overrides applied; see `read_recipe`."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of keys, not {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found:
        raise RecipeError(f"override {override!r} is not key=value")
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    raw[last] = yaml.safe_load(value)


def parse(raw: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values; see `read_recipe`."""
    values = dict(raw)
    for key in ("model", "tasks", "strategies", "output"):
        if key not in values:
            raise RecipeError(f"the key {key!r} is missing")
    values["tasks"] = tuple(listed("tasks", values["tasks"]))
    values["strategies"] = tuple(_strategy(entry) for entry in listed("strategies", values["strategies"]))
    values["budgets"] = _budgets(values.get("budgets", Recipe.__dataclass_fields__["budgets"].default), "budgets")
    values["output"] = Path(values["output"])
    values["engine"] = _build(EngineSpec, values.get("engine", {}), "engine")
    law = Unmasking if values["engine"].kind == "diffusion" else Sampling
    values["sampling"] = _build(law, values.get("sampling", {}), "sampling")
    for key, kind in (("verifier", VerifierSpec), ("judge", JudgeSpec)):
        if values.get(key) is not None:
            values[key] = _build(kind, values[key], key)
    scoring = values.get("scoring", {})
    values["scoring"] = {task: _build(Scoring, said, f"scoring.{task}") for task, said in scoring.items()}
    recipe: Recipe = _build(Recipe, values, "the recipe")
    _unique(recipe)
    return recipe


def _build(cls: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: expected a mapping, not {values!r}")
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise RecipeError(f"unknown key {key!r} in {where}; it knows {', '.join(known)}")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise RecipeError(f"the key {f.name!r} is missing in {where}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _budgets(value: Any, where: str) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
        raise RecipeError(f"{where} must be whole numbers of at least 1, not {value!r}")
    return numbers


def _strategy(entry: Any) -> StrategySpec:
    """`name`, or `{name: {option: value, label: …, budgets: […]}}`."""
    name, options = named(entry, "a strategy")
    label = options.pop("label", None) or _label(name, options.get("verify"))
    budgets = _budgets(options.pop("budgets"), f"{name}.budgets") if "budgets" in options else ()
    spec = StrategySpec(name, label, options, budgets)
    bind(spec, {})  # before any work: what can't be meant shows here
    return spec


def _label(name: str, verify: Any) -> str:
    if verify is None:
        return name
    return f"{name}({verify if isinstance(verify, str) else next(iter(verify))})"


def _unique(recipe: Recipe) -> None:
    labels = [spec.label for spec in recipe.strategies]
    for label in labels:
        if labels.count(label) > 1:
            raise RecipeError(f"two strategies are called {label!r}; give one of them another `label`")


def bind(spec: StrategySpec, known: Known) -> Callable[..., Any]:
    """The strategy with its options.

    Args:
        spec: what the recipe says.
        known: a verifier's defaults are its entry for the adapter that the recipe names, or else its first.

    Raises:
        RecipeError: there is no such strategy, verifier or option, or the options can't be meant.
    """
    try:
        return bound(spec.name, spec.options, known)
    except ValueError as error:
        raise RecipeError(f"{spec.label}: {error}") from error
