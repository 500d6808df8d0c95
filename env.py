"""The environment of the agent: the agent loop, and the engines that generate.

The interpreter that runs the agent's code is in assets/sandbox.py: one sealed process per trajectory, with
`run`, `fork` and `close`; what it covers and what not is said there. Its web search is in assets/search.py.
Here, top-down: the turn grammar and the chat template (`Chat`), which make rollouts and training see the same
tokens; `Episode`, one rollout in progress; `rollout`; the engine that generates with a Transformers model.
vLLM and endpoints are in assets/engines.py; all engines do the same: `play(episodes)`.
"""
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

from plumbing.search import SearchFailed
from plumbing.trajectory import code_of, step_of
from sandbox.interpreter import Interpreter, Observation


# ---- agent loop ----

PLAN = re.compile(r"<first_thought>.*?</first_thought>", re.DOTALL)


class ReplayMismatch(Exception):
    """A recorded observation differs from what its code prints now."""


def act(content, step, interpreter):
    """Run what the policy wrote as its turn -> Observation, or None if there is no plan (step 0) or code."""
    code = code_of(content)
    if code is not None:
        return interpreter.run(code)
    return Observation("None", None, False) if step == 0 and PLAN.search(content) else None


def replay(messages, interpreter):
    """Bring a fresh interpreter to the state after `messages`; every observation must be the recorded one."""
    for step, (said, seen) in enumerate(zip(messages[1::2], messages[2::2])):
        now = act(said["content"], step, interpreter)
        if now is None or "Observation: " + now.text != seen["content"]:
            raise ReplayMismatch(f"step {step}: recorded {seen['content']!r}, now {now and now.text!r}")
    return interpreter


class Chat:
    """A tokenizer's chat template, taken apart into the constant strings between the messages' contents.

    Rollouts and training put the same strings together, so both see the same tokens, the newline after an end
    of turn included, and sampled tokens are never decoded and encoded again. Control tokens inside a content
    (say a search snippet with "<|im_end|>") are broken up first: text cannot open or end a turn.
    """

    def __init__(self, tokenizer):
        name, self.tokenizer = tokenizer.name_or_path, tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f'{name}: the tokenizer has no chat template; an "instruct" model is needed')
        added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        control = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        q, a, o = ({"role": r, "content": f"[[{i}]]"} for i, r in enumerate(("user", "assistant", "user")))
        self.start, self.open = self.template([q], True).split("[[0]]")  # "<|im_end|>\n<|im_start|>…"
        one, two = self.template([q, a]), self.template([q, a, o], True)
        self.close = one.split("[[1]]")[-1]                              # after the assistant, "<|im_end|>\n"
        self.between, last = two.split("[[1]]")[-1].split("[[2]]")        # … and on to the observation
        end = self.ids(self.close)[:1]
        if two[:len(one)] != one or last != self.open or end != [tokenizer.eos_token_id]:
            raise ValueError(f"{name}: the chat template rewrites history, or does not end the assistant's "
                             "turn with the end-of-sequence token; training on it would differ from using it")
        self.end, self.end_text = end[0], tokenizer.decode(end)

    def template(self, messages, generate=False):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def clean(self, text):
        """Break up control tokens: "<|im_end|>" -> "< |im_end|>"."""
        return self.control.sub(lambda m: m[0][0] + " " + m[0][1:], text)

    def observation(self, content):
        """Text between two turns of the policy, its end-of-turn token excluded."""
        return self.between[len(self.end_text):] + self.clean(content) + self.open

    def encode(self, messages):
        """-> input_ids, loss_mask: 1 on what the policy writes (contents, end of turn), 0 on everything else.

        question, "<thought>a", "Observation: 1"
        -> [q q] 0 0, [<thought> a end] 1 1 1, [\\n Observation : 1 …] 0 0 0 0
        """
        pieces = [self.start + self.clean(messages[0]["content"]) + self.open]
        for m in messages[1:]:
            mine = m["role"] == "assistant"
            pieces.append(self.clean(m["content"]) + self.end_text if mine
                          else self.observation(m["content"]))
        if messages[-1]["role"] == "assistant":
            whole = self.template([{**m, "content": self.clean(m["content"])} for m in messages])
            if "".join(pieces) + self.close[len(self.end_text):] != whole:
                raise ValueError(f"the chat template changes a message: {whole[:200]!r}…")
        encoded = self.ids(pieces)
        return sum(encoded, []), [k % 2 for k, piece in enumerate(encoded) for _ in piece]


class Episode:
    """One rollout: the messages, the interpreter behind them and, for engines of tokens, ids and logps."""

    def __init__(self, start, interpreter, *, max_steps=8, max_tokens=4096, copy=0):
        played = ("messages", "prediction", "correct", "stop", "usage")
        self.task = {k: v for k, v in start.items() if k not in played}
        self.messages = list(start.get("messages") or [{"role": "user", "content": start["question"]}])
        self.interpreter, self.states = interpreter, {}  # states: step -> interpreter before that step
        self.last_step = max(step_of(self.messages), 1) + max_steps - 1
        self.max_steps, self.max_tokens, self.calls, self.copy = max_steps, max_tokens, 0, copy
        self.prediction = self.stop = self.failure = None
        self.ids, self.loss_mask, self.logps, self.prompt = [], [], [], 0

    def begin(self, chat):
        self.ids = chat.encode(self.messages)[0]
        self.prompt = len(self.ids)
        self.loss_mask, self.logps = [0] * self.prompt, [0.0] * self.prompt

    def dice(self, seed):
        """Seed of what is sampled next: by start and copy alone, not by the batch, ranks or restarts."""
        start = f"{seed} {self.copy} {self.task} {self.messages}"
        return zlib.crc32(start.encode(errors="replace")) >> 1

    @property
    def room(self):
        """New tokens that still fit."""
        return self.max_tokens - (len(self.ids) - self.prompt)

    def extend(self, ids, logps=None):
        self.ids += ids
        self.loss_mask += [int(logps is not None)] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps

    def act(self, content, step):
        return act(content, step, self.interpreter)

    def turn(self, content, complete=True):
        """Take the policy's turn, run its code -> the observation message, or None at the rollout's end."""
        step = step_of(self.messages)
        self.messages.append({"role": "assistant", "content": content})
        self.calls += 1
        self.states[step] = self.interpreter.fork()
        try:
            seen = self.act(content, step) if complete else None
        except SearchFailed as e:                          # never an observation that would train the model
            seen, self.failure = None, str(e)
        if seen is None:
            self.stop = "max_tokens" if not complete else "format" if self.failure is None else "failed"
            return None
        if seen.answer is not None:
            self.stop, self.prediction = "answer", seen.answer
            return None
        self.stop = "max_steps" if step >= self.last_step else None
        self.messages.append({"role": "user", "content": "Observation: " + seen.text})
        return None if self.stop else self.messages[-1]["content"]

    def token_turn(self, chat, ids, logps):
        """`turn` for sampled tokens -> the tokens that stand between this turn and the next, or None."""
        complete = ids[-1:] == [chat.end]
        self.extend(ids, logps)
        seen = self.turn(chat.tokenizer.decode(ids[:-1] if complete else ids), complete)
        if seen is None:
            return None
        between = chat.ids(chat.observation(seen))
        if len(between) >= self.room:
            self.stop = "max_tokens"
            return None
        self.extend(between)
        return between

    def trajectory(self):
        usage = {"student_calls": self.calls, "student_tokens": sum(self.loss_mask)}
        ended = {"messages": self.messages, "prediction": self.prediction, "stop": self.stop, "usage": usage}
        return {**self.task, **ended}


def make_episodes(starts, copies=1, max_steps=8, max_tokens=4096, search=None, skipped=None):
    """Episodes ready to play, copies of a start adjacent. A start whose prefix does not replay is appended
    to `skipped` with the reason, or raises it (ReplayMismatch, SearchFailed) where there is no such list."""
    def prepare(start):
        try:
            return replay(start.get("messages") or [], Interpreter(search))
        except (ReplayMismatch, SearchFailed) as e:
            if skipped is None:
                raise
            skipped.append((start, e))
    with ThreadPoolExecutor(16) as pool:
        prepared = list(pool.map(prepare, starts))
    episodes, limits = [], dict(max_steps=max_steps, max_tokens=max_tokens)
    for start, interpreter in zip(starts, prepared):
        if interpreter is not None:
            episodes += [Episode(start, interpreter.fork(), copy=i, **limits) for i in range(copies)]
            interpreter.close()
    return episodes


def rollout(engine, starts, *, copies=1, max_steps=8, max_tokens=4096, search=None, progress=None,
            **sampling):
    """Play every start (a task, or a record whose `messages` end before a step) `copies` times.
    -> trajectories, copies adjacent.

    A prefix is replayed once in one interpreter and compared with its record, then forked for each copy.
    Raises ReplayMismatch; `sampling` is temperature, top_p, top_k, seed.
    """
    episodes = make_episodes(starts, copies, max_steps, max_tokens, search)
    engine.play(episodes, progress=progress, **sampling)
    return [e.trajectory() for e in episodes]
