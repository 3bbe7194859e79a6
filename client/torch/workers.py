"""torch's iterator over worker processes, with a shorter way between them and the loop.

Role: client/torch/loader.py makes one of THIS for each iteration with workers; torch's own class
does the work: who reads what, in which order, and what happens when a worker dies. Its messages
take the way of client/torch/channel.py.

Failure behaviour: torch's class is private. Where it is not as this module knows it, importing THIS
fails, and the loader uses torch's iterator as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch.multiprocessing
from torch._C._autograd import _profiler_enabled
from torch.utils.data.dataloader import _DatasetKind, _MultiProcessingDataLoaderIter

from ffs.client.torch.channel import Channel, Flag
from ffs.client.torch.messages import Messages

if TYPE_CHECKING:
    from ffs.client.torch.loader import DataLoader


_KNOWN: Final = {
    "__init__": {"multiprocessing_context", "Queue", "Event"},
    "__next__": {"_next_data", "_num_yielded", "_dataset_kind"},
    "_shutdown_workers": {"_workers_done_event"},
}
"""Methods of torch's class, and names in them, that `Workers` takes the place of or uses."""


def _check_shape() -> None:
    for method, names in _KNOWN.items():
        code = getattr(getattr(_MultiProcessingDataLoaderIter, method, None), "__code__", None)
        if code is None or not names <= {*code.co_names}:
            raise ImportError(f"{method} of torch's iterator is not as in torch 2.13")


_check_shape()


class Workers(_MultiProcessingDataLoaderIter):
    """torch's iterator, of which Python runs less for each batch."""

    def __init__(self, loader: DataLoader) -> None:
        super().__init__(_Loader(loader))

    def __next__(self) -> Any:
        # What torch's own does besides: a mark for its profiler, and a warning of wrong lengths.
        if _profiler_enabled() or self._dataset_kind == _DatasetKind.Iterable:
            return super().__next__()
        data = self._next_data()  # type: ignore[no-untyped-call]
        self._num_yielded += 1
        return data

    def stop(self) -> None:
        """End the workers."""
        self._shutdown_workers()


class _Loader:
    """A loader as torch's iterator sees it: workers are talked to by channels of ours."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self.multiprocessing_context = _Context(
            loader.multiprocessing_context or torch.multiprocessing, loader.messages()
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Context:
    """A context of multiprocessing whose queues are channels, and whose events are flags."""

    def __init__(self, context: Any, messages: Messages) -> None:
        self._context = context
        self._messages = messages

    def Queue(self) -> Channel:  # noqa: N802 - the name that torch calls
        return Channel(self._context, self._messages)

    def Event(self) -> Flag:  # noqa: N802 - the name that torch calls
        return Flag(self._context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
