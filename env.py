"""The agent and its environment: what every stage in which a model acts is built on.

  Chat      the chat template as constant strings, so that rollouts and training see the same tokens
  act       one turn of the policy, run in the interpreter -> its observation
  replay    the state after recorded turns, every observation compared with the record
  Episode   one rollout in progress
  rollout   episodes from tasks or prefixes, played by an engine -> trajectories

The interpreter that runs the agent's code is a sealed process of its own; see sandbox/README.md for what it
covers. What generates is in plumbing/engines.py, the web search in plumbing/search.py.
"""
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from plumbing import spending
from plumbing.chat_template import apply_template, control_ids, control_tokens, take_apart
from plumbing.cli import InputError
from plumbing.engines import Engine
from plumbing.records import Record
from plumbing.search import Search, SearchFailed
from plumbing.trajectory import Messages, code_of, step_of
from sandbox import Interpreter, Observation

NO_PROGRAM = Observation("None", None, False)               # what is seen of a plan, which runs nothing
PLAN = re.compile(r"<first_thought>.*?</first_thought>", re.DOTALL | re.IGNORECASE)


# ---- the chat template ----

class Chat:
    """A tokenizer's chat template, taken apart into the constant strings between the messages' contents.

    Rollouts and training put the same strings together, so both see the same tokens, the newline after an end
    of turn included, and sampled tokens are never decoded and encoded again. Contents are stripped, as some
    templates do. Control tokens inside a content (say a search snippet with "<|im_end|>") are broken up: text
    cannot open or end a turn. Raises ValueError for a template that training could not keep to.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        try:
            self.start, self.open, self.close, self.between = take_apart(tokenizer)
        except ValueError as error:
            name = tokenizer.name_or_path or "tokenizer"
            raise ValueError(f"{name}: {error}; another can be given with --chat-template FILE, as "
                             "assets/chatml.jinja") from error
        self.control = control_tokens(tokenizer)
        self.end: int = tokenizer.eos_token_id                           # the token that ends a turn
        self.end_text: str = tokenizer.eos_token
        self.stray = control_ids(tokenizer) - {self.end}                 # tokens that have no place in a turn

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, nothing added. A list of texts gives a list of such lists."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def clean(self, text: str) -> str:
        """Strip a content and break up its control tokens: "<|im_end|>\n" -> "< |im_end|>"."""
        text = text.encode("utf-8", "replace").decode()    # no tokenizer takes half of a surrogate pair
        return self.control.sub(lambda found: found[0][0] + " " + found[0][1:], text.strip())

    def content(self, message: dict[str, str]) -> str:
        """What the model sees of a message. In the policy's own turn a control token is nothing to learn."""
        text = message["content"]
        if message["role"] == "assistant":
            text = self.control.sub("", text)
        return self.clean(text)

    def observation(self, content: str) -> str:
        """The text between two turns of the policy, without the end-of-turn token, which the policy wrote."""
        return self.between[len(self.end_text):] + self.clean(content) + self.open

    def encode(self, messages: Messages) -> tuple[list[int], list[int]]:
        """-> input_ids, loss_mask (T): 1 only on the policy's own tokens (contents, ends of turns).

        question, "<thought>a", "Observation: 1"
        -> [q q] 0 0, [<thought> a end] 1 1 1, [\\n Observation : 1 …] 0 0 0 0
        Raises ValueError if the template changes a message.
        """
        messages = [{**message, "content": self.content(message)} for message in messages]
        pieces = [self.start + messages[0]["content"] + self.open]
        by_policy = [0]                                                  # who wrote each piece
        for message in messages[1:]:
            if message["role"] == "assistant":
                pieces.append(message["content"] + self.end_text)
                by_policy.append(1)
            else:
                pieces.append(self.observation(message["content"]))
                by_policy.append(0)
        if messages[-1]["role"] == "assistant":
            whole = apply_template(self.tokenizer, messages)
            if "".join(pieces) + self.close[len(self.end_text):] != whole:
                raise ValueError(f"the chat template changes a message: {whole[:200]!r}…")
        input_ids, loss_mask = [], []
        for tokens, mine in zip(self.ids(pieces), by_policy):
            input_ids += tokens
            loss_mask += [mine] * len(tokens)
        return input_ids, loss_mask


def load_chat(path: str, template: str | None = None) -> Chat:
    """The Chat of a Hugging Face folder or hub name; template: a jinja file to use instead of its own.

    Raises InputError, which names them.
    """
    from plumbing.models import load_tokenizer
    tokenizer = load_tokenizer(path)
    try:
        if template is not None:
            with open(template, encoding="utf-8") as file:
                tokenizer.chat_template = file.read()
        return Chat(tokenizer)
    except ValueError as error:
        given = f"--chat-template {template}: " if template else ""
        raise InputError(f"{given}{error}") from None


# ---- one turn, and the state after recorded turns ----

class ReplayMismatch(Exception):
    """A recorded observation differs from what its code prints now."""


def act(content: str, step: int, interpreter: Interpreter) -> Observation | None:
    """Run what the policy wrote as its turn. None: it has the wrong form, no code and no plan (step 0)."""
    code = code_of(content)
    if code is not None:
        return interpreter.run(code)
    if step == 0 and PLAN.search(content):
        return NO_PROGRAM
    return None


def replay(messages: Messages, interpreter: Interpreter) -> Interpreter:
    """Bring a fresh interpreter to the state after `messages`.

    Raises ReplayMismatch if an observation is not the recorded one.
    """
    for step, (turn, recorded) in enumerate(zip(messages[1::2], messages[2::2])):
        now = act(turn["content"], step, interpreter)
        text = None if now is None else now.text
        if text is None or "Observation: " + text != recorded["content"]:
            raise ReplayMismatch(f"step {step}: recorded {recorded['content']!r}, now {text!r}")
    return interpreter


# ---- one rollout ----

PLAYED = ("messages", "prediction", "correct", "stop", "usage")          # fields that a rollout writes anew


class Episode:
    """One rollout: the messages, the interpreter behind them and, for engines of tokens, ids and logps."""

    is_question = True                              # its first message is: an endpoint has to take that

    def __init__(self, start: Record, interpreter: Interpreter, *, max_steps: int = 8, max_tokens: int = 4096,
                 copy: int = 0, on_end: "Callable[[Episode], None] | None" = None) -> None:
        """start: a task, or a record whose `messages` end before a step; the interpreter is in that state.
        on_end: called with the episode when a turn of tokens has ended it, from the thread that ran its code.
        """
        self.task = {name: value for name, value in start.items() if name not in PLAYED}
        self.messages: Messages = list(start.get("messages") or [])
        if not self.messages:
            self.messages.append({"role": "user", "content": start["question"]})
        self.interpreter = interpreter
        self.states: dict[int, Interpreter] = {}    # step -> the interpreter as it was before that step
        self.max_steps = max_steps                  # thought–code steps that the policy may add
        self.max_tokens = max_tokens                # tokens that may follow the start, observations included
        self.first_step = step_of(self.messages)    # the first one that the policy writes
        self.last_step = max(self.first_step, 1) + max_steps - 1                 # the plan is not counted
        self.copy = copy                            # which of several rollouts from the same start
        self.on_end = on_end
        self.calls = 0                              # turns of the policy so far
        self.programs = 0                           # turns whose code was run
        self.failed_programs = 0                    # those that raised an error or were killed
        # ---- how it ended ----
        self.prediction: str | None = None
        self.stop: str | None = None                # answer | max_steps | max_tokens | format | failed
        self.failure: str | None = None             # why a search failed, for `failed`
        # ---- tokens (T); an engine of texts leaves them empty ----
        self.ids: list[int] = []
        self.loss_mask: list[int] = []              # 1 only on sampled tokens
        self.logps: list[float] = []                # of sampled tokens when they were drawn, elsewhere 0
        self.prompt_length = 0                      # tokens before the first sampled one
        self.inherited = 0                          # tokens after them that another episode sampled or saw

    def begin(self, chat: Chat) -> None:
        """Encode what stands there before the first token is sampled."""
        self.ids, _ = chat.encode(self.messages)
        self.prompt_length = len(self.ids)
        self.loss_mask = [0] * self.prompt_length
        self.logps = [0.0] * self.prompt_length

    def sampling_seed(self, seed: int) -> int:
        """Seed of what is sampled next: by seed, copy and messages, not by batch, ranks or restarts.

        A start's `place` (plumbing/starts.py), or the `run` of several (eval.py), sets apart what is alike.
        """
        place = self.task.get("place")
        if place is None:
            place = self.task.get("run") or None               # run 0 as if it were the only one
        start = f"{seed} {self.copy} {self.task.get('id')} {place} {self.messages}"
        return zlib.crc32(start.encode(errors="replace")) >> 1

    @property
    def tokens_left(self) -> int:
        """New tokens that still fit."""
        return self.max_tokens - (len(self.ids) - self.prompt_length)

    def act(self, content: str, step: int) -> Observation | None:
        """How a turn is run; baselines/prompting.py has other ways."""
        return act(content, step, self.interpreter)

    def turn(self, content: str, complete: bool = True) -> str | None:
        """Take the policy's turn, run its code -> the observation message, or None at the rollout's end.

        complete: False for a turn that was cut off at the limit of tokens.
        """
        step = step_of(self.messages)
        self.messages.append({"role": "assistant", "content": content})
        self.calls += 1
        self.states[step] = self.interpreter.fork()
        if not complete:
            self.stop = "max_tokens"
            return None
        try:
            seen = self.act(content, step)
        except SearchFailed as error:               # never an observation, which would train the model
            self.stop = "failed"
            self.failure = str(error)
            return None
        if seen is None:
            self.stop = "format"
            return None
        if seen is not NO_PROGRAM:
            self.programs += 1
            self.failed_programs += seen.error
        if seen.answer is not None:
            self.stop = "answer"
            self.prediction = seen.answer
            return None
        observation = "Observation: " + seen.text
        self.messages.append({"role": "user", "content": observation})
        if step >= self.last_step:
            self.stop = "max_steps"
            return None
        return observation

    def token_turn(self, chat: Chat, ids: list[int], logps: list[float]) -> list[int] | None:
        """`turn` for sampled tokens -> the tokens that stand between this turn and the next, or None."""
        spending.count(student_tokens=len(ids))
        last = ids[-1] if ids else None
        complete = last == chat.end
        strays = not complete and last in chat.stray        # it wrote, say, "<|endoftext|>"
        self.ids += ids
        self.loss_mask += [1] * len(ids)
        self.logps += logps
        content = ids[:-1] if complete or strays else ids
        text = chat.tokenizer.decode(content, clean_up_tokenization_spaces=False)      # as it was written
        seen = self.turn(text, complete)
        if strays:
            self.stop = "format"
            seen = None
        between = chat.ids(chat.observation(seen)) if seen is not None else []
        if len(between) >= self.tokens_left and seen is not None:
            self.stop = "max_tokens"
            seen = None
        if seen is None:
            if self.on_end is not None:
                self.on_end(self)
            return None
        self.ids += between
        self.loss_mask += [0] * len(between)
        self.logps += [0.0] * len(between)
        return between

    def trajectory(self) -> Record:
        """The task and how it was played, as it is written to a file."""
        usage = {"student_calls": self.calls, "student_tokens": sum(self.loss_mask)}
        ended = {"messages": self.messages, "prediction": self.prediction, "stop": self.stop, "usage": usage}
        return {**self.task, **ended}


# ---- many rollouts ----

def make_episodes(starts: list[Record], copies: int = 1, max_steps: int = 8, max_tokens: int = 4096,
                  search: Search | None = None,
                  skipped: list[tuple[Record, Exception]] | None = None, threads: int = 16,
                  on_end: Callable[[Episode], None] | None = None) -> list[Episode]:
    """Episodes ready to play, the copies of a start side by side.

    A prefix is replayed once in one interpreter and compared with its record, then forked for each copy. A
    start whose prefix does not replay is appended to `skipped` with the reason; without such a list, the
    reason is raised (ReplayMismatch, SearchFailed). threads: prefixes that are replayed at once; on_end: as
    Episode takes it.
    """
    def prepare(start: Record) -> Interpreter | None:
        try:
            return replay(start.get("messages") or [], Interpreter(search))
        except (ReplayMismatch, SearchFailed) as reason:
            if skipped is None:
                raise
            skipped.append((start, reason))
            return None

    with ThreadPoolExecutor(threads) as pool:
        prepared = list(pool.map(prepare, starts))
    episodes = []
    for start, interpreter in zip(starts, prepared):
        if interpreter is None:
            continue
        for copy in range(copies):
            episodes.append(Episode(start, interpreter.fork(), max_steps=max_steps, max_tokens=max_tokens,
                                    copy=copy, on_end=on_end))
        interpreter.close()
    return episodes


def rollout(engine: Engine, starts: list[Record], *, copies: int = 1, max_steps: int = 8,
            max_tokens: int = 4096, search: Search | None = None, progress: Any = None,
            **sampling: Any) -> list[Record]:
    """Play every start `copies` times -> trajectories, the copies of a start side by side.

    A start is a task, or a record whose `messages` end before a step. Raises ReplayMismatch and SearchFailed;
    `sampling` is temperature, top_p, top_k, seed.
    """
    episodes = make_episodes(starts, copies, max_steps, max_tokens, search)
    engine.play(episodes, progress=progress, **sampling)
    return [episode.trajectory() for episode in episodes]


if __name__ == "__main__":
    print(__doc__)                                         # this file is no command
