"""When each replica next changes in a visible way, and which of them are due.

The moments are the leaves of a tree of minima: finding those that are due costs nothing where none
is, and a change costs a walk to the root, whatever the number of replicas.

Does not know: what happens at those moments.
"""

from ..compiled import compiled
from .layout import NONE
from .memory import event_tree_of, replicas_of


@compiled
def next_event_s(sim, r):
    """Return when a replica next changes, as it is planned."""
    tree = event_tree_of(sim)
    return tree[tree.size // 2 + r]


@compiled
def set_next_event(sim, r, at_s):
    """Note when a replica next changes; infinity if nothing is planned."""
    tree = event_tree_of(sim)
    node = tree.size // 2 + r
    tree[node] = at_s
    while node > 1:
        node >>= 1
        soonest_s = min(tree[2 * node], tree[2 * node + 1])
        if tree[node] == soonest_s:
            return
        tree[node] = soonest_s


@compiled
def wake(sim, r, now_s):
    """Drop a replica's plan, because something outside it changed, and make it due.

    Whatever changes a replica from outside (a request, a fault, the knobs) calls this.
    """
    replicas_of(sim)[r].plan_iterations = 0
    if next_event_s(sim, r) > now_s:
        set_next_event(sim, r, now_s)


@compiled
def next_due(sim, first, now_s):
    """Return the lowest replica from `first` on that changes by a moment, or `NONE`."""
    tree = event_tree_of(sim)
    num_leaves = tree.size // 2
    if tree[1] > now_s or first >= num_leaves:
        return NONE
    node = num_leaves + first
    while tree[node] > now_s:
        # On to the next subtree to the right: up from every right child, then one aside.
        while node & 1 != 0:
            node >>= 1
        if node == 0:
            return NONE
        node += 1
    while node < num_leaves:
        node *= 2
        if tree[node] > now_s:
            node += 1
    return node - num_leaves
