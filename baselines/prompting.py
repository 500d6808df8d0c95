"""How a model that was not trained here takes part in an evaluation: --prompt and --self-consistent.

  agent    is told the tools, and to answer with a thought and a program (Kang et al., 2025)
  tir      reasons freely, with ```python blocks in between (tool-integrated reasoning)
  cot      reasons in one turn, without tools
  cot-rag  the same, with what one search for the question finds before it
The instructions (assets/prompts.md) stand before the question, in the same message. All four may end with
\\boxed{…}. A turn with neither code nor answer is told so; in react, the trained grammar, it ends the run.

Self-consistent action generation (Agent Distillation, Kang et al., 2025): N candidates for every step, each
run in a fork of the interpreter. Those of the wrong form or with an error are dropped, and the step whose
output occurs most often is taken. If every program fails, the first one stays: the model sees its error.

All tasks are played one step at a time, each step from the messages before it. So every engine can do it, and
what a model makes up after its code, say an observation of its own, is cut off. But sampled tokens are
decoded and encoded again: good for measuring, not for training.
"""
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import env
import judge
from plumbing.answers import boxes, core
from plumbing.engines import Engine
from plumbing.records import Record
from plumbing.search import Search
from plumbing.trajectory import Messages, step_of
from sandbox import Interpreter, Observation

PROGRAM = re.compile(r"(?:<code>\s*)?```(?:py\w*)?[ \t]*\n(.*?)```|<code>(.*?)</code>", re.DOTALL)
NEITHER = Observation("Error: there is neither a program to run nor a final answer.", None, True)


class Candidate(env.Episode):
    """One step in the trained grammar, to be played by an engine after `messages`."""

    def __init__(self, task: Record, messages: Messages, interpreter: Interpreter, max_tokens: int,
                 copy: int = 0) -> None:
        super().__init__({**task, "messages": messages}, interpreter, max_tokens=max_tokens, copy=copy)
        self.last_step = step_of(messages)                 # the next step is the only one
        self.seen: Observation | None = None               # what came of the step

    def act(self, content: str, step: int) -> Observation | None:
        self.seen = self.act_on(content, step)
        return self.seen

    def act_on(self, content: str, step: int) -> Observation | None:
        return super().act(content, step)


class FreeCandidate(Candidate):
    """One step of agent or tir: a program in tags or in a fence, or an answer in a box."""

    def act_on(self, content: str, step: int) -> Observation | None:
        program = PROGRAM.search(content)
        if program:
            self.messages[-1]["content"] = content[:program.end()]
            code = program[1] or program[2] or ""
            return self.interpreter.run(code.strip())
        return boxed_answer(content) or NEITHER


class ChainOfThought(Candidate):
    """The one turn of cot: no program is run."""

    def act_on(self, content: str, step: int) -> Observation | None:
        return boxed_answer(content)


CANDIDATES = {"react": Candidate, "agent": FreeCandidate, "tir": FreeCandidate, "cot": ChainOfThought,
              "cot-rag": ChainOfThought}


def boxed_answer(content: str) -> Observation | None:
    """The observation that ends a run with the answer in \\boxed{…}; None if there is no box."""
    if not boxes(content):
        return None
    return Observation("None", core(content), False)


def most_frequent(candidates: list[Candidate]) -> Candidate:
    """The first candidate with the most frequent output; those with an error count only if all have one."""
    ran = [c for c in candidates if c.stop in ("answer", "max_steps")]
    without_error = [c for c in ran if not c.seen.error]
    left = without_error or ran or candidates
    outputs = [None if c.seen is None else (c.seen.text, c.seen.answer) for c in left]
    output, _ = Counter(outputs).most_common(1)[0]
    return left[outputs.index(output)]


def tokens_of(engine: Engine, messages: Messages) -> int:
    """Length of the messages in tokens; 0 for an endpoint, which knows no tokens."""
    if not hasattr(engine, "chat"):
        return 0
    input_ids, _ = engine.chat.encode(messages)
    return len(input_ids)


def propose(now: Candidate, task: Record, n: int, tokens_left: int) -> list[Candidate]:
    """n candidates for the step after `now`; if they are several, each in a fork of the interpreter."""
    candidates = []
    for copy in range(n):
        interpreter = now.interpreter.fork() if n > 1 else now.interpreter
        candidates.append(type(now)(task, now.messages, interpreter, tokens_left, copy))
    return candidates


def take(now: Candidate, candidates: list[Candidate]) -> Candidate:
    """The candidate that becomes the next state; the interpreters of all others are closed."""
    chosen = most_frequent(candidates)
    for other in [now, *candidates]:
        if other.interpreter is not chosen.interpreter:
            other.interpreter.close()
    return chosen


def retrieve(task: Record, prompt: str, search: Search | None) -> str:
    """What one search for the question finds, for cot-rag; "" for other prompts. May raise SearchFailed."""
    if prompt != "cot-rag" or search is None:
        return ""
    return search(task["question"])


def opening(task: Record, prompt: str, pages: str = "") -> Messages:
    """What the model is asked first: the question, for all prompts but react after instructions.

    pages: what was found for the question. baselines/cot.py trains on these very messages.
    """
    text = "{question}"
    if prompt != "react":
        text = judge.PROMPT["ASK_" + prompt.upper().replace("-", "_")]
    given = {"{question}": task["question"], "{pages}": pages}
    content = re.sub(r"\{question\}|\{pages\}", lambda name: given[name[0]], text)    # both at once
    return [{"role": "user", "content": content}]


def opened(tasks: list[Record], prompt: str, search: Search | None = None, threads: int = 16) -> list[Record]:
    """The tasks with the `messages` that the model is asked first. threads: searches at once, for cot-rag."""
    def start(task: Record) -> Record:
        return task | {"messages": opening(task, prompt, retrieve(task, prompt, search))}

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(start, tasks))


def rollout(engine: Engine, tasks: list[Record], prompt: str, n: int, *, max_steps: int, max_tokens: int,
            search: Search | None = None, progress: Any = None, **sampling: Any) -> list[Record]:
    """`env.rollout` for tasks that are `opened` by a prompt, with n candidates for every step."""
    now: list[Candidate] = []                              # where each task stands
    for task in tasks:
        now.append(CANDIDATES[prompt](task, task["messages"], Interpreter(search), max_tokens))
    prompt_tokens = [tokens_of(engine, c.messages) for c in now]
    usage = [Counter() for _ in tasks]
    live = list(range(len(tasks)))

    for _ in range(max_steps + 1):                         # the plan is not counted
        played: dict[int, list[Candidate]] = {}
        for i in live:
            tokens_left = max_tokens - (tokens_of(engine, now[i].messages) - prompt_tokens[i])
            if tokens_left < 1:
                now[i].stop = "max_tokens"
            else:
                played[i] = propose(now[i], tasks[i], n, tokens_left)
        if played:
            together = [c for candidates in played.values() for c in candidates]
            engine.play(together, **sampling)
        for i, candidates in played.items():
            usage[i].update(student_calls=n, student_tokens=sum(sum(c.loss_mask) for c in candidates))
            now[i] = take(now[i], candidates)
        unfinished = [i for i in played if now[i].stop == "max_steps"]       # a candidate has only one step
        if progress is not None:
            progress.update(len(live) - len(unfinished))
        live = unfinished
    if progress is not None:
        progress.update(len(live))                         # no steps left
    for c in now:
        c.interpreter.close()
    return [c.trajectory() | {"usage": dict(used)} for c, used in zip(now, usage)]
