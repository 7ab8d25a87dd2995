"""One evaluation by all processes of a run: the first says what is to be encoded, and everybody encodes a part of it.

Only the first knows what it needs next: what the disk has already, which sets share prompts. So it alone decides, and
the others take its orders until it ends; whatever it does between two of them, no process waits for what another
never calls. A failure in one process ends the evaluation in all of them, with the same error.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from harness.base.errors import HarnessError
from harness.parallel.process_group import World
from harness.parallel.ranks import Ranks


@dataclass(frozen=True)
class ImageShare:
    """Encode the images of a set."""

    digest: str
    count: int
    name: str


@dataclass(frozen=True)
class TextShare:
    """Encode texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class TokenWiseShare:
    """Compare the images of a set with texts, token by token."""

    images: ImageShare
    texts: tuple[str, ...]
    together: int
    """How many consecutive texts have one similarity, the mean of theirs."""
    both: bool
    """Whether the texts' similarities are asked for too."""


Order: TypeAlias = ImageShare | TextShare | TokenWiseShare


@dataclass(frozen=True)
class _End:
    """The last word: there are no more orders."""

    failure: Exception | None = None
    """What ended the first process, where it did not end well."""


class Crew:
    """The processes of an evaluation, from inside one of them; by default there is one."""

    def __init__(self, world: World, device: torch.device) -> None:
        self._world, self._device = world, device
        self._in_step = True
        """Whether the others listen: not where all have failed together, or one has gone."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that gives orders."""
        return self._world.is_first

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Within the block the others take the first process's orders; they end as the block does."""
        self._in_step = True
        try:
            yield
        except Exception as failure:
            if self._in_step:
                self._world.broadcast(_End(_sendable(failure)))
            raise
        self._say(_End())

    def order(self, order: Order) -> None:
        """Have the others carry an order out; the first does so itself."""
        self._say(order)

    def orders(self) -> Iterator[Order]:
        """The first process's orders, for the others, until it ends.

        Raises:
            Exception: what ended the first process.
        """
        while not isinstance(word := self._listen(), _End):
            yield word
        if word.failure is not None:
            raise word.failure

    def gathered(self, items: int, compute: Callable[[range], Sequence[Tensor]], *, cpu: bool = False) -> Tensor:
        """What `compute` makes of `items` items, each process taking consecutive ones; in the items' order, in all.

        Args:
            items: how many there are, the same number in every process.
            compute: from items to tensors [n, ...], one after another, alike in all but n.
            cpu: whether the tensors are on the CPU; else they are on the device.

        Raises:
            Exception: what failed in any process, in all of them.
        """
        self._in_step = False
        parts, failure = _tried(lambda: compute(range(*self._world.ranks.share(items))))
        said = self._world.all_gather(
            (failure and _sendable(failure), [(one.shape[1:], one.dtype) for one in parts[:1]])
        )
        if failure is not None:
            raise failure
        for theirs, _ in said:
            if theirs is not None:
                raise theirs
        (shape, dtype), *_ = [kind for _, kinds in said for kind in kinds]
        ranks = Ranks(self._world.control, self._world.ranks.rank, self._world.ranks.size) if cpu else self._world.ranks
        nothing = torch.empty((0, *shape), dtype=dtype, device="cpu" if cpu else self._device)
        found = ranks.all_gather_ragged(torch.cat([nothing, *parts]))
        self._in_step = True
        return found

    def _listen(self) -> Order | _End:
        unheard: Order | _End = _End()
        return self._world.broadcast(unheard)

    def _say(self, word: Order | _End) -> None:
        self._in_step = False
        self._world.broadcast(word)
        self._in_step = True


def _tried(compute: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Exception | None]:
    try:
        return compute(), None
    except Exception as failure:
        return (), failure


def _sendable(failure: Exception) -> Exception:
    """A failure as the other processes can raise it; with its traceback, where it is no mistake of the user's."""
    if isinstance(failure, HarnessError):
        return failure
    try:
        copy: Exception = pickle.loads(pickle.dumps(failure))
    except Exception:
        copy = RuntimeError(f"{type(failure).__name__}: {failure}")
    copy.add_note("in another process:\n" + "".join(traceback.format_exception(failure)))
    return copy
