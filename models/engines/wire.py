"""Requests to a server over HTTP: one session, named faults, patience.

Faults are of three kinds. `Retry`: may pass (no connection, no answer in time, 408, 425, 429, 5xx, no JSON);
`BrokenReply`: an answer that lacks what the protocol promises, also worth another attempt; `Refused`: will not pass.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import aiohttp
from yarl import URL

from extratime.models.engines.servers import BrokenReply, Json, Unanswerable
from extratime.models.paths import uniforms
from extratime.models.request import Work

T = TypeVar("T")

LONGEST_PAUSE = 30.0
"""Seconds; the exponential pauses between attempts grow no further (a server's own wish may be longer)."""

_CONNECT = 15.0
"""Seconds in which a connection must stand."""

_BEARER = "Bearer "

NOTHING = Work()
"""What attempts cost of which none failed; told apart by identity, since it is looked at once a request."""


class Refused(RuntimeError):
    """The server will not answer this request, however often it is sent; `work` is what it cost all the same."""

    def __init__(self, error: str, work: Work | None = None) -> None:
        super().__init__(error)
        self.work = work or Work()


class Retry(RuntimeError):
    """An attempt failed in a way that may pass; `after` is how many seconds the server asks to wait."""

    def __init__(self, error: str, after: float = 0.0) -> None:
        super().__init__(error)
        self.after = after


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to try.

    Attributes:
        timeout: seconds for one attempt, and the longest wait that a server may ask for.
        attempts: how often a request is sent at most.
        pause: seconds before the second attempt; doubles from there, with a jitter of ± 50 %.
    """

    timeout: float
    attempts: int
    pause: float


def open_session(connections: int, timeout: float, key: str) -> aiohttp.ClientSession:
    """A session for one server. Must be called in the event loop that will use it.

    The host name is looked up once, in an executor that nothing else here ever fills: requests that wait for a
    connection hold no thread. Idle connections are given up before uvicorn does so (after 5 s).
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=connections, ttl_dns_cache=None, resolver=aiohttp.ThreadedResolver(), keepalive_timeout=4.0
        ),
        headers={"Content-Type": "application/json"} | ({"Authorization": f"{_BEARER}{key}"} if key else {}),
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch(session: aiohttp.ClientSession, method: str, url: URL, body: Json | None = None) -> Json:
    """Send one request and parse its JSON object. What errors quote of a reply leaves the session's key out.

    Raises:
        Retry: it failed in a way that may pass.
        Refused: the server will not answer it.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        async with session.request(method, url, data=data) as response:
            content = await response.read()
    except aiohttp.ConnectionTimeoutError as fault:
        raise Retry(f"no connection within {_CONNECT:g} s") from fault
    except TimeoutError as fault:
        raise Retry(f"no answer within {session.timeout.total:g} s") from fault
    except (aiohttp.ClientError, OSError) as fault:
        raise Retry(f"{type(fault).__name__}: {fault}") from fault
    if response.status != 200:
        raise _fault(response.status, response.headers.get("Retry-After", ""), _shown(session, content))
    try:
        reply = json.loads(content)
    except ValueError as fault:
        raise Retry(f"the reply is not JSON: {_shown(session, content)}") from fault
    if not isinstance(reply, dict):
        raise Retry(f"the reply is no JSON object: {_shown(session, content)}")
    return reply


async def insist(ask: Callable[[], Awaitable[T]], patience: Patience, seed: int) -> tuple[T, Work]:
    """Ask until there is an answer.

    Args:
        ask: one attempt.
        patience: how often.
        seed: of the jitter.

    Returns:
        The answer, and what the attempts that failed cost.

    Raises:
        Refused: the server will not answer, or did not within the attempts.
    """
    spent, error = NOTHING, ""
    for attempt in range(patience.attempts):
        try:
            return await ask(), spent
        except Refused as fault:
            raise Refused(str(fault), spent) from fault
        except Unanswerable as fault:
            raise Refused(str(fault), spent + fault.work) from fault
        except BrokenReply as fault:
            error, wait, spent = str(fault), 0.0, spent + fault.work
        except Retry as fault:
            error, wait = str(fault), fault.after
        if wait > patience.timeout:
            raise Refused(f"{error}; it asks to wait {wait:.0f} s", spent)
        if attempt + 1 < patience.attempts:
            pause = min(patience.pause * 2**attempt, LONGEST_PAUSE)
            await asyncio.sleep(max(wait, pause * (0.5 + uniforms(seed, attempt, 1)[0])))
    raise Refused(f"{error} (sent {patience.attempts} times)", spent)


def _fault(status: int, retry_after: str, shown: str) -> Retry | Refused:
    error = f"HTTP {status}: {shown}"
    if status in (408, 425, 429) or status >= 500:
        return Retry(error, _wait(retry_after))
    return Refused(error)


def _wait(retry_after: str) -> float:
    """Seconds that a Retry-After header asks to wait: a number, or a date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _shown(session: aiohttp.ClientSession, content: bytes) -> str:
    text = content.decode(errors="replace").strip()
    if key := session.headers.get("Authorization", "").removeprefix(_BEARER):
        text = text.replace(key, "(key)")
    return text[:300] + "…" if len(text) > 300 else text or "(empty)"
