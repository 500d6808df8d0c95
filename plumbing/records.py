"""JSON lines, in which the stages meet: records, torn files mended, files of ranks."""
import io
import json
import math
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from plumbing.cli import InputError
from plumbing.foreign import reading, refuse_foreign

Record = dict[str, Any]

# What the records have that mps.py and eval.py read again.
MPS_FIELDS = ("id", "question", "answer", "messages", "outcome", "interventions", "corrections", "usage")
PREDICTION_FIELDS = ("group", "id", "run", "messages", "prediction", "stop", "score", "correct", "verdict",
                     "metric")


def as_list(answers: Any) -> list[str]:
    """An answer, or a list of accepted ones, as a list of texts."""
    if isinstance(answers, (list, tuple)):
        return [str(answer) for answer in answers]
    return [str(answers)]


# ---- reading ----

def read_jsonl(path: str | Path, fields: Collection[str] = ()) -> Iterator[tuple[int, Record]]:
    """Yield (line number, object) of every line that holds one; InputError names the file and the line.

    fields: what every object has if a stage of this project wrote it.
    """
    with reading(path), open(path, "rb") as file:
        refuse_foreign(path, file.peek(4096))
        for n, record in objects_of(path, io.TextIOWrapper(file, encoding="utf-8-sig")):
            for field in fields:
                if field not in record:
                    raise InputError(f'{path}, line {n}: the field "{field}" is missing, so no stage '
                                     "wrote this line: delete it, or give another folder")
            yield n, record


def objects_of(path: str | Path, lines: Iterable[str]) -> Iterator[tuple[int, Record]]:
    """Yield (line number, object) of the lines of a file; InputError names the file and the line."""
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = f"{fault_of_json(error)}: every line has to be one whole JSON object"
            if n == 1 and line.startswith("["):
                fault = "the start of a JSON list: write one object a line first, with jq -c '.[]' FILE"
            raise InputError(f"{path}, line {n}: {fault}") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {n}: not a JSON object")
        if record:
            yield n, record


def fault_of_json(error: ValueError | RecursionError) -> str:
    """What is wrong with a text of which json.loads raised this."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg.removesuffix(' at')}, column {error.colno})"
    if isinstance(error, RecursionError):
        return "nested too deeply to be read"
    return "a number in it has too many digits"


# ---- writing ----

def to_json(value: Any, **how: Any) -> str:
    """The value as JSON, which has no word for numbers that are none or infinite: they become null."""
    try:
        return json.dumps(value, allow_nan=False, **how)
    except ValueError:
        return json.dumps(without_nan(value), **how)


def without_nan(value: Any) -> Any:
    """The same value, with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append_jsonl(file: TextIO, record: Record) -> None:
    """Write one whole line and flush: a killed run loses at most the line being written."""
    line = to_json(record, ensure_ascii=False) + "\n"
    file.write(line.encode("utf-8", "replace").decode())           # a program may print lone surrogates
    file.flush()


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write a whole file; the old one stays until the new one is complete."""
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        for record in records:
            append_jsonl(file, record)
    os.replace(part, path)


def resume_jsonl(path: str | Path, fields: Collection[str] = ()) -> list[Record]:
    """The records that a killed run left behind; a torn last line is cut off the file.

    fields: what they all have."""
    if not os.path.exists(path):
        return []
    with open(path, "rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        try:
            json.loads(data[end:])
            file.write(b"\n")                              # only the line's end was lost
        except (ValueError, RecursionError):
            file.truncate(end)
    return [record for _, record in read_jsonl(path, fields)]


def open_metrics(out: str, done: int, name: str = "metrics.jsonl") -> TextIO:
    """OUT/NAME for appending, cut back to the step that a resumed run starts from."""
    path = os.path.join(out, name)
    os.makedirs(out, exist_ok=True)
    write_jsonl(path, [row for row in resume_jsonl(path, ["step"]) if row["step"] <= done])
    return open(path, "a", encoding="utf-8")


# ---- ranks of mps.py and eval.py: each writes a file of its own, rank 0 merges them ----

def ranks_files(folder: str | Path, name: str) -> list[Path]:
    """What the ranks wrote apart: FOLDER/NAME.rank0.jsonl, FOLDER/NAME.rank1.jsonl …"""
    return sorted(Path(folder).glob(f"{name}.rank*.jsonl"))


def read_parts(folder: str | Path, name: str, key: Callable[[Record], Hashable],
               failed: Callable[[Record], bool], fields: Collection[str]) -> dict[Hashable, Record]:
    """All records of NAME.jsonl and of the ranks' files, by key. Of two with one key the later one counts,
    unless it failed. fields: what each has."""
    records: dict[Hashable, Record] = {}
    for path in [Path(folder) / f"{name}.jsonl", *ranks_files(folder, name)]:
        for record in resume_jsonl(path, fields):
            if key(record) not in records or not failed(record):
                records[key(record)] = record
    return records


def merge_parts(folder: str | Path, name: str, records: Iterable[Record]) -> None:
    """Write the records to NAME.jsonl and remove the ranks' files."""
    write_jsonl(Path(folder) / f"{name}.jsonl", records)
    for path in ranks_files(folder, name):
        path.unlink()
