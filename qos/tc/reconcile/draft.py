# SPDX-License-Identifier: Apache-2.0
"""The steps for one device, in the order that loses least, and its tree as they leave it.

What is measured about losses: changes in place lose nothing, a replaced or deleted qdisc or class loses exactly what
waits in it. So: add, change, classify anew, drain what nothing is sent to any more, delete.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec

from qos.tc.kernel.qdisc_codec import canonical
from qos.tc.reconcile.filters import conflicting, pairs, removals
from qos.tc.reconcile.steps import NO_LOSS, Gso, Loss, Step, Subject, Verb
from qos.tc.state import Filter, Fq, FqCodel, Htb, HtbClass, LinkState, Qdisc, Tbf, TcClass
from qos.tc.tree import Tree, at_hook, kind_of, same_options

__all__ = ["Draft", "loss_of"]

_MAJOR = 0xFFFF0000
_FIRST_QUEUE = "waits in its class's first queue"


def loss_of(packets: int | None, what: str) -> Loss:
    """So many packets, of those that `what` names; None: nobody asked."""
    return NO_LOSS if packets == 0 else Loss(packets, f"what {what}")


class Draft:
    """The steps for one device, and its tree as they leave it."""

    def __init__(self, have: LinkState, want: LinkState, backlogs: Mapping[tuple[str, int], int]) -> None:
        self.name = want.name
        self.have, self.want = have, want
        self.tree, self.goal = Tree(have), Tree(want)
        self.clsact_may_go = False
        self._was_inner = {each.parent for each in have.classes}
        self._waiting: dict[int, int | None] = defaultdict(lambda: None)
        self._waiting |= {handle: packets for (device, handle), packets in backlogs.items() if device == self.name}
        self._steps: list[Step] = []

    def steps_to_desired(self) -> list[Step]:
        """All of them."""
        return [*self.coming(), *self.going()]

    def coming(self) -> list[Step]:
        """What is added and changed, and packets sent to it."""
        self._gso()
        self._root()
        self._clear()
        self._build()
        if self.goal.clsact is not None and self.tree.clsact is None:
            self._emit(Verb.ADD, self.goal.clsact)
        self._filters()
        coming, self._steps = self._steps, []
        return coming

    def going(self) -> list[Step]:
        """What is removed then, because nothing is sent to it any more."""
        self._delete_classes(self.tree.classes.keys() - self.goal.classes.keys())
        # What was an inner class until its last child went.
        self._build()
        self._delete_leaves()
        self._delete_root()
        return self._steps

    def _emit(self, verb: Verb, subject: Subject, before: Subject | None = None, loss: Loss = NO_LOSS) -> None:
        self._steps.append(Step(verb=verb, device=self.name, subject=subject, before=before, loss=loss))

    def _gso(self) -> None:
        size, before = self.want.gso_max_size, self.have.gso_max_size
        if size is not None and size != before:
            self._emit(Verb.CHANGE, Gso(size), None if before is None else Gso(before))

    def _root(self) -> None:
        old, new = self.tree.root, self.goal.root
        if new is None or old == new:
            return
        if old is not None and old.handle != new.handle and new.handle in self.tree.qdiscs:
            self._delete_qdisc(old)  # a qdisc below has the number that the new root is to have
            old = None
        if old is None:
            waits = loss_of(self._waiting[0] or 0, "waits in the kernel's own qdisc")
            self._emit(Verb.ADD, new, loss=_of_a_root(waits))
            self.tree.put(new)
        else:
            self._qdisc(old, new)

    def _qdisc(self, old: Qdisc, new: Qdisc) -> None:
        """Another qdisc in this place, or other options."""
        same_kind = old.handle == new.handle and kind_of(old.options) == kind_of(new.options)
        if same_kind and same_options(old.options, canonical(new.options)):
            return
        if same_kind and not isinstance(new.options, Htb) and not _strands(old, new):
            self._emit(Verb.CHANGE, new, old, self._cut_short(new))
        else:
            loss = self._lost_with(old)
            self._emit(Verb.REPLACE, new, old, _of_a_root(loss) if new is self.goal.root else loss)
            self.tree.drop_qdisc(old)
        self.tree.put(new)

    def _cut_short(self, new: Qdisc) -> Loss:
        """fq and fq_codel throw away at once what exceeds a smaller limit."""
        waiting = self._waiting[new.handle]
        if waiting is None or not isinstance(new.options, Fq | FqCodel):
            return NO_LOSS
        return loss_of(max(0, waiting - new.options.limit), "exceeds the smaller limit")

    def _lost_with(self, gone: Qdisc) -> Loss:
        packets = self._waiting[gone.handle]
        if gone is self.tree.root:
            self._waiting.clear()
        self._waiting[gone.handle] = self._waiting[gone.parent] = 0
        return loss_of(packets, "waits in it")

    def _clear(self) -> None:
        """Remove first what would be in the way of new objects."""
        moved = {
            handle
            for handle, each in self.tree.classes.items()
            if handle in self.goal.classes and not _same_place(each, self.goal.classes[handle])
        }
        if moved:
            moved = {each for each in self.tree.classes if each in moved or self._above(each) & moved}
        self._delete_filters(conflicting(self.tree.filters, self.want.filters, moved))
        self._delete_classes(moved)
        for qdisc in list(self.tree.qdiscs.values()):
            wanted = self.goal.qdiscs.get(qdisc.handle)
            if wanted is not None and wanted.parent != qdisc.parent and qdisc.handle in self.tree.qdiscs:
                self._delete_qdisc(qdisc)

    def _above(self, handle: int) -> set[int]:
        above = set()
        while (each := self.tree.classes.get(handle)) is not None and each.parent not in above:
            above.add(handle := each.parent)
        return above

    def _build(self) -> None:
        """Add and change all that can be now: first the root's classes and leaves, then what is below those leaves."""
        steps_before = -1
        while steps_before != len(self._steps):
            steps_before = len(self._steps)
            self._classes()
            self._leaves()

    def _classes(self) -> None:
        """Add what is missing, from the top down, and change the others in place.

        A new class gets its queue at once, and the one that all packets come to is the last: what comes before its
        queue does waits in a first queue of the kernel's, and is lost with it.
        """
        for handle in sorted(self.goal.classes, key=self._turn):
            new, old = self.goal.classes[handle], self.tree.classes.get(handle)
            if handle & _MAJOR not in self.tree.qdiscs:
                continue
            if old is None:
                self._was_inner.discard(handle)
                self._emit(Verb.ADD, new, loss=self._lost_to_a_child(new.parent))
                self.tree.put(new)
                self._first_queues(handle)
            elif not self._equal(old, new):
                self._emit(Verb.CHANGE, new, old)
                self.tree.put(new)

    def _turn(self, handle: int) -> tuple[int, bool, int]:
        return self.goal.depth(handle), self._is_default(handle), handle

    def _is_default(self, handle: int) -> bool:
        root = self.goal.root
        return root is not None and isinstance(root.options, Htb) and handle == root.handle | root.options.default

    def _first_queues(self, parent: int) -> None:
        """Of a class that was just added: what is to be at it, and behind that."""
        while (new := self.goal.leaf(parent)) is not None and not self.goal.children(parent):
            if new.handle in self.tree.qdiscs:
                return  # it has to go from elsewhere first
            # Of the class that packets come to at once it is counted when it is done.
            waits = None if self._is_default(parent) else self._waiting.pop(parent, None) or 0
            self._emit(Verb.ADD, new, loss=loss_of(waits, _FIRST_QUEUE))
            self.tree.put(new)
            parent = new.handle | 1

    def _equal(self, old: TcClass, new: TcClass) -> bool:
        if not isinstance(old.options, HtbClass) or not isinstance(new.options, HtbClass):
            return same_options(old.options, new.options)
        if self.goal.children(new.handle) or self.tree.children(new.handle):
            # HTB lets an inner class's prio and quantum be (`if (!cl->level)` in htb_change_class()).
            return _inner(old.options) == _inner(new.options)
        if new.handle in self._was_inner:
            # It shows again the prio that it had before its children came, whatever that was.
            self._was_inner.discard(new.handle)
            return False
        return old.options == new.options

    def _lost_to_a_child(self, parent: int) -> Loss:
        """A class that gets its first child loses its leaf qdisc (htb_change_class() in net/sched/sch_htb.c)."""
        leaf = self.tree.leaf(parent)
        if parent not in self.tree.classes or self.tree.children(parent):
            return NO_LOSS
        if leaf is not None:
            loss = self._lost_with(leaf)
            self.tree.drop_qdisc(leaf)
            return loss
        packets, self._waiting[parent] = self._waiting[parent], 0
        return loss_of(packets or 0, "waits in the class above")

    def _leaves(self) -> None:
        """Add and change qdiscs below the root, except at classes that still have children."""
        for handle in sorted(self.goal.qdiscs, key=lambda each: (self.goal.depth(each), each)):
            new = self.goal.qdiscs[handle]
            if new is self.goal.root or self.tree.children(new.parent) or new.parent & _MAJOR not in self.tree.qdiscs:
                continue
            old = self.tree.leaf(new.parent)
            if old is None:
                packets, self._waiting[new.parent] = self._waiting[new.parent], 0
                self._emit(Verb.ADD, new, loss=loss_of(packets or 0, _FIRST_QUEUE))
                self.tree.put(new)
            else:
                self._qdisc(old, new)

    def _filters(self) -> None:
        paired, left = pairs(self.tree.filters, self.want.filters)
        for old, new in paired:
            if old is None:
                self._emit(Verb.ADD, new)
            elif not same_options(old.options, new.options):
                self._emit(Verb.REPLACE, new, old)
        self.tree.filters = [new for _, new in paired] + left
        # Those on a root that goes go with it.
        self._delete_filters([each for each in left if self.goal.root is not None or at_hook(each)])

    def _delete_filters(self, gone: list[Filter]) -> None:
        whole, single = removals(self.tree.filters, gone)
        for each in (*whole, *single):
            self._emit(Verb.DELETE, each)
        self.tree.filters = [each for each in self.tree.filters if each not in gone]

    def _delete_classes(self, handles: set[int]) -> None:
        if not handles or self.goal.root is None:
            return
        order = sorted(handles, key=lambda each: (-self.tree.depth(each), each))
        for handle in order:
            if not self.tree.children(handle):
                self._emit(Verb.DRAIN, self.tree.classes[handle])
        for handle in order:
            leaf = self.tree.leaf(handle)
            packets = self._waiting[handle]
            if packets is None and leaf is not None:
                packets = self._waiting[leaf.handle]
            loss = NO_LOSS if handle in self._was_inner else loss_of(packets, "still waits after draining")
            self._emit(Verb.DELETE, self.tree.classes[handle], loss=loss)
            self._waiting[handle] = 0
            self.tree.drop_class(handle)

    def _delete_leaves(self) -> None:
        for qdisc in list(self.tree.qdiscs.values()):
            nowhere = qdisc.handle in self.tree.qdiscs and self.goal.leaf(qdisc.parent) is None
            if nowhere and qdisc is not self.tree.root and self.goal.root is not None:
                self._delete_qdisc(qdisc)

    def _delete_qdisc(self, qdisc: Qdisc) -> None:
        loss = self._lost_with(qdisc)
        self._emit(Verb.DELETE, qdisc, loss=_of_a_root(loss) if qdisc is self.tree.root else loss)
        self.tree.drop_qdisc(qdisc)

    def _delete_root(self) -> None:
        root = self.tree.root
        if root is not None and self.goal.root is None:
            self._delete_qdisc(root)
        if self.tree.clsact is not None and self.goal.clsact is None and self.clsact_may_go:
            self._emit(Verb.DELETE, self.tree.clsact)


def _of_a_root(waits: Loss) -> Loss:
    """While a root comes or goes the device has none: 1 ms of packets were lost at 10,000 a second, uncounted.

    dev_deactivate_many() in net/sched/sch_generic.c waits for an RCU grace period with noop_qdisc in its place.
    """
    meanwhile = "what is sent while the kernel changes the root, about 1 ms"
    return Loss(waits.packets, meanwhile if waits == NO_LOSS else f"{waits.text}, and {meanwhile}")


def _strands(old: Qdisc, new: Qdisc) -> bool:
    """Whether what waits could never go: tbf keeps a packet longer than its burst for ever (tbf_dequeue()).

    So a device's MTU that got smaller would stop each class in which a longer packet waits.
    """
    return isinstance(old.options, Tbf) and isinstance(new.options, Tbf) and new.options.burst < old.options.burst


def _same_place(old: TcClass, new: TcClass) -> bool:
    return old.parent == new.parent and kind_of(old.options) == kind_of(new.options)


def _inner(options: HtbClass) -> HtbClass:
    return msgspec.structs.replace(options, prio=0, quantum=0)
