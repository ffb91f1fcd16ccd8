"""Where keys and values live: rows that are being decoded, and a store of prefixes that were read before.

`Pool` is a `DynamicCache` whose layers write in place into buffers of shape [rows, kv heads, columns, head size]. A
token sits in the column of its position, whatever its batch mates do, so a row enters, leaves or rolls back without
the others moving, nothing is concatenated from step to step, and what lies behind a row's length is overwritten.

`PrefixStore` is a radix tree over token ids: each node holds the keys and values of a run of tokens that all paths
below it share. The least recently used leaf goes first when the store outgrows its bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Segment: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values of a run of tokens: for each layer two tensors of shape [kv heads, tokens, head size]."""


@dataclass(slots=True)
class Window:
    """The part of the pool that the next forward pass works on.

    Attributes:
        low, high: its rows.
        columns: columns that attention sees, those about to be written included.
        start: the first column to write if all rows agree, else None.
        places: [rows, tokens] the column of each token about to be written.
        rows: [rows, 1] the numbers of the rows.
    """

    low: int = 0
    high: int = 0
    columns: int = 0
    start: int | None = 0
    places: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.long))


class SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of the pool."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: Window, sizes: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.sizes = sizes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers for rows and columns as reserved."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            x.new_zeros(self.sizes[0], x.shape[1], self.sizes[1], x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens where the window says; returns all that attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self.window
        rows = slice(at.low, at.high)
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            if at.start is None:
                buffer[at.rows, :, at.places] = new.transpose(1, 2)
            else:
                buffer[rows, :, at.start : at.start + new.shape[2]] = new
        return self.keys[rows, :, : at.columns], self.values[rows, :, : at.columns]

    def resize(self, used_rows: int, used_columns: int) -> None:
        """Move what is used into buffers of the reserved sizes."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            # Zeros, because attention multiplies what it masks by 0, and 0 × NaN is NaN.
            new = old.new_zeros(self.sizes[0], old.shape[1], self.sizes[1], old.shape[3])
            new[:used_rows, :, :used_columns] = old[:used_rows, :, :used_columns]
            setattr(self, name, new)

    def get_seq_length(self) -> int:
        """Tokens before those about to be written."""
        return self.window.start or 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that attention sees, and the first of them."""
        return self.window.columns, 0


class Pool:
    """Buffers for the rows being decoded and some scratch rows behind them.

    Attributes:
        kept: for each row the token ids whose keys and values its columns hold, as far as that is known.
    """

    def __init__(self, layers: int) -> None:
        self.window = Window()
        self.cache = DynamicCache()
        self.sizes = [0, 0]
        self.layers = [SlotLayer(self.window, self.sizes) for _ in range(layers)]
        self.cache.layers = list(self.layers)
        self.kept: list[tuple[int, ...]] = []

    @property
    def columns(self) -> int:
        """Columns of the buffers."""
        return self.sizes[1]

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for `rows` × `columns`; grows in steps, so that this is rarely felt."""
        old_rows, old_columns = self.sizes
        if rows <= old_rows and columns <= old_columns:
            return
        self.sizes[0] = max(old_rows, rows + rows // 4) if rows > old_rows else old_rows
        self.sizes[1] = 64 * -(-(columns + columns // 4) // 64) if columns > old_columns else old_columns
        try:
            for layer in self.layers:
                layer.resize(old_rows, old_columns)
        except Exception:
            self.sizes[:] = [old_rows, old_columns]  # the layers that grew already hold that and more
            raise
        self.kept += [()] * (self.sizes[0] - len(self.kept))

    def look(self, low: int, places: Tensor, columns: int, start: int | None) -> DynamicCache:
        """The cache, set to write tokens at `places` [rows, tokens] of the rows from `low` on."""
        at = self.window
        at.low, at.high, at.columns, at.start, at.places = low, low + len(places), columns, start, places
        at.rows = torch.arange(at.low, at.high, device=places.device)[:, None]
        return self.cache

    def read(self, row: int, begin: int, end: int) -> Segment:
        """A copy of some columns of a row."""
        return [(x.keys[row, :, begin:end].clone(), x.values[row, :, begin:end].clone()) for x in self.layers]

    def write(self, row: int, begin: int, pieces: Sequence[tuple[Segment, int]]) -> int:
        """Fill a row from column `begin` on with the first tokens of each piece; returns the column after them."""
        if pieces and not self.layers[0].is_initialized:
            for layer, (keys, values) in zip(self.layers, pieces[0][0], strict=True):
                layer.lazy_initialization(keys[None], values[None])
        for segment, length in pieces:
            for layer, (keys, values) in zip(self.layers, segment, strict=True):
                layer.keys[row, :, begin : begin + length] = keys[:, :length]
                layer.values[row, :, begin : begin + length] = values[:, :length]
            begin += length
        return begin

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy a row over another."""
        for layer in self.layers:
            layer.keys[target, :, :columns] = layer.keys[source, :, :columns]
            layer.values[target, :, :columns] = layer.values[source, :, :columns]
        self.kept[target] = self.kept[source]

    def free(self) -> None:
        """Drop all buffers."""
        for layer in self.layers:
            layer.keys = layer.values = torch.empty(0)
            layer.is_initialized = False
        self.sizes[:] = [0, 0]
        self.kept.clear()


@dataclass(slots=True, eq=False)
class _Node:
    ids: tuple[int, ...]
    segment: Segment
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for pair in self.segment for x in pair)


class PrefixStore:
    """Keys and values of token paths, shared where the paths agree.

    Args:
        limit: bytes it may hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._roots: dict[str | None, _Node] = {}
        # A parent is always touched after its children, so the oldest entry is a leaf.
        self._recent: OrderedDict[_Node, None] = OrderedDict()

    def match(self, ids: Sequence[int], adapter: str | None = None) -> list[tuple[Segment, int]]:
        """The longest stored beginning of `ids` under an adapter, as pieces and how many tokens of each to take."""
        return [(node.segment, length) for node, length in self._walk(ids, adapter)]

    def insert(self, ids: Sequence[int], read: Callable[[int, int], Segment], adapter: str | None = None) -> None:
        """Add a path.

        Args:
            ids: its tokens.
            read: gives keys and values of tokens begin … end-1; called for what is missing only.
            adapter: under which adapter they were computed.
        """
        path = self._walk(ids, adapter)
        known = sum(length for _, length in path)
        if known == len(ids):
            return
        parent = self._roots.setdefault(adapter, _Node((), [], None))
        if path:
            parent, length = path[-1]
            parent = parent if length == len(parent.ids) else self._split(parent, length)
        node = _Node(tuple(ids[known:]), read(known, len(ids)), parent)
        parent.children[node.ids[0]] = node
        self.bytes += node.bytes
        self._touch(node)
        self.shrink(self.limit)

    def shrink(self, size: int) -> None:
        """Forget what was used least recently, until no more than `size` bytes are left."""
        while self.bytes > size:
            self._drop(next(iter(self._recent)))

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self._recent.clear()
        self.bytes = 0

    def _walk(self, ids: Sequence[int], adapter: str | None) -> list[tuple[_Node, int]]:
        node, at, path = self._roots.get(adapter), 0, []
        while node is not None and at < len(ids) and (node := node.children.get(ids[at])) is not None:
            length = common(node.ids, ids[at : at + len(node.ids)])
            path.append((node, length))
            at += length
            if length < len(node.ids):
                break
        if path:
            self._touch(path[-1][0])
        return path

    def _touch(self, node: _Node | None) -> None:
        while node is not None and node.parent is not None:
            self._recent[node] = None
            self._recent.move_to_end(node)
            node = node.parent

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a node in two; returns the upper one."""
        assert node.parent is not None
        head, tail = ([(k[:, part].clone(), v[:, part].clone()) for k, v in node.segment] for part in _halves(at))
        upper = _Node(node.ids[:at], head, node.parent, {node.ids[at]: node})
        node.parent.children[upper.ids[0]] = upper
        node.segment, node.ids, node.parent = tail, node.ids[at:], upper
        return upper

    def _drop(self, node: _Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.ids[0]], self._recent[node]
        self.bytes -= node.bytes


def _halves(at: int) -> tuple[slice, slice]:
    return slice(at), slice(at, None)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two paths share at their beginning."""
    if tuple(a[: len(b)]) == tuple(b):
        return len(b)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
