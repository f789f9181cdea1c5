"""Trajectories on disk: JSON Lines, Parquet shards, and folders of them.

A row is what `trajectory.to_row` makes, in both formats. A file appears whole or not at all: it is
written under a hidden name, flushed to the disk, and renamed.

    write_trajectories("data/part-0.parquet", trajectories)
    for one in read_trajectories("data"): ...
    datasets.load_dataset("parquet", data_files="data/*.parquet")
    datasets.load_dataset("json", data_files="data.jsonl", features=features())
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dynatok_online.trajectory import Trajectory, from_row, to_row

if TYPE_CHECKING:
    import datasets
    import pyarrow

SUFFIXES = (".jsonl", ".parquet")

OnBad = Callable[[str], None]
"""Is told where a row is broken, and why; the row is then left out."""


def read_trajectories(
    path: str | os.PathLike[str], on_bad: OnBad | None = None
) -> Iterator[Trajectory]:
    """The trajectories of a file, or of every shard of a folder in order of name.

    A broken row raises ValueError with file, line (or row) and cause; where `on_bad` is given it
    is told that text instead, and reading goes on. Raises ValueError for a path that holds none.
    """
    for row, where in read_rows(path, on_bad):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"holds a {type(row).__name__}; a trajectory is an object")
            one = from_row(row)
        except ValueError as error:
            _report(f"{where}: {error}", on_bad)
        else:
            yield one


def read_rows(
    path: str | os.PathLike[str], on_bad: OnBad | None = None
) -> Iterator[tuple[Any, str]]:
    """(row, where it stands) of a JSON Lines or Parquet file, or of a folder's; see above."""
    for file in data_files(path):
        yield from (_read_parquet if file.suffix == ".parquet" else _read_jsonl)(file, on_bad)


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """The file itself, or the shards of a folder in order of name. ValueError where none is."""
    path = Path(path)
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if _is_data(one))
        if not files:
            raise ValueError(f"{path}: no *.jsonl or *.parquet file in this folder")
        return files
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: write a .jsonl or .parquet file, or a folder of them")
    return [path]


def _is_data(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read_jsonl(path: Path, on_bad: OnBad | None) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
                    _report(
                        f"{path}: not UTF-8 but UTF-16, it seems; save it as UTF-8: "
                        f"iconv -f UTF-16 -t UTF-8 {path.name}",
                        on_bad,
                    )
                    return
                line = line.removeprefix(b"\xef\xbb\xbf")  # what Windows puts in front of UTF-8
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    row = _json(line)
                except ValueError as error:
                    _report(f"{where}: not JSON ({error})", on_bad)
                else:
                    yield row, where


def _json(line: bytes) -> Any:
    """What a line holds; NaN counts, which Python's `json.dumps` writes. ValueError."""
    try:
        return msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except msgspec.DecodeError:
        if b"NaN" not in line:
            raise
        return json.loads(line)


def _read_parquet(path: Path, on_bad: OnBad | None) -> Iterator[tuple[Any, str]]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}, row {number}"
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        _report(f"{path}: not readable as Parquet after row {number} ({first})", on_bad)


def _report(text: str, on_bad: OnBad | None) -> None:
    if on_bad is None:
        raise ValueError(text)
    on_bad(text)


def write_trajectories(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> int:
    """Write a `.jsonl` or `.parquet` file, whole or not at all; returns the number of rows."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in .jsonl or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [to_row(one) for one in trajectories]
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            if path.suffix == ".parquet":
                import pyarrow
                import pyarrow.parquet as parquet

                parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema()), file)
            else:
                file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)


def schema() -> pyarrow.Schema:
    """The columns of a Parquet shard. Written out: an empty list has no type of its own."""
    import pyarrow as pa

    int32, text = pa.int32(), pa.string()
    edit = {"slot": text, "text": text, "requested_at": int32, "effective_at": int32}
    earlier = {"start": int32, "stop": int32, "score": pa.float64()}
    one_pass = {
        "layout": pa.list_(int32),
        "states": _named(text),
        "start": int32,
        "stop": int32,
        "num_cached_tokens": int32,
        "reuse": pa.list_(pa.list_(int32)),
        "weight_versions": pa.list_(pa.list_(pa.int64())),
        "finish_reason": text,
        "scores": _named(pa.float64()),
        "earlier": pa.list_(pa.struct(earlier)),
        "shifts": pa.list_(int32),
    }
    return pa.schema(
        {
            "trajectory_id": text,
            "pieces": pa.list_(pa.list_(int32)),
            "response": pa.list_(int32),
            "logprobs": pa.list_(pa.float32()),
            "passes": pa.list_(pa.struct(one_pass)),
            "edits": pa.list_(pa.struct({**edit, "source": text})),
            "policy": text,
            "block_size": int32,
            "info": _named(text),
        }
    )


def features() -> datasets.Features:
    """The columns for `datasets.load_dataset("json", ..., features=features())`.

    Without them it takes the types from the first rows, and fails where those have no edits.
    """
    import datasets

    return datasets.Features.from_arrow_schema(schema())


def _named(value: pyarrow.DataType) -> pyarrow.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct({"name": pa.string(), "value": value}))
