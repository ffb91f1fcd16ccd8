"""A memory of concepts or lessons (ArcMemo, arXiv 2509.04439): what solved problems teach about others.

A concept is a short, parameterised piece of knowledge: a structure to see in a problem, or a routine to carry out. A
lesson, the open-ended form, is a situation and what to do in it; lessons are only ever added, equal ones too. The
memory is a YAML file that `extratime train concepts` writes from solved training problems and evaluations only read:

    sources: {sums_easy/3: 1f0c…}            # problems it was written from, and digests of their questions
    concepts:
      - {name: carry, kind: routine, description: …, cues: [...], implementation: [...], used_in: [sums_easy/3]}
    lessons:                                 # of the open-ended form, which has no concepts
      - {situation: …, suggestion: …, source: sums_easy/3}

Not kept of the paper: type definitions of their own, and summaries of long entries.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from extratime.models.paths import digest

KINDS = ("structure", "routine")


@dataclass(frozen=True, slots=True)
class Concept:
    """One entry.

    Attributes:
        name: unique in a memory.
        kind: "structure" or "routine".
        subtype: of a routine, such as "intermediate".
        description: one line.
        output: type of what a routine returns.
        parameters: name, typing and description of each; a typing may be a Callable, which takes another routine.
        cues: what to look for in a problem.
        implementation: how to carry it out.
        used_in: problems whose solutions use it.
    """

    name: str
    kind: str
    subtype: str | None = None
    description: str | None = None
    output: str | None = None
    parameters: tuple[Mapping[str, str], ...] = ()
    cues: tuple[str, ...] = ()
    implementation: tuple[str, ...] = ()
    used_in: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lesson:
    """What to do in a situation, and the problem whose solution says so."""

    situation: str
    suggestion: str
    source: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Concepts by name, or lessons, and the problems they come from: digests of their questions by id."""

    concepts: Mapping[str, Concept] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    lessons: tuple[Lesson, ...] = ()

    def knows(self, question: str) -> bool:
        """Whether it was written from this very problem."""
        return digest(question) in self.sources.values()


def read_memory(file: Path) -> Memory:
    """The memory in a file.

    Raises:
        ValueError: it is not there or can't be read; the message says what to do.
    """
    if not file.is_file():
        raise ValueError(f"no memory of concepts at {file}: write one with `extratime train concepts`")
    return _read(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> Memory:
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        concepts = [concept for entry in said["concepts"] if (concept := as_concept(entry, entry.get("used_in", ())))]
        lessons = tuple(Lesson(**entry) for entry in said.get("lessons", ()))
        return Memory({concept.name: concept for concept in concepts}, dict(said["sources"]), lessons)
    except (AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{file} is no memory of concepts ({error}); write one with `extratime train concepts`"
        ) from error


def dump(memory: Memory) -> str:
    """A memory as the text of its file."""
    told = [{k: v for k, v in asdict(concept).items() if v} for concept in memory.concepts.values()]
    plain = [{k: list(v) if isinstance(v, tuple) else v for k, v in entry.items()} for entry in told]
    said = {"sources": dict(memory.sources), "concepts": plain}
    said |= {"lessons": [asdict(lesson) for lesson in memory.lessons]} if memory.lessons else {}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


def entries(text: str, needs: Sequence[str] = ("name",)) -> tuple[list[Mapping[str, Any]], int]:
    """The entries of a YAML list that a model wrote, and how many could not be read. Broken ones spare the others.

    Args:
        text: of the reply.
        needs: keys that an entry has, each a text; a bare text is an entry's name.
    """
    fenced = re.findall(r"```(?:ya?ml)?\n(.*?)(?:```|\Z)", text, flags=re.DOTALL)
    items = re.split(r"^(?=- )", fenced[-1] if fenced else text, flags=re.MULTILINE)
    found, dropped = [], 0
    for item in items:
        if not item.startswith("- "):
            continue
        try:
            (entry,) = yaml.safe_load(item)
            entry = {"name": entry} if isinstance(entry, str) else entry
            if not all(isinstance(entry.get(key), str) for key in needs):
                raise TypeError(f"an entry has {needs}")
            found.append(entry)
        except (AttributeError, TypeError, ValueError, yaml.YAMLError):
            dropped += 1
    return found, dropped


def as_concept(entry: Mapping[str, Any], used_in: Iterable[str]) -> Concept | None:
    """An entry as a concept; None where its kind is neither of the two."""
    if entry.get("kind") not in KINDS:
        return None
    told = {name: str(entry[name]) for name in ("name", "kind", "subtype", "description", "output") if entry.get(name)}
    named = [p for p in _entries(entry.get("parameters")) if isinstance(p, Mapping) and "name" in p]
    return Concept(
        **told,
        parameters=tuple({str(key): str(value) for key, value in p.items()} for p in named),
        cues=_lines(entry.get("cues")),
        implementation=_lines(entry.get("implementation")),
        used_in=tuple(used_in),
    )


def merge(memory: Memory, found: Iterable[Mapping[str, Any]], source: str, question: str) -> tuple[Memory, int]:
    """The memory after what one solution taught, and how many new entries were skipped for their kind.

    An entry of a known name adds to it: the first description, output and subtype stay, parameters of one name are
    overwritten, cues, implementation and uses grow by what is new. A bare name only counts as a use.
    """
    concepts, skipped = dict(memory.concepts), 0
    for entry in found:
        old = concepts.get(entry["name"])
        new = as_concept({**entry, "kind": old.kind if old else entry.get("kind")}, (source,))
        if new is None:
            skipped += 1
        else:
            concepts[new.name] = _joined(old, new) if old else new
    return replace(memory, concepts=concepts, sources={**memory.sources, source: digest(question)}), skipped


def append(memory: Memory, found: Iterable[Mapping[str, Any]], source: str, question: str) -> Memory:
    """The memory after the lessons of one solution: all are added, whatever it holds."""
    new = (Lesson(entry["situation"].strip(), entry["suggestion"].strip(), source) for entry in found)
    sources = {**memory.sources, source: digest(question)}
    return replace(memory, lessons=(*memory.lessons, *new), sources=sources)


def _joined(old: Concept, new: Concept) -> Concept:
    parameters = {p["name"]: p for p in (*old.parameters, *new.parameters)}
    return replace(
        old,
        subtype=old.subtype or new.subtype,
        description=old.description or new.description,
        output=old.output or new.output,
        parameters=tuple(parameters.values()),
        cues=_union(old.cues, new.cues),
        implementation=_union(old.implementation, new.implementation),
        used_in=_union(old.used_in, new.used_in),
    )


def render(memory: Memory, names: Sequence[str] | None = None, usage: int = 0) -> str:
    """Concepts as a model reads them: structures, then routines.

    Args:
        memory: of concepts.
        names: those to tell in full, the others by name alone; None means all.
        usage: uses from which a concept is told in full; the published compression is 2.
    """
    parts = []
    for kind in KINDS:
        concepts = [concept for concept in memory.concepts.values() if concept.kind == kind]
        full = [c for c in concepts if (names is None or c.name in names) and len(c.used_in) >= usage]
        bare = [c.name for c in concepts if c not in full]
        parts += [f"{kind.capitalize()}s:"] if concepts else []
        parts += [_told(concept) for concept in full]
        parts += [f"- others: {', '.join(bare)}"] if bare else []
    return "\n".join(parts)


def matching(memory: Memory, text: str, k: int) -> list[str]:
    """Names of at most `k` concepts with a cue whose every word, or sign, occurs in a text; in the memory's order."""
    seen = set(_words(text))
    cued = [c.name for c in memory.concepts.values() if any(set(_words(cue)) <= seen for cue in c.cues if _words(cue))]
    return cued[:k]


def chosen(memory: Memory, reply: str) -> list[str]:
    """The concepts that a reply names, one a line of a YAML list, as far as the memory has them."""
    named = re.findall(r"^\s*-\s*[\"']?(.+?)[\"']?\s*$", reply, flags=re.MULTILINE)
    return list(dict.fromkeys(name for name in named if name in memory.concepts))


def _told(concept: Concept) -> str:
    lines = [f"- {concept.name}: {concept.description or ''}".rstrip(": ")]
    told = [
        f"{p['name']} ({p.get('typing', 'any')}): {p.get('description', '')}".rstrip(": ") for p in concept.parameters
    ]
    lines += [f"  parameters: {'; '.join(told)}"] if told else []
    lines += [f"  returns: {concept.output}"] if concept.output else []
    lines += [f"  look for: {'; '.join(concept.cues)}"] if concept.cues else []
    lines += [f"  how: {'; '.join(concept.implementation)}"] if concept.implementation else []
    return "\n".join(lines)


def _lines(said: Any) -> tuple[str, ...]:
    return _union((), [str(entry).strip() for entry in _entries(said)])


def _entries(said: Any) -> Sequence[Any]:
    return said if isinstance(said, list | tuple) else [said] if said else []


def _union(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*old, *new]))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())
