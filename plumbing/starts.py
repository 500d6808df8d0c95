"""Where the rollouts of each RL record begin: before its error, or at the question."""
import zlib
from typing import Any

from plumbing.cli import InputError
from plumbing.records import Record, read_jsonl
from plumbing.tasks import read_tasks
from plumbing.trainer import shuffled
from plumbing.trajectory import fault_of_start, prefix, step_of


def as_start(task: Record) -> Record:
    """A task as an RL record that begins at the question."""
    return {**task, "messages": [{"role": "user", "content": task["question"]}]}


class Starts:
    """RL records, and where the rollouts of each begin.

    fixed: before the error, where a record's messages end. question: with the question alone.
    """

    def __init__(self, path: str, how: str) -> None:
        """path: rl.jsonl of mps.py, or tasks, for `question`; how: fixed | question. InputError names a
        record's fault."""
        self.path = path
        self.how = how
        self.records: list[Record] = []
        numbered = list(read_jsonl(path))
        if how == "question" and not any(record.get("messages") for _, record in numbered):
            numbered = [(i, as_start(task)) for i, task in enumerate(read_tasks(path), 1)]
        for line, record in numbered:
            fault = fault_of_start(record)
            if fault:
                raise InputError(f"{path}, line {line}: {fault}; --data is the rl.jsonl of mps.py")
            of_other_runs = [name for name in record if name.startswith("reward")]
            self.records.append({name: record[name] for name in record if name not in of_other_runs})
        if not self.records:
            raise InputError(f"{path}: no record to train on")

    def start(self, i: int) -> Record:
        """Record i as `make_episodes` takes it. `key`: the step whose choice is rewarded, the first one after
        the prefix; None if the rollout begins at the question or the record tells of no error."""
        record = self.records[i]
        messages = record["messages"]
        key = step_of(messages) if record.get("chosen") else None
        if self.how == "question":
            messages = prefix(messages, 0)
            key = None
        return {**record, "key": key, "messages": messages}

    def saved(self) -> dict[str, Any]:
        """What resuming needs: a number that tells these records from others."""
        records = [(record["id"], step_of(record["messages"])) for record in self.records]
        return {"records": zlib.crc32(str(records).encode(errors="replace"))}

    def resume(self, saved: dict[str, Any] | None) -> None:
        """InputError if the file holds other records than when this was `saved`."""
        if saved is not None and saved["records"] != self.saved()["records"]:
            raise InputError(f"{self.path} holds other records than when this run began: give another --out")

    def batch(self, places: range, seed: int) -> list[Record]:
        """The starts at these places of an endless stream of shuffled records (`shuffled`).

        Each knows its place: records of one task may start alike, and are to be played differently.
        """
        records = shuffled(list(range(len(self.records))), places, seed)
        return [{**self.start(i), "place": place} for i, place in zip(records, places)]
