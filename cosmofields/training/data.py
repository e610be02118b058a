"""Crops on their way to the optimiser: which ones, in what order, and ahead of the step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..samples import Arrays, BoxSamples, Files
from ..unet import MODELS, vector_channels
from .config import TrainingConfig

Batch = tuple[torch.Tensor, torch.Tensor]
# Batches that are made while a step runs.
AHEAD = 2
VALIDATION_CROPS = 16


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Samples (epoch, i) of the epoch that Lightning sets, or of ``fixed``.

    Of several processes, each takes its share: together a batch is what one would have taken.
    """

    def __init__(self, length: int, fixed: int | None = None) -> None:
        self.length = length
        self.fixed = fixed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples an epoch, of this process."""
        return len(self._share())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The samples of one epoch; epoch 0 is that of validation."""
        epoch = 1 + self.epoch if self.fixed is None else self.fixed
        return ((epoch, i) for i in self._share())

    def _share(self) -> range:
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            return range(self.length)
        return range(group.get_rank(), self.length, group.get_world_size())


class Loader:
    """Batches, made by a thread while the step before them runs.

    Attributes
    ----------
    waited : float
        Seconds for which whoever iterates had to wait for a batch, so far.
    """

    def __init__(
        self, samples: Any, sampler: EpochSampler, *, batch_size: int, workers: int = 0
    ) -> None:
        self.sampler = sampler
        self.waited = 0.0
        # Spawned, not forked: threads of numba, dask and torch do not survive a fork.  The workers
        # live as long as the fit, for each imports torch when it starts.
        self._loader = torch.utils.data.DataLoader(
            samples,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        # Where Lightning looks for the sampler, too.
        self.batch_sampler = self._loader.batch_sampler

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of an epoch."""
        with ThreadPoolExecutor(1, thread_name_prefix="crops") as pool:
            batches = iter(self._loader)
            ahead = deque(pool.submit(next, batches, None) for _ in range(AHEAD))
            try:
                while True:
                    began = time.perf_counter()
                    batch = ahead.popleft().result()
                    self.waited += time.perf_counter() - began
                    if batch is None:
                        return
                    ahead.append(pool.submit(next, batches, None))
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()


def loaders(
    config: TrainingConfig,
    boxes: Sequence[Arrays | Files],
    validation: Sequence[Arrays | Files],
    workers: int = 0,
    devices: int = 1,
) -> tuple[Loader, Loader]:
    """Crops of the training boxes, new ones each epoch, and fixed ones of the validation boxes."""
    size = config.batch_size // devices

    def samples(of: Sequence[Arrays | Files], seed: int) -> BoxSamples:
        return BoxSamples(
            of,
            vector_inputs=vector_channels(MODELS[config.architecture, config.target].inputs),
            crop=config.crop,
            seed=seed,
        )

    length = config.steps_per_epoch * config.batch_size
    train = Loader(
        samples(boxes, config.seed),
        EpochSampler(length),
        batch_size=size,
        workers=workers,
    )
    # The same for every seed, so that runs compare; few, once an epoch: the thread is enough.
    chosen = EpochSampler(VALIDATION_CROPS, fixed=0)
    return train, Loader(samples(validation, 0), chosen, batch_size=size)
