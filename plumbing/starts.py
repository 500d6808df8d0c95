"""Where the rollouts of each RL record begin: before its error, at the question, or at a place that moves."""
from collections import Counter

from plumbing.cli import InputError
from plumbing.ranks import sum_counts
from plumbing.records import Record, read_jsonl
from plumbing.trainer import shuffled
from plumbing.trajectory import fault_of_start, prefix, step_of


class Starts:
    """RL records, and the step at which the rollouts of each begin.

    fixed: the step of the error, before which a record's messages end. question: step 0. adaptive: the error
    at first; after a visit with all rollouts right, one step earlier, with all wrong, one step later (never
    past the error): a curriculum backwards, on the student's own errors.
    """

    def __init__(self, path: str, how: str) -> None:
        """path: rl.jsonl of mps.py, or tasks, for `question`; how: fixed | adaptive | question. InputError
        names a record's fault."""
        self.how = how
        self.records: list[Record] = []
        for line, record in read_jsonl(path):
            if how == "question" and record.get("question") and not record.get("messages"):
                record["messages"] = [{"role": "user", "content": record["question"]}]
            fault = fault_of_start(record)
            if fault:
                raise InputError(f"{path}, line {line}: {fault}; --data is the rl.jsonl of mps.py")
            of_other_runs = [name for name in record if name.startswith("reward")]
            self.records.append({name: record[name] for name in record if name not in of_other_runs})
        if not self.records:
            raise InputError(f"{path}: no record to train on")
        self.errors = [step_of(record["messages"]) for record in self.records]
        self.steps = [0] * len(self.records) if how == "question" else list(self.errors)

    def start(self, i: int) -> Record:
        """Record i as `make_episodes` takes it. `key`: the step whose choice is rewarded, the first one after
        the start if that is where the error was; else None."""
        record = self.records[i]
        step = self.steps[i]
        before_error = step == self.errors[i] and self.how != "question"
        key = step if before_error and record.get("chosen") else None
        return {**record, "record": i, "key": key, "messages": prefix(record["messages"], step)}

    def batch(self, places: range, seed: int) -> list[Record]:
        """The starts at these places of an endless stream of shuffled records (`shuffled`)."""
        return [self.start(i) for i in shuffled(list(range(len(self.records))), places, seed)]

    def move(self, groups: list[list[Record]]) -> None:
        """Move the starts of the groups that all ranks have just played; dropped rollouts do not count."""
        if self.how != "adaptive":
            return
        played: Counter = Counter()
        right: Counter = Counter()
        for group in groups:
            for trajectory in group:
                if "reward" in trajectory:
                    played[trajectory["record"]] += 1
                    right[trajectory["record"]] += bool(trajectory.get("reward_correct"))
        right = sum_counts(right)
        for i, n in sum_counts(played).items():
            if right[i] == n:
                self.steps[i] = max(0, self.steps[i] - 1)
            elif right[i] == 0:
                self.steps[i] = min(self.errors[i], self.steps[i] + 1)
