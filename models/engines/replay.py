"""An engine without a model: a run is answered from its streams alone.

It reads prompts as the engine did that drew the streams, and goes by its name. What the streams lack is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from extratime.models.request import Draw, Probe, Profile, Prompt, Reply, Score, Work


class ReplayEngine:
    """See `extratime.models.request.Engine`.

    Args:
        fingerprint: of the engine that drew the streams.
        profile: of that engine.
        adapters: of that engine.
        encode: text to prompt, as that engine reads it.
    """

    def __init__(
        self, fingerprint: str, profile: Profile, adapters: Mapping[str, str], encode: Callable[[str], Prompt]
    ) -> None:
        self.fingerprint = fingerprint
        self.profile = profile
        self.adapters = adapters
        self.encode = encode
        self.counts = Work()
        self.seconds: dict[str, float] = {}

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Refuse.

        Raises:
            LookupError: always: the streams do not hold the reply.
        """
        raise LookupError(
            f"the streams do not hold this {type(request).__name__}: run the recipe once without --replay, "
            "or bring the missing shards' streams into the run folder"
        )

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Nothing is ever under way."""
        return None

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Nothing is ever under way."""
        return []

    def close(self) -> None:
        """Nothing is held."""
