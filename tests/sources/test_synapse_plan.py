"""The plan of a download of synapses: what is open, what is next, who filters."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microns_xr.sources.synapse_plan import (
    ROW_LIMIT,
    SHORT_LIST,
    Piece,
    SynapsePlan,
    choose_strategy,
    open_pieces,
    split_ids,
    split_synapses,
)

SYNAPSES = range(10)  # ids of the synapses of every root


def covers(pieces, n_ids):
    """How often every (root, synapse) is in one of the pieces."""
    seen = np.zeros((n_ids, len(SYNAPSES)), dtype=int)
    for p in pieces:
        low = 0 if p.id_from is None else p.id_from
        high = len(SYNAPSES) if p.id_below is None else p.id_below
        seen[p.start : p.stop, low:high] += 1
    return seen


@st.composite
def partitions(draw):
    """A request cut into pieces at random, some roots into ranges of synapses."""
    n = draw(st.integers(1, 12))
    edges = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=6))})
    pieces = []
    for a, b in itertools.pairwise(edges):
        if b - a > 1 or draw(st.booleans()):
            pieces.append(Piece(a, b))
        else:
            cuts = draw(st.lists(st.integers(1, len(SYNAPSES) - 1), unique=True, min_size=1))
            ends = [None, *sorted(cuts), None]
            pieces += [Piece(a, b, low, high) for low, high in itertools.pairwise(ends)]
    return n, pieces


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(partitions(), st.data())
def test_what_is_open_is_what_is_not_done(partition, data):
    n, pieces = partition
    assert (covers(pieces, n) == 1).all()
    done = [p for p in pieces if data.draw(st.booleans())]
    rest = open_pieces(n, data.draw(st.permutations(done)))
    assert (covers([*done, *rest], n) == 1).all()
    assert all(len(p) == 1 for p in rest if p.is_range)
    assert rest == sorted(rest, key=lambda p: (p.start, -1 if p.id_from is None else p.id_from))
    assert open_pieces(n, pieces) == []


@given(st.integers(0, 50), st.integers(2, 40), st.integers(-1, 60))
def test_splitting_roots(start, n, parts):
    pieces = split_ids(Piece(start, start + n), parts)
    assert len(pieces) == min(max(parts, 2), n)
    assert [i for p in pieces for i in range(p.start, p.stop)] == list(range(start, start + n))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(
    st.lists(st.integers(2**53, 2**53 + 500), min_size=2, unique=True),
    st.integers(2, 9),
    st.randoms(),
)
def test_splitting_synapses_makes_progress_whatever_was_seen(ids, parts, random):
    """However a service chooses the rows of a cut answer, the pieces come to an end."""
    limit, missing, queue, turns = 2, set(ids), [Piece(3, 4)], 0
    while queue:
        turns += 1
        assert turns < 20 * len(ids)
        piece = queue.pop()
        low, high = piece.id_from or 0, piece.id_below or 2**60
        inside = [i for i in ids if low <= i < high]
        random.shuffle(inside)
        if turns % 2:
            inside.sort()  # the lowest, always
        if len(inside) <= limit:
            missing -= set(inside)
            continue
        split = split_synapses(piece, np.array(inside[:limit]), parts)
        assert [split[0].id_from, split[-1].id_below] == [piece.id_from, piece.id_below]
        assert all(a.id_below == b.id_from for a, b in itertools.pairwise(split))
        queue += split
    assert not missing


def test_splitting_a_single_synapse():
    whole = split_synapses(Piece(0, 1), np.array([7]), 2)
    assert [(p.id_from, p.id_below) for p in whole] == [(None, 7), (7, 8), (8, None)]
    assert split_synapses(Piece(0, 1, 7, 8), np.array([7]), 2) == []
    assert split_synapses(Piece(0, 1), np.array([], dtype=int), 2) == []


def test_batches_adapt_to_what_was_answered():
    plan = SynapsePlan(100_000, rows=640, ids=64)
    first = plan.next()
    assert len(first) == ROW_LIMIT // 2 // 10
    plan.finish(first, rows=5, answered=20 * len(first))  # denser than the sample said
    second = plan.next()
    assert (second.start, len(second)) == (first.stop, pytest.approx(ROW_LIMIT / 2 / 20, rel=0.02))
    plan.split(second, split_ids(second, 2), limit=1000)
    assert plan.limit == 1000
    third = plan.next()
    assert (third.start, len(third)) == (second.start, pytest.approx(500 / 20, abs=1))
    assert plan.next().start == third.stop  # the rest of what was split, before anything else
    assert (plan.rows_done, plan.ids_done) == (5, len(first))


def test_no_small_piece_is_left():
    plan = SynapsePlan(250, rows=64 * 1000, ids=64)
    assert [len(plan.next()), len(plan.next())] == [100, 100]
    assert len(SynapsePlan(120, rows=64 * 1000, ids=64).next()) == 120
    assert len(SynapsePlan(120, rows=64 * 1000, ids=64, batch=110).next()) == 100


def test_batches_have_an_upper_bound():
    assert len(SynapsePlan(10**6, rows=0, ids=64).next()) == 20_000
    assert len(SynapsePlan(10**6, rows=0, ids=64, batch=7).next()) == 7
    assert len(SynapsePlan(10**6, rows=10**9, ids=64).next()) == 1


def test_a_plan_that_is_done_hands_out_nothing():
    plan = SynapsePlan(5, rows=1, ids=1, done=[Piece(0, 5)])
    assert plan.next() is None
    assert plan.ids_done == 5


def test_a_root_is_done_when_all_its_ranges_are():
    plan = SynapsePlan(3, rows=1, ids=1, done=[Piece(0, 1), Piece(2, 3, None, 40)])
    assert plan.ids_done == 1
    pieces = [plan.next(), plan.next()]
    assert sorted(pieces) == [Piece(1, 2), Piece(2, 3, 40, None)]
    last = max(pieces)
    plan.finish(min(pieces), 0, 0)
    assert plan.ids_done == 2
    plan.split(last, split_synapses(last, np.arange(50, 60), 2))
    parts = [plan.next(), plan.next()]
    plan.finish(parts[0], 0, 0)
    assert plan.ids_done == 2
    plan.finish(parts[1], 0, 0)
    assert plan.ids_done == 3
    assert plan.next() is None


def test_what_is_split_comes_after_nothing_was_open():
    plan = SynapsePlan(2, rows=0, ids=1)
    only = plan.next()
    assert plan.next() is None
    plan.split(only, split_ids(only, 2))
    assert [plan.next(), plan.next(), plan.next()] == [Piece(0, 1), Piece(1, 2), None]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 99))
def test_every_root_is_handed_out_once(n, workers, seed):
    random = np.random.default_rng(seed)
    plan = SynapsePlan(n, rows=10, ids=10, batch=17)
    done, in_flight = [], []
    while True:
        while len(in_flight) < workers and (piece := plan.next()) is not None:
            in_flight.append(piece)
        if not in_flight:
            break
        piece = in_flight.pop(random.integers(len(in_flight)))
        if len(piece) > 1 and random.random() < 0.3:
            plan.split(piece, split_ids(piece, 3))
        else:
            done.append(piece)
            plan.finish(piece, 1, 1)
    assert (covers(done, n) == 1).all()
    assert plan.ids_done == n


# ------------------------------------------------------------------------------- the strategy


def counter(rows_of_pre, rows_of_post, kept=1.0):
    asked = []

    def count(filters):
        asked.append({side: len(ids) for side, ids in filters.items()})
        if len(filters) == 2:
            side = "pre" if len(filters["pre"]) <= len(filters["post"]) else "post"
            rate = rows_of_pre if side == "pre" else rows_of_post
            return int(rate * len(filters[side]) * kept)
        if not filters:
            return 77
        return (
            rows_of_pre * len(filters["pre"])
            if "pre" in filters
            else rows_of_post * len(filters["post"])
        )

    return count, asked


FEW, SOME, MANY = np.arange(1, 11), np.arange(1, 3001), np.arange(1, 94_001)


@pytest.mark.parametrize(("pre", "post", "rows", "side", "sent"), [
    (None, MANY, (20, 20), "post", False),
    (MANY, None, (20, 20), "pre", False),
    (MANY, MANY, (20, 20), "post", False),
    (MANY, MANY, (300, 2000), "pre", False),  # axons that are cut have fewer synapses
    (FEW, MANY, (20, 20), "pre", False),
    (MANY, FEW, (20, 20), "post", False),
    (None, None, (20, 20), None, False),
])  # fmt: skip
def test_the_side_with_fewer_rows_is_asked_by(pre, post, rows, side, sent):
    count, asked = counter(*rows)
    strategy = choose_strategy(pre, post, count)
    assert (strategy.side, strategy.send_other) == (side, sent)
    assert strategy.rows == (77 if side is None else rows[side == "post"] * strategy.ids)
    assert all(n <= 64 for sides in asked for n in sides.values())


def test_a_short_list_goes_along_where_it_spares_more_than_it_costs():
    assert len(SOME) <= SHORT_LIST < len(MANY)
    count, _ = counter(5000, 5000, kept=0.02)
    few = choose_strategy(SOME, FEW, count)  # 50,000 rows, of which 1,000 are wanted
    assert (few.side, few.send_other, few.rows) == ("post", True, 1000)
    assert [few.sends_other(limit) for limit in (200_000, 200, 20)] == [True, True, False]
    count, _ = counter(5000, 5000, kept=0.95)
    assert not choose_strategy(SOME, FEW, count).send_other  # nearly all are wanted
    count, _ = counter(20, 20, kept=0.02)
    assert not choose_strategy(SOME, FEW, count).send_other  # 200 rows are less than 3,000 ids
    count, _ = counter(5000, 3.3, kept=0.95)  # only with more rows than a query may have
    assert not choose_strategy(np.arange(1, 5001), MANY, count).send_other
    count, asked = counter(5000, 5000, kept=0.02)
    assert not choose_strategy(MANY, FEW, count).send_other  # too long, whatever it spares
    assert all(len(sides) == 1 for sides in asked)
