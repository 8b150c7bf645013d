"""The store and the loop made worse, each in one way: a campaign that does not notice proves nothing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import minilm.train.job as job
import minilm.train.loop as loop
import train
from minilm.checkpoint import store
from minilm.checkpoint.store import Store
from minilm.data.ahead import made_ahead


def copy_in_place() -> None:
    """A checkpoint is written under its final name."""

    def written(self: Store, name: str, write: object) -> Path:
        directory = self.out / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        write(directory)
        store.write_manifest(directory)
        return directory

    def save(
        self: Store, step: int, write: object, keep: int = store.KEPT, spared: int | None = None, size: int = 0
    ) -> Path:
        final = written(self, self.checkpoint(step).name, write)
        self.prune(keep, spared)
        return final

    Store.save = save
    no_manifest_check()


def rename_before_manifest() -> None:
    """A checkpoint has its name before its manifest, which is not missed."""
    write_manifest = store.write_manifest

    def save(
        self: Store, step: int, write: object, keep: int = store.KEPT, spared: int | None = None, size: int = 0
    ) -> Path:
        final = self.checkpoint(step)
        store.write_manifest = lambda directory: None
        with self._written_aside(final.name, write) as partial:
            store.write_manifest = write_manifest
            partial.rename(final)
            write_manifest(final)
        self.prune(keep, spared)
        return final

    Store.save = save


def missing_rng() -> None:
    """Dropout is drawn from where the process happens to be."""
    loop.seed_step = lambda seed, step, rank: None


def missing_cursor() -> None:
    """The rows begin anew."""
    job.made_ahead = lambda batches, step: made_ahead(batches, 0)


def from_the_beginning() -> None:
    """A checkpoint is not looked for: the same weights, all of them computed again."""
    latest = Store.latest

    def none(self: Store, say: Callable[[str], None]) -> Path | None:
        return latest(self, say) if os.getpid() == campaign else None

    campaign, Store.latest = os.getpid(), none


def pruning_first() -> None:
    """The old checkpoints make room for the new one."""
    save = Store.save

    def emptied(self: Store, step: int, *args: object, **kwargs: object) -> Path:
        for _, path in store.checkpoints(self.out):
            shutil.rmtree(path)
        return save(self, step, *args, **kwargs)

    Store.save = emptied


def no_manifest_check() -> None:
    """Whatever is there is believed."""
    store.manifest_fault = train.manifest_fault = lambda directory: ""


MUTATIONS: dict[str, Callable[[], None]] = {
    "copy-in-place": copy_in_place,
    "rename-before-manifest": rename_before_manifest,
    "missing-rng": missing_rng,
    "missing-cursor": missing_cursor,
    "from-the-beginning": from_the_beginning,
    "pruning-first": pruning_first,
    "no-manifest-check": no_manifest_check,
}
