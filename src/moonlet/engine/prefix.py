"""Which snapshots are kept, and which one a new prompt goes on from: a tree of token runs.

A hybrid model can only go on where latents and KDA state are both known, so the unit is a snapshot of both (cache.py)
at one prefix, and a hit is the deepest one on the prompt's path. Snapshots are taken where they pay: at chunk ends, one
token before a prompt's end (the next run needs a token to feed, as logits are not kept), at the end of a turn, and at
the junction where a prompt leaves a path that is known (Kimi K3 report 5.4.1; SGLang and vLLM learnt to do the same).
The least recently used goes first; chunk ends are older than the ends that follow them, so these go before.
"""

from collections import OrderedDict

import numpy as np

from moonlet.engine.cache import Held, Pool

Tokens = np.ndarray  # int64 [n]


class Node:
    """A run of tokens behind `parent`; `held`: the snapshot after its last one."""

    def __init__(self, tokens: Tokens, parent: "Node | None") -> None:
        self.parent = parent
        self.hold(tokens)
        self.children: dict[int, Node] = {}
        self.held: Held | None = None

    def hold(self, tokens: Tokens) -> None:
        self.tokens, self.raw = tokens, tokens.tobytes()  # bytes compare much faster than short arrays


class PrefixCache:
    def __init__(self, pool: Pool) -> None:
        self.pool, self.root = pool, Node(np.empty(0, dtype=np.int64), None)
        self.recent: OrderedDict[Node, None] = OrderedDict()  # nodes with a snapshot, the least recently used first

    def walk(self, tokens: Tokens) -> tuple[Node, int, int]:
        """The last node of which the path of `tokens` holds anything, how many of its tokens, and the path's depth."""
        node, inside, depth = self.root, 0, 0
        raw, width = tokens.tobytes(), tokens.itemsize
        while depth < len(tokens) and inside == len(node.tokens):
            child = node.children.get(int(tokens[depth]))
            if child is None:
                break
            inside = len(child.tokens)
            if not raw.startswith(child.raw, depth * width):
                n = min(inside, len(tokens) - depth)
                differ = np.flatnonzero(child.tokens[:n] != tokens[depth : depth + n])
                inside = int(differ[0]) if len(differ) else n
            node, depth = child, depth + inside
        return node, inside, depth

    def find(self, tokens: Tokens) -> tuple[Held | None, int]:
        """The deepest snapshot of a prefix of `tokens`, and how far any known path goes with them."""
        node, inside, depth = self.walk(tokens)
        at: Node | None = node if inside == len(node.tokens) else node.parent
        while at is not None and at.held is None:
            at = at.parent
        if at is None:
            return None, depth
        self.recent.move_to_end(at)
        return at.held, depth

    def keep(self, tokens: Tokens, held: Held) -> None:
        """Snapshot a sequence that has taken up exactly `tokens`; others make room. Without room nothing is kept."""
        node, inside, depth = self.walk(tokens)
        if depth == len(tokens) and inside == len(node.tokens) and node.held is not None:
            return self.recent.move_to_end(node)
        while (saved := self.pool.snapshot(held)) is None:
            if not self.evict():
                return None
        node, inside, depth = self.walk(tokens)
        if inside < len(node.tokens):
            node = self.split(node, inside)
        if depth < len(tokens):
            node.children[int(tokens[depth])] = node = Node(tokens[depth:].copy(), node)
        node.held = saved
        self.recent[node] = None

    def split(self, node: Node, inside: int) -> Node:
        """A new node that ends after `inside` tokens of `node`, before it."""
        assert node.parent is not None
        upper = Node(node.tokens[:inside], node.parent)
        node.parent.children[int(node.tokens[0])] = upper
        node.hold(node.tokens[inside:])
        node.parent = upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def evict(self) -> bool:
        """Drop the snapshot that has not been used for longest; False when there is none."""
        if not self.recent:
            return False
        node, _ = self.recent.popitem(last=False)
        assert node.held is not None
        self.pool.release(node.held)
        node.held = None
        while node.held is None and node.parent is not None and len(node.children) < 2:
            parent = node.parent
            if node.children:  # the two runs become one
                (child,) = node.children.values()
                child.hold(np.concatenate([node.tokens, child.tokens]))
                child.parent = parent
                parent.children[int(child.tokens[0])] = child
                break
            del parent.children[int(node.tokens[0])]
            node = parent
        return True

    def clear(self) -> None:
        while self.evict():
            pass
