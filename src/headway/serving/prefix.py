"""The tree of pages that outlive their request: equal beginnings of prompts are computed once.

A page is known by the chain of keys that leads to it (the tokens of every page before it and its own), compared in
full: no two prompts meet by a collision of hashes. Pages in use are pinned; the others go by least recent use, leaves
first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any


class Node:
    """One page. `block` is what the engine keeps of it (its keys and values); the simulator keeps nothing."""

    __slots__ = ("block", "children", "key", "parent", "pins")

    def __init__(self, parent: Node | None, key: Hashable, block: Any) -> None:
        self.parent, self.key, self.block = parent, key, block
        self.children: dict[Hashable, Node] = {}
        self.pins = 0


class PrefixTree:
    """Pages by content. `version` changes whenever a page comes or goes."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, Node] = {}
        self._idle: OrderedDict[Node, None] = OrderedDict()  # unpinned leaves, least recently used first
        self.pages = 0
        self.pinned = 0
        self.version = 0

    @property
    def evictable(self) -> int:
        """Pages that `evict` can free: those nobody has pinned (a pinned page pins all before it)."""
        return self.pages - self.pinned

    def match(self, keys: Sequence[Hashable], most: int) -> list[Node]:
        """The longest chain of known pages that `keys` begins with, at most `most` pages."""
        found: list[Node] = []
        level = self._roots
        for key in keys[:most]:
            node = level.get(key)
            if node is None:
                break
            found.append(node)
            level = node.children
        return found

    def pin(self, nodes: Sequence[Node]) -> None:
        """Keep these pages (a chain from a root) until `unpin`."""
        for node in nodes:
            if not node.pins:
                self.pinned += 1
                self._idle.pop(node, None)
            node.pins += 1

    def unpin(self, nodes: Sequence[Node]) -> None:
        """Let go of pages pinned once; the last of them becomes the first to be evicted."""
        for node in reversed(nodes):
            node.pins -= 1
            if not node.pins:
                self.pinned -= 1
                if not node.children:
                    self._idle[node] = None

    def add(self, before: Node | None, key: Hashable, block: Any) -> Node | None:
        """A page after `before` (pinned; None: first), pinned once. None when the tree has that page already."""
        level = self._roots if before is None else before.children
        if key in level:
            return None
        node = Node(before, key, block)
        level[key] = node
        node.pins = 1
        self.pages += 1
        self.pinned += 1
        self.version += 1
        return node

    def evict(self, count: int) -> int:
        """Free up to `count` pages; the number freed."""
        freed = 0
        while freed < count and self._idle:
            node, _ = self._idle.popitem(last=False)
            level = self._roots if node.parent is None else node.parent.children
            del level[node.key]
            node.block = None
            if node.parent is not None and not node.parent.children and not node.parent.pins:
                self._idle[node.parent] = None
            freed += 1
        self.pages -= freed
        self.version += bool(freed)
        return freed
