"""The teacher and the judge: plans, steps, first errors, corrections, and what is equivalent.

`Teacher` has a method for each kind of request to the model, which may be behind any OpenAI-compatible chat
endpoint (its key in TEACHER_API_KEY or OPENAI_API_KEY). The prompts are in assets/prompts.md.
`check_answer` and `same_step` ask a model only where rules cannot decide: the judge at --judge-url (its key
in JUDGE_API_KEY or, where that is not set, the teacher's), or else the teacher. What needs no model is in
plumbing/: answers.py (is an answer right?), replies.py (can a reply be used?) and leaks.py (does it give the
answer away?).

Differences from the paper: the model judges only answers and steps that rules leave open. A judge of its own
is asked at temperature 0.1, as in the paper; a teacher that judges at the release's 0.3, in mps.py 0.9. The
verdict on a whole run is always the teacher's. A reply of the wrong form is asked for once more, with the
fault named; if it stays wrong, that is an error (`BadReply`).

  python judge.py audit --teacher-url http://localhost:8000 --data processbench.jsonl
  python judge.py decontaminate --tasks all.jsonl --against hotpotqa.jsonl --out tasks.jsonl
"""
import argparse
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from plumbing import replies
from plumbing.answers import check_by_rule, exact_match, f1
from plumbing.chat_api import BadReply, ChatModel, Usage
from plumbing.cli import InputError, Parser, cli, teacher_flags
from plumbing.decontaminate import decontaminate
from plumbing.records import Record, as_list
from plumbing.replies import Verdict, same_step_cheap
from plumbing.tasks import read_records, read_tasks
from plumbing.thinking import after_thinking
from plumbing.trajectory import Messages, Step, fault_of_turns, render, render_step, step_of
from plumbing.values import positive_share, whole

# What others use of this script; the last three are the rules of plumbing/answers.py.
__all__ = ["PROMPT", "Teacher", "check_answer", "correct_answer", "same_step",
           "check_by_rule", "exact_match", "f1"]

Answers = str | list[str]             # the reference answer, or all that are accepted


# ---- the prompts ----

def read_prompts(path: Path) -> dict[str, str]:
    """The texts of a Markdown file by their `## HEADING`, the text of AGENT in place of every {AGENT}."""
    sections = re.split(r"(?m)^## (\w+)\n", path.read_text(encoding="utf-8"))
    texts = {heading: text.strip("\n") for heading, text in zip(sections[1::2], sections[2::2])}
    return {heading: text.replace("{AGENT}", texts["AGENT"]) for heading, text in texts.items()}


PROMPT = read_prompts(Path(__file__).parent / "assets" / "prompts.md")
PLAN_SYSTEM = PROMPT["PLAN"]
STEP_SYSTEM = PROMPT["STEP"]
VERDICT_SYSTEM = PROMPT["VERDICT"]
CORRECT_SYSTEM = PROMPT["CORRECT"]
SAME_STEP_SYSTEM = PROMPT["SAME_STEP"]
SAME_ANSWER_SYSTEM = PROMPT["SAME_ANSWER"]


# ---- the teacher ----

JUDGE_TEMPERATURE = 0.1               # of a judge of its own, as in the paper


class Teacher(ChatModel):
    """The model that plans, demonstrates, judges and corrects; many threads may ask it at once.

    Every request takes `sample`, the number of a draw from the same prompt, and `usage`, to which calls and
    tokens are added. `judge` is the model that says in its place what is equivalent; None: it does so itself.
    `connection` is what ChatModel takes: role, concurrency, timeout, retries, backoff, cache.
    """

    def __init__(self, url: str, model: str | None = None, *, judge: "Teacher | None" = None,
                 plan_temperature: float = 0.5, step_temperature: float = 0.7,
                 judge_temperature: float = 0.3, correct_temperature: float = 0.9, reasks: int = 1,
                 max_tokens: int = 2048, **connection: Any) -> None:
        super().__init__(url, model, **connection)
        self.judge = judge
        self.temperature = {"plan": plan_temperature, "step": step_temperature, "judge": judge_temperature,
                            "correct": correct_temperature}
        self.reasks = reasks                               # further tries when a reply has a wrong form
        self.max_tokens = max_tokens                       # of a reply, thinking included

    @classmethod
    def from_args(cls, args: argparse.Namespace, **temperatures: float) -> "Teacher":
        """The teacher of `teacher_flags`, with its judge if that is another; TeacherDown if one does not
        answer."""
        teacher = cls(args.teacher_url, args.teacher_model, **options(args), **temperatures)
        teacher.check()
        args.teacher_model = teacher.model                 # for args.json, where no name was given
        if vars(args).get("judge_url"):                    # a script may have no such flag
            teacher.judge = cls.judge_from_args(args)
        return teacher

    @classmethod
    def judge_from_args(cls, args: argparse.Namespace) -> "Teacher | None":
        """Who says what is equivalent: the model at --judge-url, else the teacher, else nobody (None)."""
        if args.judge_url:
            judge = cls(args.judge_url, args.judge_model, role="judge", judge_temperature=JUDGE_TEMPERATURE,
                        **options(args))
            judge.check()
            args.judge_model = judge.model
            return judge
        if args.teacher_url:
            return cls.from_args(args)
        return None

    def plan(self, question: str, *, answers: Answers | None = None, sample: int = 0,
             usage: Usage | None = None) -> str:
        """The first thought, as plain text without tags. It may not hold the answers, which the teacher never
        sees."""
        parts = [("Question", question)]
        return self.ask("plan", PLAN_SYSTEM, parts,
                        lambda raw, last: replies.parse_plan(raw, question, answers), sample, usage)

    def step(self, question: str, messages: Messages, *, sample: int = 0, usage: Usage | None = None) -> str:
        """The next step after `messages`, `<thought>…</thought><code>…</code>`."""
        parts = [("Question", question), ("Trajectory", render(messages))]
        return self.ask("step", STEP_SYSTEM, parts, lambda raw, last: replies.parse_step(raw), sample, usage)

    def verdict(self, question: str, answers: Answers | None, messages: Messages,
                prediction: str | None = None, stop: str | None = None, *, sample: int = 0,
                usage: Usage | None = None) -> Verdict:
        """A `Verdict` on a finished run: the first wrong step, why, and what to do instead."""
        if stop not in (None, "answer"):
            prediction = f"(none: the run ended without an answer, {stop})"
        parts = [("Question", question), ("Reference answer", answers), ("Trajectory", render(messages)),
                 ("Prediction", prediction)]
        steps = step_of(messages)
        return self.ask("judge", VERDICT_SYSTEM, parts,
                        lambda raw, last: replies.parse_verdict(raw, steps), sample, usage)

    def correct(self, question: str, answers: Answers, before: Messages, content: str,
                observation: str | None, analysis: str | None, suggestion: str | None, *, sample: int = 0,
                usage: Usage | None = None) -> str:
        """The step (for step 0 a first thought) that stands after `before` in place of the rejected one."""
        rejected = {"content": f"## Step {step_of(before)}\n{content}", "observation": observation}
        parts = [("Question", question), ("Reference answer", answers), ("Trajectory", render(before)),
                 ("Rejected step", render_step(rejected)), ("Analysis", analysis), ("Suggestion", suggestion)]
        return self.ask("correct", CORRECT_SYSTEM, parts,
                        lambda raw, last: replies.parse_correction(raw, question, answers, before, last),
                        sample, usage)

    def same_step(self, question: str, before: Messages, a: Step, b: Step, *, sample: int = 0,
                  usage: Usage | None = None) -> bool:
        """Whether the steps a and b do the same after `before`."""
        parts = [("Question", question), ("Trajectory", render(before)), ("Step A", render_step(a)),
                 ("Step B", render_step(b))]
        judge = self.judge or self
        return judge.ask("judge", SAME_STEP_SYSTEM, parts, replies.parse_equivalent, sample, usage)

    def same_answer(self, question: str, prediction: str, answers: Answers, *, sample: int = 0,
                    usage: Usage | None = None) -> bool:
        """Whether the prediction says the same as one of the answers."""
        parts = [("Question", question), ("Reference answer", answers), ("Prediction", prediction)]
        judge = self.judge or self
        return judge.ask("judge", SAME_ANSWER_SYSTEM, parts, replies.parse_equivalent, sample, usage)

    def summary(self) -> str:
        """What was asked of the teacher, in one line, and of its judge, in another."""
        if self.judge is None:
            return super().summary()
        return f"{super().summary()}\n{self.judge.summary()}"

    def ask(self, kind: str, system: str, parts: list[tuple[str, Answers | None]],
            parse: Callable[[str, bool], Any], sample: int, usage: Usage | None) -> Any:
        """What `parse` makes of the reply to a prompt; its parts are pairs (heading, text or None).

        parse(reply, last) raises ValueError for an unusable reply: the teacher is then asked again and told
        why. last: whether this is the last try. BadReply if the reply stays unusable. Of a reply that was cut
        off, only a step whose code is complete can be used.
        """
        sections = []
        for heading, text in parts:
            if text is not None:
                sections.append(f"# {heading}\n" + "\n".join(as_list(text)))
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(sections)}]
        messages = prompt
        for attempt in range(self.reasks + 1):
            last = attempt == self.reasks
            request = {"messages": messages, "temperature": self.temperature[kind],
                       "max_tokens": self.max_tokens, "seed": 100 * sample + attempt}
            if kind == "judge":
                request["response_format"] = {"type": "json_object"}
            raw, fault = self.chat(request, usage)
            if fault is None or (kind in ("step", "correct") and "</code>" in raw):
                try:
                    return parse(raw, last)
                except ValueError as problem:
                    fault = fault or str(problem)
            if not last:
                self.count("reasks")
            said = after_thinking(raw) or "(no text)"
            messages = [*prompt, {"role": "assistant", "content": said},
                        {"role": "user", "content": PROMPT["REASK"].format(fault=fault)}]
        self.count("bad_replies")
        raise BadReply(f"the {self.role}'s reply stayed unusable: {fault}", raw)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """How a teacher or a judge is asked, by `teacher_flags`."""
    return {"cache": args.teacher_cache, "timeout": args.timeout, "concurrency": args.concurrency,
            "retries": args.retries, "reasks": args.reasks, "max_tokens": args.teacher_max_tokens}


# ---- equivalence: rules first, then the model ----

def check_answer(teacher: Teacher | None, question: str, prediction: str | None, answers: Answers, *,
                 sample: int = 0, usage: Usage | None = None) -> bool | None:
    """Whether the prediction is right, by rule or, where rules cannot decide, by the teacher's judge.

    None: rules leave it open, and there is nobody to ask (`teacher` is None).
    """
    decided = check_by_rule(prediction, answers)
    if teacher is None:
        return decided
    if decided is not None:
        teacher.count("answers_by_rule")
        return decided
    teacher.count("answers_by_model")
    return teacher.same_answer(question, prediction, answers, sample=sample, usage=usage)


def correct_answer(teacher: Teacher | None, question: str, prediction: str | None, answers: Answers, *,
                   sample: int = 0, usage: Usage | None = None) -> bool:
    """Whether the prediction is right, as `check_answer` says; what is left open counts as wrong."""
    return check_answer(teacher, question, prediction, answers, sample=sample, usage=usage) is True


def same_step(teacher: Teacher | None, question: str, before: Messages, a: Step, b: Step, *, sample: int = 0,
              usage: Usage | None = None) -> bool | None:
    """Whether two steps after `before` do the same: by equal code or observation, else by a model, as above.

    None: code and observation leave it open, and there is nobody to ask (`teacher` is None).
    """
    if same_step_cheap(a, b):
        return True
    if teacher is None:
        return None
    return teacher.same_step(question, before, a, b, sample=sample, usage=usage)


# ---- audit: how well does a teacher find the first error? ----

def known_errors(path: str) -> list[Record]:
    """Runs with `messages` and their known `first_wrong_step`, -1 if none is wrong; InputError.

    A file has either trajectories with that field, or solutions as ProcessBench has them: "problem", "steps"
    and "label".
    """
    _, first = read_records(path)[0]
    is_trajectory = "messages" in first
    number, steps = ("first_wrong_step", "messages") if is_trajectory else ("label", "steps")
    tasks = read_tasks(path, (steps, number))
    for task in tasks:
        where = f"{path}, task {task['id']}"
        if is_trajectory:
            fault = fault_of_turns(task["messages"])
            if fault:
                raise InputError(f'{where}: the field "messages" {fault}')
        else:
            texts = isinstance(task["steps"], list) and all(isinstance(step, str) for step in task["steps"])
            if not texts or not task["steps"]:
                raise InputError(f'{where}: the field "steps" is empty or not a list of texts')
            task["messages"] = [{"role": "user", "content": task["question"]}]
            task["messages"] += [{"role": "assistant", "content": step} for step in task["steps"]]
        last = step_of(task["messages"]) - 1
        if type(task[number]) is not int or not -1 <= task[number] <= last:
            raise InputError(f'{where}: the field "{number}" is neither -1 nor the number of one of its '
                             f"{last + 1} steps, which count from 0")
        task["first_wrong_step"] = task[number]
    return tasks


def named_first_error(teacher: Teacher, task: Record) -> int | None:
    """The first wrong step of a run by the teacher's verdict, -1 if none; None for an unusable reply."""
    try:
        verdict = teacher.verdict(task["question"], task["answer"], task["messages"], task.get("prediction"),
                                  task.get("stop"))
    except BadReply:
        return None
    if verdict.correct:
        return -1
    return verdict.first_wrong_step


def percent(hits: list[bool]) -> float:
    """The share of hits, in percent; 0 of none."""
    return 100 * sum(hits) / max(1, len(hits))


def audit_row(true: list[int], named: list[int | None]) -> dict[str, float]:
    """How the steps that a teacher named compare with the true ones, in per cent.

    Of runs with an error: exact, earlier, later, or none (said to be right); of those without one: correct.
    F1 is the harmonic mean of exact and correct. The rest are unusable replies, which are counted.
    """
    pairs = list(zip(named, true))
    of_error = [(step, error) for step, error in pairs if error >= 0]
    row = {"exact": percent([step == error for step, error in of_error]),
           "earlier": percent([step is not None and 0 <= step < error for step, error in of_error]),
           "later": percent([step is not None and step > error for step, error in of_error]),
           "none": percent([step == -1 for step, _ in of_error]),
           "correct": percent([step == -1 for step, error in pairs if error < 0])}
    row["F1"] = 2 * row["exact"] * row["correct"] / max(1e-9, row["exact"] + row["correct"])
    return row | {"unusable": named.count(None)}


def audit(args: argparse.Namespace) -> None:
    """Print for each file how often the first error is named exactly, earlier, later: see `audit_row`."""
    from tqdm import tqdm
    teacher = Teacher.from_args(args)
    scores = []
    print(f"{'file':30} {'n':>6}" + "".join(f"{name:>9}" for name in audit_row([], [])))
    for path in args.data:
        tasks = known_errors(path)
        with ThreadPoolExecutor(args.concurrency) as pool:
            replies_of = pool.map(lambda task: named_first_error(teacher, task), tasks)
            found = list(tqdm(replies_of, path, len(tasks)))
        row = audit_row([task["first_wrong_step"] for task in tasks], found)
        scores.append(row["F1"])
        shares = [f"{value:9.1f}" for name, value in row.items() if name != "unusable"]
        print(f"{os.path.basename(path):30} {len(tasks):6}{''.join(shares)}{row['unusable']:9}")
    print(f"average F1 of {teacher.model}: {sum(scores) / len(scores):.1f}")
    print("for comparison, on ProcessBench: Qwen2.5-72B-Instruct 61.2, GPT-4o 61.9, QwQ-32B-Preview 71.5")
    print(teacher.summary())


# ---- flags ----

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("Measure a teacher before a run, or clean a file of tasks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="audit | decontaminate")
    p = commands.add_parser("audit",
                            help="how often a teacher names the first wrong step exactly, earlier, later")
    p.add_argument("--data", nargs="+", required=True,
                   help="JSONL: trajectories with first_wrong_step (bench/teacher.py writes some), or "
                        "ProcessBench's problem, steps, label; -1: no error")
    teacher_flags(p, judge=False)
    p.set_defaults(run=audit)
    p = commands.add_parser("decontaminate", help="drop tasks that a benchmark has too")
    p.add_argument("--tasks", required=True, help="JSONL file of training tasks")
    p.add_argument("--against", nargs="+", required=True, help="JSONL files of benchmark tasks")
    p.add_argument("--out", required=True, help="JSONL file for the tasks that stay")
    p.add_argument("--ngram", type=whole(1), default=8, help="words in a row by which questions are compared")
    p.add_argument("--overlap", type=positive_share, default=0.5,
                   help="share of them that makes two questions one")
    p.set_defaults(run=decontaminate)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse_args()
    cli(arguments.run, arguments)
