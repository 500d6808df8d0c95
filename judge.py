"""The teacher and the judge: answers, plans, steps, first errors, corrections, equivalence, rewards.

Every stage imports from here: `Teacher`, a client of any OpenAI-compatible chat endpoint (its key in
TEACHER_API_KEY or OPENAI_API_KEY), the key-step reward, and the JSON-lines files in which the stages meet.
The prompts are in assets/prompts.md; what needs no model (is an answer right, can a reply be used, does a
correction give the answer away) is in assets/rules.py.

Differences from the paper: the model judges only answers that rules leave open; a reply of the wrong form
is asked for once more, naming the fault, and then fails aloud (`BadReply`).

  python judge.py audit --teacher-url http://localhost:8000 --data processbench.jsonl
  python judge.py decontaminate --tasks all.jsonl --against hotpotqa.jsonl --out tasks.jsonl
"""
import argparse
import hashlib
import json
import os
import re
import sqlite3
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from plumbing.answers import check_by_rule, exact_match, f1, math_equal  # noqa: F401
from plumbing.chat_api import SESSION, BadReply, TeacherDown, chat_completion, endpoint
from plumbing.cli import Help, InputError, add_teacher_flags, cli
from plumbing.records import append_jsonl, as_list, read_jsonl, read_tasks
from plumbing.replies import (Verdict, parse_correction, parse_equivalent, parse_plan, parse_step,  # noqa: F401
                              parse_verdict)
from plumbing.trajectory import render, render_step, step_of

ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")
with open(os.path.join(ASSETS, "prompts.md"), encoding="utf-8") as prompts:
    PROMPT = dict(re.findall(r"(?ms)^## (\w+)\n+(.*?)\n*(?=^## |\Z)", prompts.read()))
PLAN_SYSTEM, STEP_SYSTEM, VERDICT_SYSTEM, CORRECT_SYSTEM, SAME_STEP_SYSTEM, SAME_ANSWER_SYSTEM = (
    PROMPT[name].replace("{AGENT}", PROMPT["AGENT"])
    for name in ("PLAN", "STEP", "VERDICT", "CORRECT", "SAME_STEP", "SAME_ANSWER"))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Measure a teacher before a run, or clean a file of tasks.",
                                     formatter_class=Help)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("audit", formatter_class=Help,
                            help="first-error accuracy and F1 of a teacher (ProcessBench)")
    p.add_argument("--data", nargs="+", required=True, help="JSONL: problem, steps, label (first error, -1)")
    add_teacher_flags(p)
    p = commands.add_parser("decontaminate", formatter_class=Help, help="drop tasks that a benchmark has too")
    p.add_argument("--tasks", required=True, help="JSONL file of training tasks")
    p.add_argument("--against", nargs="+", required=True, help="JSONL files of benchmark tasks")
    p.add_argument("--out", required=True, help="JSONL file for the tasks that stay")
    p.add_argument("--ngram", type=int, default=8, help="words in a row by which questions are compared")
    p.add_argument("--overlap", type=float, default=0.5, help="share of them that makes two questions one")
    return parser.parse_args(argv)


# ---- the teacher ----

class Teacher:
    """A chat model behind an OpenAI-compatible endpoint, safe to call from many threads. Every request takes
    `sample`, the number of a draw from the same prompt, and `usage`, a dict to which calls and tokens are
    added, those of cached replies too, so that a record does not depend on restarts."""

    def __init__(self, url, model=None, *, plan_temperature=0.5, step_temperature=0.7, judge_temperature=0.3,
                 correct_temperature=0.9, concurrency=64, timeout=600, retries=12, reasks=1, backoff=0.5,
                 cache=None):
        self.url, self.model, self.reasks = url, model, reasks
        self.temperature = {"plan": plan_temperature, "step": step_temperature, "judge": judge_temperature,
                            "correct": correct_temperature}
        key = os.environ.get("TEACHER_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = dict(headers=self.headers, timeout=timeout, retries=retries, backoff=backoff,
                         refused=set())
        self.counts, self.lock, self.slots = Counter(), threading.Lock(), threading.Semaphore(concurrency)
        self.asking = weakref.WeakValueDictionary()        # request: the lock of those who ask it
        try:
            self.cache = sqlite3.connect(cache or "", timeout=60, check_same_thread=False,
                                         isolation_level=None)
            self.cache.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
        except sqlite3.Error as error:
            raise InputError(f"--teacher-cache {cache} cannot be used: {error}") from None

    @classmethod
    def from_args(cls, args, **temperatures):
        """The teacher of `add_teacher_flags`, checked to be there."""
        if args.concurrency < 1:
            raise InputError(f"--concurrency {args.concurrency}: at least one request has to be in flight")
        return cls(args.teacher_url, args.teacher_model, cache=args.teacher_cache, timeout=args.timeout,
                   concurrency=args.concurrency, retries=args.retries, reasks=args.reasks,
                   **temperatures).check()

    def check(self):
        """Itself; TeacherDown, in one clear sentence, if the model is not served (default: the first)."""
        url = endpoint(self.url) + "/models"
        try:
            reply = SESSION.get(url, timeout=10, headers=self.headers)
            names = [model["id"] for model in reply.json()["data"]] if reply.ok else [self.model]
            self.model = self.model or names[0]
        except (requests.RequestException, LookupError, TypeError) as error:
            raise TeacherDown(f"no teacher answers at {url} ({type(error).__name__})") from None
        if self.model is None or self.model not in names:
            raise TeacherDown(f"{url} does not list the model {self.model or '(unnamed)'}, but {names[:5]}")
        return self

    def count(self, *names, **more):
        with self.lock:
            self.counts.update(names, **more)

    def summary(self):
        return "teacher: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.counts.items())

    def chat(self, kind, messages, attempt, sample=0, usage=None):
        """The text of one reply, from the cache if this very request was answered before."""
        body = {"model": self.model, "messages": messages, "temperature": self.temperature[kind],
                "max_tokens": 2048, "seed": 100 * sample + attempt}
        body |= {"response_format": {"type": "json_object"}} if kind == "judge" else {}
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self.lock:
            asking = self.asking.setdefault(key, threading.Lock())
        with asking:                                       # who asks the same meanwhile waits for this reply
            with self.lock:
                cached = self.cache.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
            if not cached:
                with self.slots:
                    reply = chat_completion(self.url, body, **self.http)
                with self.lock:
                    self.cache.execute("REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))
        reply = json.loads(cached[0]) if cached else reply
        spent = {name: int(reply["usage"].get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        self.count(**{"cached": 1} if cached else {"calls": 1, "retries": reply["retries"], **spent})
        for name, n in {"calls": 1, **spent}.items() if usage is not None else ():
            usage[name] = usage.get(name, 0) + n
        return re.sub(r"(?s)^.*</think>", "", reply["message"]["content"]).strip()

    def ask(self, kind, system, parse, how, **parts):
        """parse(reply, last). While it raises ValueError, asked again `reasks` times, naming the fault."""
        user = "\n\n".join(f"# {heading.replace('_', ' ')}\n" + "\n".join(as_list(part))
                           for heading, part in parts.items() if part is not None)
        prompt = messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        for attempt in range(self.reasks + 1):
            raw = self.chat(kind, messages, attempt, **how)
            try:
                return parse(raw, attempt == self.reasks)
            except ValueError as problem:
                fault = str(problem)
            self.count("reasks" if attempt < self.reasks else "bad_replies")
            messages = prompt + [{"role": "assistant", "content": raw},
                                 {"role": "user", "content": PROMPT["REASK"].format(fault=fault)}]
        raise BadReply(f"the teacher's reply stayed unusable: {fault}", raw)

    def plan(self, question, **how):
        """The first thought, as plain text without tags."""
        return self.ask("plan", PLAN_SYSTEM, lambda raw, last: parse_plan(raw), how, Question=question)

    def step(self, question, messages, **how):
        """The next step after `messages`, `<thought>…</thought><code>…</code>`."""
        return self.ask("step", STEP_SYSTEM, lambda raw, last: parse_step(raw), how, Question=question,
                        Trajectory=render(messages))

    def verdict(self, question, answers, messages, prediction=None, stop=None, **how):
        """A `Verdict` on a finished run: the first wrong step, why, and what to do instead."""
        if stop not in (None, "answer"):
            prediction = f"(none: the run ended without an answer, {stop})"
        steps = step_of(messages)
        return self.ask("judge", VERDICT_SYSTEM, lambda raw, last: parse_verdict(raw, steps), how,
                        Question=question, Reference_answer=answers, Trajectory=render(messages),
                        Prediction=prediction)

    def correct(self, question, answers, before, content, observation, analysis, suggestion, **how):
        """The one step (a first thought for step 0) to stand after `before` in place of the rejected one."""
        rejected = {"content": f"## Step {step_of(before)}\n{content}", "observation": observation}
        return self.ask("correct", CORRECT_SYSTEM,
                        lambda raw, last: parse_correction(raw, question, answers, before, last), how,
                        Question=question, Reference_answer=answers, Trajectory=render(before),
                        Rejected_step=render_step(rejected), Analysis=analysis, Suggestion=suggestion)

    def same_step(self, question, before, a, b, **how):
        """Whether steps a and b, {"content", "observation"}, do the same after `before`."""
        return self.ask("judge", SAME_STEP_SYSTEM, parse_equivalent, how, Question=question,
                        Trajectory=render(before), Step_A=render_step(a), Step_B=render_step(b))

    def same_answer(self, question, prediction, answers, **how):
        """Whether the prediction says the same as one of the answers."""
        return self.ask("judge", SAME_ANSWER_SYSTEM, parse_equivalent, how, Question=question,
                        Reference_answer=answers, Prediction=prediction)


def correct_answer(teacher, question, prediction, answers, **how):
    """Whether the prediction is right, by rule or, where rules cannot decide, by the teacher (if any)."""
    decided = check_by_rule(prediction, answers)
    if not teacher:
        return bool(decided)
    teacher.count("answers_by_model" if decided is None else "answers_by_rule")
    return teacher.same_answer(question, prediction, answers, **how) if decided is None else decided


def key_step_reward(correct, same_as_chosen, same_as_rejected):
    """1 for a right answer; else 0.5 for the teacher's step, 0 for the rejected one, 0.1 for any other."""
    return 1.0 if correct else 0.5 if same_as_chosen else 0.0 if same_as_rejected else 0.1


# ---- files ----


# ---- commands ----

def audit(args):
    """ProcessBench: accuracy on solutions with an error and on those without, and their harmonic mean."""
    from tqdm import tqdm
    teacher, scores = Teacher.from_args(args), []

    def first_error(task):
        messages = [{"role": "user", "content": task["question"]}]
        messages += [{"role": "assistant", "content": step} for step in task["steps"]]
        try:
            verdict = teacher.verdict(task["question"], task["answer"], messages)
            return -1 if verdict.correct else verdict.first_wrong_step
        except BadReply:
            return None

    print(f"{'file':30} {'n':>6} {'error':>7} {'correct':>8} {'F1':>6} {'unusable':>9}")
    for path in args.data:
        tasks = read_tasks(path, ("steps", "label"))
        for task in tasks:
            if not isinstance(task["steps"], list) or not isinstance(task["label"], int):
                raise InputError(f'{path}, task {task["id"]}: "steps" is not a list or "label" not a number')
        with ThreadPoolExecutor(args.concurrency) as pool:
            found = list(tqdm(pool.map(first_error, tasks), path, len(tasks)))
        hits = [[k == t["label"] for k, t in zip(found, tasks) if (t["label"] < 0) == sound]
                for sound in (False, True)]
        rates = [100 * sum(group) / max(1, len(group)) for group in hits]
        scores.append(2 * rates[0] * rates[1] / max(1e-9, sum(rates)))
        print(f"{os.path.basename(path):30} {len(tasks):6} {rates[0]:7.1f} {rates[1]:8.1f} {scores[-1]:6.1f} "
              f"{found.count(None):9}")
    print(f"average F1 of {teacher.model}: {sum(scores) / len(scores):.1f}\nfor comparison, on ProcessBench: "
          f"Qwen2.5-72B-Instruct 61.2, GPT-4o 61.9, QwQ-32B-Preview 71.5\n{teacher.summary()}")


def word_ngrams(text, n):
    """-> the words of a text, normalised, and the set of its n-grams; a Chinese sign is a word."""
    words = re.findall(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+", text.lower())
    return " ".join(words), {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}


def decontaminate(args):
    """Drops tasks whose question stands in a benchmark, word for word or nearly, and repeats; counts both."""
    def questions(path):
        return [word_ngrams(task["question"], args.ngram) for task in read_tasks(path, required=())]

    def close(grams, others):
        return len(grams & others) >= args.overlap * min(len(grams), len(others)) > 0

    tasks, records, drop, kept = questions(args.tasks), list(read_jsonl(args.tasks)), set(), set()
    for path in args.against:
        benchmark = dict(questions(path))
        every = set().union(*benchmark.values())
        exact = [text for text, _ in tasks if text in benchmark]
        near = [text for text, grams in tasks if text not in benchmark and not grams.isdisjoint(every)
                and any(close(grams, others) for others in benchmark.values())]
        print(f"{path} ({len(benchmark)}): {len(exact)} tasks hold one word for word, {len(near)} nearly")
        print(*(f"    {text[:100]}" for text in exact[:2] + near[:3]), sep="\n")
        drop |= {*exact, *near}
    with open(args.out, "w", encoding="utf-8") as file:
        for (text, _), (_, record) in zip(tasks, records):
            if text not in drop and text not in kept:
                append_jsonl(file, record)
                kept.add(text)
    dropped = sum(text in drop for text, _ in tasks)
    print(f"{args.tasks}: {len(tasks)} tasks, {dropped} dropped as benchmark questions, "
          f"{len(tasks) - dropped - len(kept)} as repeated, {len(kept)} kept in {args.out}")


if __name__ == "__main__":
    arguments = parse_args()
    cli({"audit": audit, "decontaminate": decontaminate}[arguments.command], arguments)
