"""The prefix tree against a plain dictionary of every chain it was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.serving.prefix import Node, PrefixTree

CHAIN = st.lists(st.integers(0, 2), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.sampled_from(("use", "evict")), CHAIN, st.integers(1, 4)), max_size=40))
def test_it_finds_what_was_added_until_that_is_evicted(moves: list[tuple[str, list[int], int]]) -> None:
    tree = PrefixTree()
    known: set[tuple[int, ...]] = set()
    used: list[tuple[int, ...]] = []
    for move, chain, count in moves:
        if move == "use":
            held = tree.match(chain, len(chain))
            assert len(held) == max(n for n in range(len(chain) + 1) if n == 0 or tuple(chain[:n]) in known)
            tree.pin(held)
            for at in range(len(held), len(chain)):
                node = tree.add(held[-1] if held else None, chain[at], tuple(chain[: at + 1]))
                assert node is not None
                held.append(node)
                known.add(tuple(chain[: at + 1]))
            assert tree.evict(0) == 0 and tree.pinned == len(held)
            tree.unpin(held)
            for n in range(len(chain), 0, -1):
                prefix = tuple(chain[:n])
                if prefix in used:
                    used.remove(prefix)
                used.append(prefix)
        else:
            before = len(known)
            gone = [node.block for node in _nodes(tree)]
            assert tree.evict(count) == min(count, before)
            left = {node.block for node in _nodes(tree)}
            known = {chain for chain in known if chain in left}
            assert all(chain[:-1] in left for chain in left if len(chain) > 1)  # no page without those before it
            assert left <= set(gone)
        assert tree.pages == len(known) == tree.evictable


def _nodes(tree: PrefixTree) -> list[Node]:
    found, level = [], list(tree._roots.values())
    while level:
        node = level.pop()
        found.append(node)
        level.extend(node.children.values())
    return found


def test_pinned_pages_stay_and_the_least_recent_go_first() -> None:
    tree = PrefixTree()
    chains = []
    for key in range(3):
        node = tree.add(None, key, key)
        assert node is not None
        chains.append([node])
    tree.unpin(chains[1])
    tree.unpin(chains[0])
    assert tree.evict(1) == 1 and not tree.match([1], 1) and tree.match([0], 1)
    assert tree.evict(5) == 1 and tree.match([2], 1) == chains[2]


def test_two_that_compute_the_same_page_keep_their_own() -> None:
    tree = PrefixTree()
    assert tree.add(None, "a", 1) is not None
    assert tree.add(None, "a", 2) is None and tree.pages == 1
