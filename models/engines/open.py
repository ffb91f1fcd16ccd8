"""From a checkpoint's name to an engine, with what its manifest says about asking it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from extratime.models import manifest
from extratime.models.engines.replay import ReplayEngine
from extratime.models.request import Engine, Profile, Prompt, Shape

Render = Callable[[Sequence[Mapping[str, str]], bool], str]
_TOKENIZER, _JUDGES = "tokenizer", "tokenizer-judge"


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine, ready to be asked.

    Attributes:
        engine: the engine.
        tokenizer: of the model; None behind a server where nobody named it.
        known: by verifier, options that the checkpoints' manifests tell together, such as an adapter and its question.
        verifier: the engine of the role "verifier", where there is one.
        judge: what answers in the role "judge", where that is not the policy.
    """

    engine: Engine
    tokenizer: Any
    known: Mapping[str, Sequence[Mapping[str, Any]]]
    verifier: Engine | None = None
    judge: Opened | None = None

    @property
    def roles(self) -> dict[str, Engine]:
        """Engines by the role that requests name."""
        more = {"verifier": self.verifier} if self.verifier else {}
        return {"policy": self.engine, **more, "judge": (self.judge or self).engine}

    @property
    def render(self) -> Render | None:
        """Chat to text by the model's own template, or None if it has none."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            return None

        def render(chat: Sequence[Mapping[str, str]], reply: bool) -> str:
            options = {"add_generation_prompt": reply, "continue_final_message": not reply}
            return str(self.tokenizer.apply_chat_template(list(chat), tokenize=False, **options))

        return render

    def turn(self, text: str) -> Prompt:
        """What a user says, as the model reads it; plain text where it has no chat template."""
        return self.engine.encode(self.render([{"role": "user", "content": text}], True) if self.render else text)

    def save(self, folder: Path) -> None:
        """Leave what a replay needs: tokenizer, name, profile and adapters."""
        for opened, name in ((self, _TOKENIZER), (self.judge, _JUDGES)):
            if opened and opened.tokenizer is not None and not (folder / name).is_dir():
                opened.tokenizer.save_pretrained(folder / name)
        said = {role: _words(engine) for role, engine in self.roles.items()}
        manifest.write_json(folder / "engine.json", {"known": self.known, "roles": said})


def _words(engine: Engine) -> dict[str, Any]:
    return {"fingerprint": engine.fingerprint, "profile": asdict(engine.profile), "adapters": dict(engine.adapters)}


def open_recipe(recipe: Any) -> Opened:
    """What a recipe names: its policy, and its verifier and judge where it has them."""
    # The policy's engine shares out what memory is left, so it comes last.
    verifier = _verifier(recipe.verifier) if recipe.verifier else None
    judge = open_engine(recipe.judge.model, {}, recipe.judge) if recipe.judge else None
    policy = open_engine(recipe.model, recipe.adapters, recipe.engine)
    told = {**policy.known, "generative": judge.known["generative"]} if judge else policy.known
    return replace(policy, known=told, verifier=verifier, judge=judge)


def _verifier(spec: Any) -> Engine:
    from extratime.models.engines.reward import RewardEngine
    from extratime.models.reward import load_reward

    if spec.url:
        return _served_verifier(spec)
    device = spec.device or _device()
    return RewardEngine(load_reward(spec.model, spec.dtype, device, spec.separator, spec.convention))


def _served_verifier(spec: Any) -> Engine:
    from extratime.models.engines.openai import Endpoint
    from extratime.models.engines.pooling import PoolingEngine
    from extratime.models.reward import served_reward

    where = spec.tokenizer or spec.model
    how, context = served_reward(where, _tokenizer(where), spec.separator, spec.convention)
    return PoolingEngine(Endpoint(spec.model, "vllm", spec.url), how, context)


def open_engine(model: str, adapters: Mapping[str, str], spec: Any) -> Opened:
    """Load a checkpoint, or connect to the server that has it.

    A folder that a recipe wrote needs nothing else: its manifest names the base model, and its adapter goes by the
    name of the recipe.

    Args:
        model: hub id, folder, adapter folder, "embedded"; for a server the name under which it serves the model.
        adapters: folders of further adapters by name.
        spec: kind, dtype, device, slots; for a server its kind, url, timeout and the tokenizer.
    """
    if spec.kind == "openai":
        return _connect(model, adapters, spec)
    base, named, known = _resolve(model, dict(adapters))
    _refuse_other_base(base, named | _beside(model))
    from extratime.models.engines.diffusion import DiffusionEngine
    from extratime.models.engines.early_exit import EarlyExitEngine
    from extratime.models.engines.hf import HFEngine
    from extratime.models.load import load, locate
    from extratime.models.masked import head_of

    masked = spec.kind == "diffusion"
    head = {"head": head_of(locate(base))} if masked else {}
    loaded = load(base, dtype=spec.dtype, adapters=named, device=spec.device or _device(), **head)
    loaded = _controlled(_cooled(loaded, Path(model)), Path(model), spec)
    kind: Any = DiffusionEngine if masked else EarlyExitEngine if loaded.controller else HFEngine
    engine = kind(loaded, **({"slots": spec.slots} if spec.slots else {}))
    told = {"self_eval": _asked(loaded.tokenizer, known), "generative": _judging(loaded.tokenizer, model)}
    return Opened(engine, loaded.tokenizer, told)


def _resolve(model: str, named: dict[str, str]) -> tuple[str, dict[str, str], list[tuple[str | None, Any]]]:
    """Base model, adapters, and (adapter, question) of each checkpoint that was taught to evaluate itself."""
    base = model
    asked: list[tuple[str | None, Any]] = []
    if said := manifest.found(model):
        if said.kind in ("tempnet", "early_exit"):
            base = said.base
        elif said.kind != "full":
            base, named = said.base, {said.recipe: model, **named}
        else:
            asked.append((None, said.self_eval))
    for name, folder in named.items():
        if said := manifest.found(folder):
            asked.append((name, said.self_eval))
    return base, named, [(name, ask) for name, ask in asked if ask]


def _beside(model: str) -> dict[str, str]:
    """The folder of a controller, which is trained beside a model as adapters are."""
    said = manifest.found(model)
    return {said.recipe: model} if said and said.kind == "early_exit" else {}


def _refuse_other_base(base: str, named: Mapping[str, str]) -> None:
    """Refuse adapters that were trained beside other weights than the base has now.

    Raises:
        ValueError: one was; the message names it.
    """
    told = {
        name: said.base_sha256
        for name, folder in named.items()
        if (said := manifest.found(folder)) and said.base_sha256
    }
    now = manifest.hash_weights(Path(base)) if told and Path(base).is_dir() else None
    for name, then in told.items():
        if now and then != now:
            raise ValueError(
                f"adapter {name!r} in {named[name]} was trained beside other weights than {base} holds now: "
                "name the model it was trained on, or train it again"
            )


def _cooled(loaded: Any, folder: Path) -> Any:
    """What is loaded, with the network of temperatures that the folder holds, if it holds one."""
    said = manifest.found(folder)
    if said is None or said.temperatures is None:
        return loaded
    from extratime.models import tempnet
    from extratime.models.load import fingerprint

    net = tempnet.load(said.temperatures, folder).to(loaded.model.device)
    mark = fingerprint(folder, next(net.parameters()).dtype, f"{loaded.fingerprint} {said.temperatures}")
    return replace(loaded, tempnet=net, fingerprint=mark)


def _controlled(loaded: Any, folder: Path, spec: Any) -> Any:
    """What is loaded, with the controller of early exit that the folder holds, if it holds one."""
    said = manifest.found(folder)
    told = {name: value for name in ("exit", "stop") if (value := getattr(spec, name)) is not None}
    if said is None or said.early_exit is None:
        if spec.kind == "early_exit" or told:
            raise ValueError(
                f"{folder} holds no controller of early exit: train one (`extratime train early_exit`), or leave out "
                "engine.exit and engine.stop"
            )
        return loaded
    from extratime.models import early_exit
    from extratime.models.load import fingerprint

    how = replace(said.early_exit, **told)
    controller = early_exit.load(how, folder).to(loaded.model.device)
    mark = fingerprint(folder, next(controller.parameters()).dtype, f"{loaded.fingerprint} {how}")
    return replace(loaded, controller=controller, fingerprint=mark)


def _asked(tokenizer: Any, known: Sequence[tuple[str | None, Any]]) -> list[dict[str, Any]]:
    from extratime.models.self_eval import question_suffix

    return [
        {"adapter": adapter, "question": question_suffix(tokenizer, ask), "targets": (ask.good, ask.bad)}
        for adapter, ask in known
    ]


def _judging(tokenizer: Any, folder: str) -> list[dict[str, Any]]:
    """What the manifest in a folder tells its judge, or what any model is told that was never trained to judge."""
    from extratime.models.judge import Judge, rendered

    said = manifest.found(folder)
    judge = said.judge if said and said.judge else Judge(chat=bool(tokenizer and tokenizer.chat_template))
    return [{"judge": asdict(rendered(tokenizer, judge)), "form": judge.form}]


def _connect(model: str, adapters: Mapping[str, str], spec: Any) -> Opened:
    from extratime.models.engines.openai import Endpoint, OpenAIEngine

    if adapters:
        raise ValueError(f"a server switches no adapters: leave out {', '.join(adapters)}, or run the hf engine")
    shape = _shape(spec.tokenizer) if spec.tokenizer else None
    endpoint = Endpoint(model, spec.server, spec.url, concurrency=spec.slots, timeout=spec.timeout, shape=shape)
    if spec.tokenizer is None:
        return Opened(OpenAIEngine(endpoint), None, {"generative": _judging(None, model)})
    tokenizer = _tokenizer(spec.tokenizer)
    _, named, known = _resolve(spec.tokenizer, {})
    asked = _asked(tokenizer, known if not named else ())
    told = {"self_eval": asked, "generative": _judging(tokenizer, spec.tokenizer)}
    return Opened(OpenAIEngine(endpoint, tokenizer), tokenizer, told)


def _tokenizer(where: str) -> Any:
    """The tokenizer of a folder, a hub id or the embedded model; no weights are asked for."""
    from transformers import AutoTokenizer

    from extratime.models.load import EMBEDDED, embedded_folder, load_tokenizer

    folder = embedded_folder() if where == EMBEDDED else Path(where).expanduser()
    if folder.is_dir():
        return load_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer at {where}: set engine.tokenizer to a folder, a hub id or 'embedded'"
        ) from error


def _shape(where: str) -> Shape | None:
    """Sizes of the model whose configuration lies beside its tokenizer, or None where none does."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from extratime.models.engines.sizes import shape_of
    from extratime.models.load import EMBEDDED, embedded_folder

    try:
        config = AutoConfig.from_pretrained(embedded_folder() if where == EMBEDDED else where, trust_remote_code=False)
        build: Any = AutoModelForCausalLM
        with torch.device("meta"):
            return shape_of(build.from_config(config), config)
    except (OSError, ValueError, AttributeError):  # no configuration, or not one of a model with attention heads
        return None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def open_replay(folder: Path) -> Opened:
    """The engines of a finished run, without their models.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    file = folder / "engine.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no run to replay: engine.json is missing")
    said = json.loads(file.read_text(encoding="utf-8"))
    roles = said["roles"]
    policy = _replayed(folder / _TOKENIZER, roles["policy"], said["known"])
    verifier = _replayed(folder / _TOKENIZER, roles["verifier"]).engine if "verifier" in roles else None
    own = roles["judge"]["fingerprint"] != roles["policy"]["fingerprint"]
    judge = _replayed(folder / _JUDGES, roles["judge"]) if own else None
    return replace(policy, verifier=verifier, judge=judge)


def _replayed(tokens: Path, said: dict[str, Any], known: Mapping[str, Any] | None = None) -> Opened:
    """One engine of a finished run, with the tokenizer that it kept, if it kept one."""
    shape = said["profile"].pop("shape")
    profile = Profile(**said["profile"], shape=Shape(**shape) if shape else None)
    tokenizer: Any = None
    encode: Callable[[str], Prompt] = _unread if profile.token_ids else Prompt
    if tokens.is_dir():
        from extratime.models.engines.text import encoder
        from extratime.models.load import load_tokenizer

        tokenizer = load_tokenizer(tokens)
        encode = encoder(tokenizer)
    return Opened(ReplayEngine(said["fingerprint"], profile, said["adapters"], encode), tokenizer, known or {})


def _unread(text: str) -> Prompt:
    raise FileNotFoundError("a server read this run's prompts and no tokenizer was kept: set engine.tokenizer")
