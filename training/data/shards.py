"""Packed sequences on disk (Arrow) and the dataset that a text stage reads from them.

``shard-00000.arrow`` holds one column ``input_ids`` (list of int32, length + 1 each), ``held-out.arrow`` those that
nobody trains on; ``manifest.json`` says what is in them. Written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.files import read_json, replacing
from vniah.training import processes

MANIFEST = "manifest.json"
HELD_OUT = "held-out.arrow"


def write_arrow(path: Path, columns: dict[str, Any]) -> None:
    """Write columns as one Arrow stream file, atomically."""
    import pyarrow as pa

    table = pa.table(columns)
    with replacing(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def id_lists(rows: Iterable[NDArray[np.int32]]) -> Any:
    """Arrow list<int32> of id arrays, without a Python object a token. 64-bit offsets: a shard may pass 2^31."""
    import pyarrow as pa

    rows = list(rows)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    values = np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def read_arrow(path: Path) -> Any:
    """Memory-map an Arrow stream file as a table."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def ring_shard(batch: dict[str, Any], rank: int, ring: int) -> dict[str, Any]:
    """A rank's part, in zigzag order, of tensors whose tokens lie along their second dimension."""
    from longva_model.attention import zigzag_shard

    return {key: zigzag_shard(value, rank, ring, dim=1) for key, value in batch.items()}


class RingSequences:
    """Prepared sequences as a map-style dataset of batches of one sequence, or of one rank's shard of it.

    Under ``ring`` item i is shard ``i % world_size`` of sequence ``i // world_size``, where so many ranks share a
    sequence: a Trainer that deals batches out in turn then gives every rank its own shard, and each ring a sequence.

    ``length`` is predictions a sequence; shorter than what was packed cuts, longer is an error. ``num_sequences`` whole
    sequences were prepared, and they are read ``passes`` times, each time in another order.
    """

    def __init__(self, folder: str, length: int, *, seed: int, ring: bool, world_size: int | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}; run (or finish) the prepare_text stage first")
        manifest = read_json(self.folder / MANIFEST)
        packed = int(manifest["sequence_length"])
        if length > packed:
            raise ValueError(f"sequence_length is {length}, but {self.folder} was packed to {packed}; prepare it anew")
        self.length, self.ring = length, ring
        self.world_size = processes.world_size() if world_size is None else world_size
        self._where = [(name, row) for name, rows in manifest["shards"].items() for row in range(rows)]
        self.num_sequences, self.passes = len(self._where), 1
        self._seed, self._orders = seed, dict[int, NDArray[np.int64]]()
        self._tables: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.num_sequences * self.passes * (self.world_size if self.ring else 1)

    def _sequence(self, index: int) -> NDArray[np.int64]:
        """The ``index``-th sequence in training order: length + 1 ids."""
        epoch, place = divmod(index, self.num_sequences)
        if epoch not in self._orders:
            rng = np.random.default_rng((self._seed, 17, epoch) if epoch else (self._seed, 17))
            self._orders = {epoch: rng.permutation(self.num_sequences)}
        name, row = self._where[self._orders[epoch][place]]
        if name not in self._tables:
            self._tables[name] = read_arrow(self.folder / name)
        ids = self._tables[name]["input_ids"][row].values.to_numpy()
        return np.asarray(ids[: self.length + 1], np.int64)

    def __getitem__(self, item: int) -> dict[str, Any]:
        import torch

        if not 0 <= item < len(self):
            raise IndexError(item)
        index, rank = divmod(item, self.world_size) if self.ring else (item, 0)
        ids_1T = torch.from_numpy(self._sequence(index))[None]
        # Trainer counts a step's labels where there is a key of that name; those shifted are used.
        batch = {"input_ids": ids_1T[:, :-1], "labels": ids_1T[:, 1:], "shift_labels": ids_1T[:, 1:]}
        batch["position_ids"] = torch.arange(self.length)[None]
        if self.ring:
            batch = ring_shard(batch, rank, self.world_size)
        return batch
