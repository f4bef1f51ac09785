"""Keys and values of prompts' beginnings, kept for prompts that begin alike.

A tree of blocks of 128 positions, as caches have them. A node has the tokens of one block, and a cache of all positions
up to its end, whose blocks it shares with its parents: it takes the memory of one block. The last block of a prompt may
be shorter. A sequence gets a fork, cut where its tokens begin to differ; as a token's keys and values depend on it and
on what stands before it alone, never on how these were cut into steps, they are the bits that reading would give.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

BLOCK = 128  # positions of a cache's block: csrc/llorch.h


def blocks_of(positions: int) -> int:
    return -(-positions // BLOCK)


class Node:
    """A block's tokens. blocks : of memory that nothing but it and its children keep."""

    __slots__ = ("blocks", "cache", "children", "ids", "parent")

    def __init__(self, ids: tuple[int, ...], parent: Node | None, cache: Any, blocks: int) -> None:
        self.ids, self.parent, self.cache, self.blocks = ids, parent, cache, blocks
        self.children: dict[int, list[Node]] = {}  # by their first token


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


class Prefixes:
    """The tree. It has no bound of its own: the scheduler says how many blocks a new node may take."""

    def __init__(self) -> None:
        self.blocks = 0
        self._roots: dict[int, list[Node]] = {}
        # The least recently used first. Who touches a node touches its parents after it, so the first has no children.
        self._order: OrderedDict[Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def find(self, ids: Sequence[int]) -> tuple[Node | None, int, set[Node]]:
        """The node that holds the most of how ids begin, how many tokens that are, and the nodes on the way whose whole
        blocks are among them. They become the most recently used."""
        best, count, way = None, 0, set[Node]()
        children = self._roots
        while rest := ids[count : count + BLOCK]:
            same, node = max(
                ((_same(child.ids, rest), child) for child in children.get(rest[0], ())),
                key=lambda found: found[0],
                default=(0, None),
            )
            if node is None:
                break
            best, count = node, count + same
            if same < BLOCK:
                break
            way.add(node)
            children = node.children
        self._touch(best)
        return best, count, way

    def keep(self, ids: Sequence[int], cache: Any, way: set[Node], room: int) -> None:
        """Keeps what a cache holds, the keys and values of ids, as far as there is room.

        way : the nodes whose blocks the cache shares; new ones are added. room : blocks that the tree may have in all;
        what was used least recently makes room.
        """
        parent: Node | None = None
        used = set[Node]()
        for first in range(0, len(ids), BLOCK):
            part = tuple(ids[first : first + BLOCK])
            children = self._roots if parent is None else parent.children
            alike = children.get(part[0], [])
            node = next((child for child in alike if child.ids[: len(part)] == part), None)
            if node is None:
                # Beside a block that another sequence has made, this one's own all count.
                cost = 1 if parent is None or parent in way else first // BLOCK + 1
                shorter = [child for child in alike if child.ids == part[: len(child.ids)]]
                for child in shorter:
                    self._drop(child)
                if not self._make_room(room - cost, used):
                    return
                held = cache.fork()
                held.truncate(first + len(part))
                node = Node(part, parent, held, cost)
                self.blocks += cost
                children.setdefault(part[0], []).append(node)
                self._order[node] = None
                way.add(node)
            used.add(node)
            self._touch(node)
            parent = node

    def shrink(self, blocks: int) -> None:
        """Forgets what was used least recently, until so many blocks are left at most."""
        self._make_room(blocks, frozenset())

    def _make_room(self, blocks: int, used: set[Node] | frozenset[Node]) -> bool:
        while self.blocks > blocks:
            node = next(iter(self._order), None)
            if node is None or node in used:
                return False
            self._drop(node)
        return blocks >= 0

    def _drop(self, node: Node) -> None:
        siblings = self._roots if node.parent is None else node.parent.children
        siblings[node.ids[0]].remove(node)
        if not siblings[node.ids[0]]:
            del siblings[node.ids[0]]
        del self._order[node]
        self.blocks -= node.blocks

    def _touch(self, node: Node | None) -> None:
        while node is not None:
            self._order.move_to_end(node)
            node = node.parent
