"""JSON lines, in which the stages meet: tasks and records, torn files mended, files of ranks."""
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from plumbing.cli import InputError

Record = dict[str, Any]

# Field names of the public sets, the first one ours.
FIELDS = {"question": ("question", "problem", "Question"),
          "answer": ("answer", "true_answer", "answers", "golden_answers", "final_answer", "Final answer")}


def as_list(answers: Any) -> list[str]:
    """An answer, or a list of accepted ones, as a list of texts."""
    if isinstance(answers, (list, tuple)):
        return [str(answer) for answer in answers]
    return [str(answers)]


# ---- reading ----

def read_jsonl(path: str | Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number, object) of every line that holds one; InputError names the file and the line."""
    n = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for n, line in enumerate(file, 1):
                record = json.loads(line) if line.strip() else {}
                if not isinstance(record, dict):
                    raise InputError(f"{path}, line {n}: not a JSON object")
                if record:
                    yield n, record
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {n}: not valid JSON ({error.msg}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def read_tasks(path: str | Path, required: tuple[str, ...] = ("answer",)) -> list[Record]:
    """The tasks of a file as {"id", "question", "answer", …}, whichever public set's field names it has."""
    tasks: list[Record] = []
    lines: dict[str, int] = {}                             # id -> the line that has it
    for n, record in read_jsonl(path):
        rename_fields(record)
        for field in ("question", *required):
            if record.get(field) is None:
                names = ", ".join(FIELDS.get(field, (field,)))
                raise InputError(f'{path}, line {n}: the field "{field}" is missing (looked for {names})')
        question = str(record["question"])
        given = record.pop("id", None)
        record.pop("messages", None)                       # a trajectory as a task starts at its question
        if given is None:
            name = hashlib.sha256(question.encode()).hexdigest()[:16]
            if name in lines:                              # the same question twice
                name += f"-{n}"
        else:
            name = str(given)
            if name in lines:
                raise InputError(f'{path}, line {n}: the id "{name}" was used before, in line {lines[name]}')
        lines[name] = n
        tasks.append({"id": name, **record, "question": question, "answer": final_answer(record["answer"])})
    return tasks


def rename_fields(record: Record) -> None:
    """Put question and answer under our names; None where a record has neither name."""
    for field, names in FIELDS.items():
        given = [name for name in names if record.get(name) not in (None, "", [])]
        record[field] = record.pop(given[0]) if given else None


def final_answer(answer: Any) -> str | list[str] | None:
    """An answer as text, or a list of texts; of GSM8K's solutions what stands after ####."""
    if answer is None:
        return None
    texts = [re.sub(r"(?s)^.*####", "", text).strip() for text in as_list(answer)]
    return texts if isinstance(answer, list) else texts[0]


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


def resume_jsonl(path: str | Path) -> list[Record]:
    """The records that a killed run left behind; a torn last line is cut off the file."""
    if not os.path.exists(path):
        return []
    with open(path, "rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        try:
            json.loads(data[end:])
            file.write(b"\n")                              # only the line's end was lost
        except ValueError:
            file.truncate(end)
    return [record for _, record in read_jsonl(path)]


def open_metrics(out: str, done: int, name: str = "metrics.jsonl") -> TextIO:
    """OUT/NAME for appending, cut back to the step that a resumed run starts from."""
    path = os.path.join(out, name)
    os.makedirs(out, exist_ok=True)
    write_jsonl(path, [row for row in resume_jsonl(path) if row["step"] <= done])
    return open(path, "a", encoding="utf-8")


# ---- ranks of mps.py and eval.py: each writes a file of its own, rank 0 merges them ----

def ranks_files(folder: str | Path, name: str) -> list[Path]:
    """What the ranks wrote apart: FOLDER/NAME.rank0.jsonl, FOLDER/NAME.rank1.jsonl …"""
    return sorted(Path(folder).glob(f"{name}.rank*.jsonl"))


def read_parts(folder: str | Path, name: str, key: Callable[[Record], Hashable],
               failed: Callable[[Record], bool]) -> dict[Hashable, Record]:
    """All records of NAME.jsonl and of the ranks' files, by key. Of two with one key the later one counts,
    unless it failed."""
    records: dict[Hashable, Record] = {}
    for path in [Path(folder) / f"{name}.jsonl", *ranks_files(folder, name)]:
        for record in resume_jsonl(path):
            if key(record) not in records or not failed(record):
                records[key(record)] = record
    return records


def merge_parts(folder: str | Path, name: str, records: Iterable[Record]) -> None:
    """Write the records to NAME.jsonl and remove the ranks' files."""
    write_jsonl(Path(folder) / f"{name}.jsonl", records)
    for path in ranks_files(folder, name):
        path.unlink()
