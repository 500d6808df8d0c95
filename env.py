"""The environment of the agent: the agent loop, and the engines that generate.

The interpreter that runs the agent's code is in assets/sandbox.py: one sealed process per trajectory, with
`run`, `fork` and `close`; what it covers and what not is said there. Its web search is in assets/search.py.
Here, top-down: the turn grammar and the chat template (`Chat`), which make rollouts and training see the same
tokens; `Episode`, one rollout in progress; `rollout`; the engine that generates with a Transformers model.
vLLM and endpoints are in assets/engines.py; all engines do the same: `play(episodes)`.
"""
import contextlib
import functools
import os
import random
import re
import zlib
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import timedelta

from assets.engines import URLEngine, VLLMEngine
from assets.sandbox import Interpreter, Observation, set_sandbox  # noqa: F401
from assets.search import SearchFailed, add_env_flags, make_search, search_from_args  # noqa: F401
from judge import InputError


# ---- agent loop ----

CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
PLAN = re.compile(r"<first_thought>.*?</first_thought>", re.DOTALL)


class ReplayMismatch(Exception):
    """A recorded observation differs from what its code prints now."""


def step_of(messages):
    """Index of the next step: 0 before the first thought, k before the k-th thought–code pair."""
    return sum(m["role"] == "assistant" for m in messages)


def act(content, step, interpreter):
    """Run what the policy wrote as its turn -> Observation, or None if there is no plan (step 0) or code."""
    if code := CODE.search(content):
        return interpreter.run(code[1].strip())
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


# ---- engines ----

def sample(logits, uniform, temperature, top_p, top_k):
    """Draw one token a row by inverting its distribution at `uniform` in [0, 1) -> tokens (B,), logps (B,).

    logits (B, V), uniform (B,). Log-probs are of the whole distribution at this temperature, as the trainer
    computes them. Temperature 0: greedy.
    """
    import torch
    if temperature == 0:
        logps, tokens = torch.log_softmax(logits.float(), -1).max(-1)
        return tokens, logps
    logps, order = torch.log_softmax(logits.float() / temperature, -1), None              # (B, V)
    mass = logps.exp()
    if top_k or top_p < 1:
        best, order = logps.topk(min(top_k or logps.shape[1], logps.shape[1]))            # best first
        mass = best.exp()
        mass = mass * (mass.cumsum(-1) - mass < top_p * mass.sum(-1, keepdim=True))
    mass = mass.cumsum(-1)
    tokens = torch.searchsorted(mass, uniform[:, None].to(mass) * mass[:, -1:], right=True)
    tokens = tokens.clamp(max=mass.shape[1] - 1)
    tokens = tokens if order is None else order.gather(1, tokens)
    return tokens[:, 0], logps.gather(1, tokens)[:, 0]


def append(layer, keys, values, *_, **__):
    """`update` of a cache layer into a buffer with room to spare: it copies all once in 64 tokens."""
    for name, new in (("keys", keys), ("values", values)):                                # (B, H, 1, D)
        old, buffer = getattr(layer, name), layer.__dict__.get("buffer_" + name)
        n, end = old.shape[2], old.shape[2] + new.shape[2]
        if buffer is None or buffer.data_ptr() != old.data_ptr() or end > buffer.shape[2]:
            buffer = old.new_empty(*old.shape[:2], end + 64, old.shape[3])
            buffer[:, :, :n] = old
            setattr(layer, "buffer_" + name, buffer)
        buffer[:, :, n:end] = new
        setattr(layer, name, buffer[:, :, :end])
    return layer.keys, layer.values


class TorchEngine:
    """Generation with a Transformers model: one column of tokens per forward pass for all rows together.

    A row's next token is sampled, forced (the observation), or padding while its code runs: one stream with
    one key–value cache, so nothing is prefilled twice and code runs beside generation. A prompt shared by a
    group is prefilled once.
    """

    def __init__(self, model, tokenizer, batch=128):
        from assets.attention import use_segments
        if model.config._attn_implementation == "sdpa":
            use_segments(model)                            # decodes without copies of keys and values
        self.model, self.chat, self.batch = model, Chat(tokenizer), batch

    def play(self, episodes, temperature=1.0, top_p=1.0, top_k=0, seed=0, progress=None):
        import torch
        for e in episodes:
            e.begin(self.chat)
        training, _ = self.model.training, self.model.eval()
        with torch.inference_mode(), ThreadPoolExecutor(16) as pool:
            for i in range(0, len(episodes), self.batch):
                how = temperature, top_p, top_k
                self.play_batch(episodes[i:i + self.batch], pool, how, seed, progress)
        self.model.train(training)

    def sleep(self):
        """Nothing to set free while the trainer works: the model is the trainer's, and the cache is gone."""

    def prefill(self, episodes):
        """-> cache, logits (B, V) of the last prompt token, mask (B, P), positions (B,) of the next token."""
        import torch
        from transformers.cache_utils import DynamicLayer
        tensor = lambda rows: torch.tensor(rows, device=self.model.device)
        where = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(e.ids) for e in episodes))}
        width = max(map(len, where))
        ids = tensor([[0] * (width - len(p)) + list(p) for p in where])                   # (U, P)
        mask = tensor([[0] * (width - len(p)) + [1] * len(p) for p in where])
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                         use_cache=True, logits_to_keep=1)
        rows = tensor([where[tuple(e.ids)] for e in episodes])
        out.past_key_values.batch_select_indices(rows)
        for layer in out.past_key_values.layers:
            if type(layer) is DynamicLayer:
                layer.update = functools.partial(append, layer)
        return out.past_key_values, out.logits[rows, -1], mask[rows], mask.sum(1)[rows]

    def play_batch(self, episodes, pool, how, seed, progress):
        import torch
        tensor = lambda rows: torch.tensor(rows, device=self.model.device)
        cache, logits, mask, position = self.prefill(episodes)
        dice = (torch.Generator().manual_seed(e.dice(seed)) for e in episodes)
        rows = [Row(e, torch.rand(1 + e.room, generator=die)) for e, die in zip(episodes, dice)]
        while rows:
            busy = lambda: [r.running for r in rows if r.running and not r.running.done()]
            while 2 * len(busy()) > sum(not r.done for r in rows):          # a column costs as much for them
                wait(busy(), return_when=FIRST_COMPLETED)
            uniform = torch.stack([r.uniform[r.drawn] for r in rows]).to(logits.device)
            tokens, logps = (x.tolist() for x in sample(logits, uniform, *how))
            column = [r.next(t, p, self.chat, pool) for r, t, p in zip(rows, tokens, logps)]
            live = [i for i, r in enumerate(rows) if not r.done]
            if len(live) <= 0.9 * len(rows):                                   # finished rows leave the batch
                if progress is not None:
                    progress.update(len(rows) - len(live))
                rows, column, keep = [rows[i] for i in live], [column[i] for i in live], tensor(live).long()
                cache.batch_select_indices(keep)
                logits, mask, position = logits[keep], mask[keep], position[keep]
            if any(t is not None for t in column):
                real = tensor([[int(t is not None)] for t in column])                     # (B, 1)
                mask = torch.cat([mask, real], 1)
                out = self.model(input_ids=tensor([[t or 0] for t in column]), attention_mask=mask,
                                 position_ids=position[:, None], past_key_values=cache, use_cache=True)
                logits = out.logits[:, -1]
                position = position + real[:, 0]


class Row:
    """Where one episode stands in the stream of columns."""

    def __init__(self, episode, uniform):
        self.episode, self.uniform, self.drawn = episode, uniform, 0
        self.ids, self.logps, self.forced, self.running, self.done = [], [], [], None, False

    def next(self, token, logp, chat, pool):
        """The row's next token: forced, or the `token` just drawn; None while code runs and at the end."""
        if self.running and self.running.done():
            between, self.running = self.running.result(), None
            self.done = between is None
            self.forced = (between or [])[::-1]
        if self.running or self.done:
            return None
        if self.forced:
            return self.forced.pop()
        self.ids, self.logps, self.drawn = self.ids + [token], self.logps + [logp], self.drawn + 1
        if token == chat.end or len(self.ids) >= self.episode.room:
            self.running = pool.submit(self.episode.token_turn, chat, self.ids, self.logps)
            self.ids, self.logps = [], []
        return token


@contextlib.contextmanager
def named_on_error(path):
    """What Transformers says of a folder that holds no chat model, in one line that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"cannot use the model {path!r}: {' '.join(str(error).split())[:300]}") from None


def load_model(path, dtype):
    """-> model on this rank's device, tokenizer. Raises InputError for anything that is no chat model."""
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    with named_on_error(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        Chat(tokenizer)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    cuda = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return model.to(cuda if torch.cuda.is_available() else "cpu"), tokenizer


def load_engine(kind, model, url=None):
    """kind: torch | vllm | url. `model`: a Hugging Face folder or hub name; for url, its name there."""
    if kind == "url":
        if not url:
            raise InputError("--engine url needs --student-url")
        return URLEngine(url, model)
    if kind == "vllm":
        import transformers
        with named_on_error(model):
            chat = Chat(transformers.AutoTokenizer.from_pretrained(model))
            dtype = transformers.AutoConfig.from_pretrained(model).dtype or "auto"     # its "auto" halves fp32
        return VLLMEngine(model, chat, dtype=dtype)
    return TorchEngine(*load_model(model, "auto"))


# ---- flags of every script that acts ----

def add_sampling_flags(parser, temperature=0.6, top_p=0.95, top_k=20):
    g = parser.add_argument_group("rollouts")
    g.add_argument("--engine", choices=["torch", "vllm", "url"], default="torch", help="what generates")
    g.add_argument("--student-url", help="OpenAI-compatible endpoint of the student, for --engine url")
    g.add_argument("--max-steps", type=int, default=8, help="thought–code steps after start or prefix")
    g.add_argument("--max-tokens", type=int, default=4096,
                   help="new tokens after the start or the prefix, observations included")
    g.add_argument("--temperature", type=float, default=temperature, help="of sampling; 0 is greedy")
    g.add_argument("--top-p", type=float, default=top_p, help="probability mass that is sampled from")
    g.add_argument("--top-k", type=int, default=top_k, help="tokens that are sampled from; 0 for all")
    g.add_argument("--sampling-seed", type=int, default=0, help="of the sampled tokens")


def sampling_from_args(args, salt=0):
    seed = args.sampling_seed * 1_000_003 + salt
    return dict(temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=seed)


# ---- ranks of mps.py and eval.py: each plays its share of the tasks, rank 0 merges ----

@functools.cache
def all_ranks():
    """The process group of torchrun's ranks. They find one another within minutes or give up, and wait for
    one another for days."""
    import torch.distributed
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    return torch.distributed.new_group(timeout=timedelta(days=7))


def part_of_rank(tasks, rank, world):
    """A random part, for where kinds of task alternate in a file, one rank would get all the long ones."""
    return random.Random(0).sample(tasks, len(tasks))[rank::world]


def wait_for_ranks(world):
    if world > 1:
        import torch.distributed
        torch.distributed.barrier(all_ranks())
