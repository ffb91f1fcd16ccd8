import random

import pytest
import torch

from extratime.models.engines.kv import Pool, PrefixStore, common


def segment(ids, begin, end):
    """Keys and values that tell which token stands where: one layer, one head, one number."""
    numbers = torch.tensor([hash(tuple(ids[: i + 1])) % 99_991 for i in range(begin, end)], dtype=torch.float64)
    return [(numbers[None, :, None].clone(), -numbers[None, :, None])]


def put(store, ids, adapter=None):
    asked = []

    def read(begin, end):
        asked.append((begin, end))
        return segment(ids, begin, end)

    store.insert(tuple(ids), read, adapter)
    return asked


def get(store, ids, adapter=None):
    """Keys of the longest beginning that is stored."""
    pieces = store.match(tuple(ids), adapter)
    return torch.cat([s[0][0][0, :n, 0] for s, n in pieces]) if pieces else torch.zeros(0, dtype=torch.float64)


def keys(ids, end):
    return segment(ids, 0, end)[0][0][0, :, 0]


def test_what_is_stored_is_found_and_read_once():
    store = PrefixStore(1 << 20)
    assert put(store, [1, 2, 3]) == [(0, 3)]
    assert put(store, [1, 2, 3]) == []
    assert put(store, [1, 2, 3, 4, 5]) == [(3, 5)]
    assert put(store, [1, 2, 9]) == [(2, 3)]
    assert torch.equal(get(store, [1, 2, 3, 4, 7]), keys([1, 2, 3, 4], 4))
    assert torch.equal(get(store, [1, 2, 9, 9]), keys([1, 2, 9], 3))
    assert len(get(store, [2])) == 0
    assert put(store, [1, 2]) == []
    assert put(store, []) == []


def test_adapters_do_not_share():
    store = PrefixStore(1 << 20)
    put(store, [1, 2, 3])
    assert len(get(store, [1, 2, 3], "a")) == 0
    assert put(store, [1, 2], "a") == [(0, 2)]
    assert len(get(store, [1, 2, 3], "a")) == 2


def test_bytes_are_counted_and_bounded():
    store = PrefixStore(5 * 16)
    put(store, [1, 2, 3])
    assert store.bytes == 3 * 16
    put(store, [1, 2, 4])
    assert store.bytes == 4 * 16
    put(store, [7, 8])
    assert store.bytes <= 5 * 16
    store.clear()
    assert store.bytes == 0
    assert len(get(store, [7])) == 0


def test_the_least_recently_used_end_goes_first():
    store = PrefixStore(4 * 16)
    put(store, [1, 2, 3])
    put(store, [1, 2, 4])
    get(store, [1, 2, 3])
    put(store, [9])
    assert [len(get(store, ids)) for ids in ([1, 2, 3], [1, 2, 4], [9])] == [3, 2, 1]


def test_a_path_larger_than_the_store_is_let_go():
    store = PrefixStore(2 * 16)
    put(store, [1, 2, 3])
    assert store.bytes == 0
    assert len(get(store, [1, 2, 3])) == 0


@pytest.mark.parametrize("limit", [3 * 16, 40 * 16, 10_000 * 16])
def test_the_store_behaves_like_a_set_of_beginnings(limit):
    rng, store, known = random.Random(limit), PrefixStore(limit), set()
    for _ in range(2000):
        ids = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        adapter = rng.choice([None, "a"])
        if rng.random() < 0.5:
            put(store, ids, adapter)
            known |= {(adapter, *ids[:n]) for n in range(1, len(ids) + 1)}
        found = get(store, ids, adapter)
        assert torch.equal(found, keys(ids, len(found)))
        assert (adapter, *ids[: len(found)]) in known or not len(found)
        if limit > 1000 * 16:
            assert len(found) == max((n for n in range(1, len(ids) + 1) if (adapter, *ids[:n]) in known), default=0)
        nodes = list(store._recent)
        assert store.bytes == sum(node.bytes for node in nodes) <= limit
        # Whatever is kept hangs on a root.
        assert all(node.parent.children[node.ids[0]] is node for node in nodes)


def write(pool, low, places, columns, start=None):
    """Write 10·row + place as keys; returns what attention would see."""
    rows, tokens = len(places), len(places[0])
    cache = pool.look(low, torch.tensor(places), columns, start)
    numbers = torch.tensor([[10.0 * (low + r) + places[r][t] for t in range(tokens)] for r in range(rows)])
    states = numbers[:, None, :, None].expand(rows, 2, tokens, 3)
    return cache.update(states, -states, 0)


def test_tokens_stand_in_the_column_of_their_position():
    pool = Pool(1)
    pool.reserve(3, 4)
    write(pool, 0, [[0, 1], [0, 1]], 2, start=0)
    write(pool, 1, [[2], [0]], 3)
    seen, values = write(pool, 0, [[2], [3], [1]], 4)
    assert seen.shape == (3, 2, 4, 3)
    assert seen[0, 0, :3, 0].tolist() == [0, 1, 2]
    assert seen[1, 1, :, 2].tolist() == [10, 11, 12, 13]
    assert seen[2, 0, :2, 0].tolist() == [20, 21]
    assert torch.equal(values, -seen)


def test_growing_keeps_what_is_there_and_hides_nothing_undefined():
    pool = Pool(1)
    pool.reserve(2, 2)
    write(pool, 0, [[0, 1], [0, 1]], 2, start=0)
    pool.reserve(40, 300)
    keys = pool.layers[0].keys
    assert keys.shape[0] >= 40 and keys.shape[2] >= 300
    assert keys[1, 0, :2, 0].tolist() == [10, 11]
    assert keys.isfinite().all()
    before = keys
    pool.reserve(40, 300)
    assert pool.layers[0].keys is before


def test_rows_move_and_are_copied_out_and_in():
    pool = Pool(1)
    pool.reserve(3, 4)
    write(pool, 0, [[0, 1], [0, 1], [0, 1]], 2, start=0)
    pool.kept[2] = (5, 6)
    pool.move(2, 0, 2)
    assert pool.layers[0].keys[0, 0, :2, 0].tolist() == [20, 21]
    assert pool.kept[0] == (5, 6)
    part = pool.read(0, 1, 2)
    assert pool.write(1, 0, [(part, 1), (part, 1)]) == 2
    assert pool.layers[0].keys[1, 0, :2, 0].tolist() == [21, 21]
    assert pool.layers[0].values[1, 0, :2, 0].tolist() == [-21, -21]


def test_a_pool_that_cannot_grow_stays_usable(monkeypatch):
    pool = Pool(2)
    pool.reserve(2, 2)
    for layer in pool.layers:
        layer.lazy_initialization(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    grow = type(pool.layers[1]).resize

    def no_room(self, rows, columns):
        if self is pool.layers[1]:
            raise torch.OutOfMemoryError("no room")
        grow(self, rows, columns)

    with monkeypatch.context() as patch:
        patch.setattr(type(pool.layers[1]), "resize", no_room)
        with pytest.raises(torch.OutOfMemoryError):
            pool.reserve(50, 500)
    pool.reserve(20, 200)
    assert all(layer.keys.shape[0] >= 20 and layer.keys.shape[2] >= 200 for layer in pool.layers)


def test_a_freed_pool_starts_anew():
    pool = Pool(1)
    pool.reserve(3, 4)
    write(pool, 0, [[0, 1]], 2, start=0)
    pool.free()
    assert pool.layers[0].keys.numel() == 0
    assert pool.kept == []
    pool.reserve(1, 1)
    assert write(pool, 0, [[0]], 1, start=0)[0].shape[2] == 1


def test_common_beginnings():
    assert [common(a, b) for a, b in (([1, 2], [1, 3]), ([1], [1, 2]), ([1, 2], [1]), ([], [1]), ([2], [1]))] == [
        1,
        1,
        1,
        0,
        0,
    ]
