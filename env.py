"""The environment of the agent: web search, the agent loop, and the engines that generate.

The interpreter that runs the agent's code is in assets/sandbox.py: one sealed process per trajectory, with `run`, `fork` and
`close`; what it covers and what not is said there. Here, top-down: search backends behind one function; the turn grammar and
the chat template (`Chat`), which make rollouts and training see the same tokens; `Episode`, one rollout in progress;
`rollout`; and the three engines, which all do the same: `play(episodes)`.
"""
import json
import os
import re
import sqlite3
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing

from assets.sandbox import Interpreter, Observation, set_sandbox


class SearchFailed(RuntimeError):
    """A search failed for good. It must not become an observation: the rollout ends with this reason."""


# ---- web search ----

def make_search(spec, cache=None):
    """-> a callable, query -> text of the results (SearchFailed if it fails for good); None for "none".

    spec: `http:URL`, a Serper-style JSON API (its key in the environment: SEARCH_API_KEY), or
    `local:FILE.jsonl`, BM25 over lines {"title", "text"}. cache: an SQLite file, shared by processes.
    """
    kind, _, where = (spec or "none").partition(":")
    if kind == "none":
        return None
    if kind not in ("http", "https", "local"):
        raise ValueError(f"--search {spec}: not http:URL, local:FILE.jsonl or none")
    find = local_search(where) if kind == "local" else http_search(spec if where.startswith("//") else where)
    return cached(find, spec, cache) if cache else find


def cached(find, spec, path):
    """`find`, with its results kept in an SQLite file; failures are not kept."""
    def query_db(statement, *values):
        with closing(sqlite3.connect(path, timeout=60)) as db, db:         # waits for others, commits
            return db.execute(statement, values).fetchone()

    def search(query):
        row = query_db("SELECT text FROM found WHERE spec = ? AND query = ?", spec, query)
        text = row[0] if row else find(query)
        if not row:
            query_db("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", spec, query, text)
        return text

    query_db("CREATE TABLE IF NOT EXISTS found (spec TEXT, query TEXT, text TEXT, PRIMARY KEY (spec, query))")
    return search


def pages(results):
    """[(title, snippet)] -> what the model sees."""
    lines = [f"Page: {i}\nTitle: {title}\nSnippet: {snippet}" for i, (title, snippet) in enumerate(results)]
    return "\n".join(lines) or "No results found."


def http_search(url, attempts=6, timeout=20):
    """POST {"q": query}; titles and snippets of the reply's "organic". Waits 1, 2, 4 ... s to retry."""
    import requests

    def search(query):
        headers = {"X-API-KEY": os.environ.get("SEARCH_API_KEY", "")}
        for attempt in range(attempts):
            try:
                reply = requests.post(url, json={"q": query}, headers=headers, timeout=timeout)
                reason = f"HTTP {reply.status_code} {reply.text[:200]!r}"
                if reply.status_code == 200:
                    found = reply.json()["organic"]
                    return pages([(page.get("title", ""), page.get("snippet", "")) for page in found])
                if reply.status_code < 500 and reply.status_code not in (408, 429):
                    break
            except (ValueError, KeyError, TypeError, AttributeError):
                reason = f"not Serper's format: {reply.text[:200]!r}"
                break
            except requests.RequestException as error:
                reason = type(error).__name__
            if attempt + 1 < attempts:
                print(f"search: {reason}; trying again in {2 ** attempt} s", file=sys.stderr, flush=True)
                time.sleep(2 ** attempt)
        raise SearchFailed(f"search at {url} failed (quota, key or service): {reason}")
    return search


def local_search(path, results=10, snippet=500):
    """BM25 over a JSON-lines corpus held in memory."""
    import bm25s
    corpus = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                page = json.loads(line)
                corpus.append((page["title"], page["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: not {{"title", "text"}}: {error!r}') from None
    tokens = lambda texts: bm25s.tokenize(texts, show_progress=False)
    index = bm25s.BM25()
    index.index(tokens([f"{title} {text}" for title, text in corpus]), show_progress=False)

    def search(query):
        found, scores = index.retrieve(tokens(query), k=min(results, len(corpus)), show_progress=False)
        best = [corpus[i] for i, score in zip(found[0], scores[0]) if score > 0]
        return pages([(title, text[:snippet]) for title, text in best])
    return search


# ---- agent loop ----

CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
PLAN = re.compile(r"<first_thought>.*?</first_thought>", re.DOTALL)


class ReplayMismatch(Exception):
    """A recorded observation differs from what its code prints now."""


def step_of(messages):
    """Index of the next step: 0 before the first thought, k before the k-th thought–code pair."""
    return sum(m["role"] == "assistant" for m in messages)


def act(content, step, interpreter):
    """Run what the policy wrote as its turn -> Observation, or None if it has neither a plan (step 0) nor code."""
    code = CODE.search(content)
    if code:
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
    """A tokenizer's chat template, taken apart into the constant strings between the contents of the messages.

    Rollouts and training put the same strings together, so both see the same tokens, the newline after an end of turn
    included, and sampled tokens are never decoded and encoded again. Control tokens inside a content (say a search snippet
    with "<|im_end|>") are broken up first: text cannot open or end a turn.
    """

    def __init__(self, tokenizer):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; a chat (\"instruct\") model is needed")
        self.tokenizer = tokenizer
        control = sorted({*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)},
                         key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        q, a, o = ({"role": r, "content": f"[[{i}]]"} for i, r in enumerate(("user", "assistant", "user")))
        self.start, self.open = self.template([q], True).split("[[0]]")          # … question …, e.g. "<|im_end|>\n<|im_start|>assistant\n"
        one, two = self.template([q, a]), self.template([q, a, o], True)
        self.close = one.split("[[1]]")[-1]                                      # after a content of the assistant, "<|im_end|>\n"
        self.between, last = two.split("[[1]]")[-1].split("[[2]]")               # … and on to the observation
        end = self.ids(self.close)[:1]
        if two[:len(one)] != one or last != self.open or end != [tokenizer.eos_token_id]:
            raise ValueError(f"{tokenizer.name_or_path}: the chat template rewrites history, or does not end the assistant's turn "
                             "with the end-of-sequence token; training on it would differ from using it")
        self.end = end[0]
        self.end_text = tokenizer.decode(end)

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
        """-> input_ids, loss_mask: 1 on what the policy writes (contents and end of turn), 0 on everything else.

        question, "<thought>a", "Observation: 1" -> [q q] 0 0, [<thought> a end] 1 1 1, [\\n Observation : 1 …] 0 0 0 0
        """
        pieces = [self.start + self.clean(messages[0]["content"]) + self.open]
        for m in messages[1:]:
            pieces.append(self.clean(m["content"]) + self.end_text if m["role"] == "assistant" else self.observation(m["content"]))
        if messages[-1]["role"] == "assistant":
            rest = self.close[len(self.end_text):]
            whole = self.template([{**m, "content": self.clean(m["content"])} for m in messages])
            if "".join(pieces) + rest != whole:
                raise ValueError(f"the chat template changes a message: {whole[:200]!r}…")
        encoded = self.tokenizer(pieces, add_special_tokens=False).input_ids
        ids = [t for piece in encoded for t in piece]
        return ids, [k % 2 for k, piece in enumerate(encoded) for _ in piece]


class Episode:
    """One rollout: the messages, the interpreter behind them and, for engines that work on tokens, ids and log-probs."""

    def __init__(self, start, interpreter, *, max_steps=8, max_tokens=4096):
        self.task = {k: v for k, v in start.items() if k not in ("messages", "prediction", "correct", "stop", "usage")}
        self.messages = list(start.get("messages") or [{"role": "user", "content": start["question"]}])
        self.interpreter, self.states = interpreter, {}             # states: step -> interpreter before that step
        self.first = step_of(self.messages)
        self.last_step = max(self.first, 1) + max_steps - 1
        self.max_steps, self.max_tokens, self.calls = max_steps, max_tokens, 0
        self.prediction = self.stop = self.failure = None
        self.ids, self.loss_mask, self.logps, self.prompt = [], [], [], 0

    def begin(self, chat):
        self.ids = chat.encode(self.messages)[0]
        self.prompt = len(self.ids)
        self.loss_mask, self.logps = [0] * self.prompt, [0.0] * self.prompt

    @property
    def room(self):
        """New tokens that still fit."""
        return self.max_tokens - (len(self.ids) - self.prompt)

    def extend(self, ids, logps=None):
        self.ids += ids
        self.loss_mask += [int(logps is not None)] * len(ids)
        self.logps += logps if logps is not None else [0.0] * len(ids)

    def turn(self, content, complete=True):
        """Take the policy's turn, run its code -> the observation message, or None when the rollout has ended."""
        step = step_of(self.messages)
        self.messages.append({"role": "assistant", "content": content})
        self.calls += 1
        self.states[step] = self.interpreter.fork()
        if not complete:
            self.stop = "max_tokens"
            return None
        try:
            seen = act(content, step, self.interpreter)
        except SearchFailed as e:                                   # never an observation that would train the model
            self.stop, self.failure = "failed", str(e)
            return None
        if seen is None:
            self.stop = "format"
        elif seen.answer is not None:
            self.stop, self.prediction = "answer", seen.answer
        elif step >= self.last_step:
            self.stop = "max_steps"
        if seen is not None and self.stop != "answer":
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
        tokens = sum(self.loss_mask)
        return {**self.task, "messages": self.messages, "prediction": self.prediction, "stop": self.stop,
                "usage": {"student_calls": self.calls, "student_tokens": tokens}}


def rollout(engine, starts, *, copies=1, max_steps=8, max_tokens=4096, search=None, progress=None, **sampling):
    """Play every start (a task, or a record whose `messages` end before a step) `copies` times -> trajectories, copies adjacent.

    A prefix is replayed once in one interpreter and compared with its record, then forked for each copy.
    Raises ReplayMismatch; `sampling` is temperature, top_p, top_k, seed.
    """
    episodes = make_episodes(starts, copies, max_steps, max_tokens, search)
    engine.play(episodes, progress=progress, **sampling)
    return [e.trajectory() for e in episodes]


def make_episodes(starts, copies=1, max_steps=8, max_tokens=4096, search=None, skipped=None):
    """Episodes ready to play, the copies of a start adjacent. A start whose prefix does not replay is appended to `skipped` with
    the reason, or raises ReplayMismatch where there is no such list."""
    def prepare(start):
        try:
            return replay(start.get("messages") or [], Interpreter(search))
        except ReplayMismatch as e:
            if skipped is None:
                raise
            skipped.append((start, e))
    with ThreadPoolExecutor(16) as pool:
        prepared = list(pool.map(prepare, starts))
    episodes = []
    for start, interpreter in zip(starts, prepared):
        if interpreter is not None:
            episodes += [Episode(start, interpreter.fork(), max_steps=max_steps, max_tokens=max_tokens) for _ in range(copies)]
            interpreter.close()
    return episodes


# ---- engines ----

def sample(logits, uniform, temperature, top_p, top_k):
    """Draw one token a row by inverting the distribution at `uniform` (B,) in [0, 1) -> tokens (B,), log-probs (B,).

    logits (B, V). Log-probs are of the whole distribution at this temperature, as the trainer computes them. Temperature 0: greedy.
    """
    import torch
    if temperature == 0:
        logps, tokens = torch.log_softmax(logits.float(), -1).max(-1)
        return tokens, logps
    logps = torch.log_softmax(logits.float() / temperature, -1)                       # (B, V)
    order = None
    chosen = logps
    if top_k or top_p < 1:
        chosen, order = logps.topk(min(top_k or logps.shape[1], logps.shape[1]))      # best first
        kept = chosen.exp().cumsum(-1) - chosen.exp() < top_p * chosen.exp().sum(-1, keepdim=True)
        chosen = chosen.masked_fill(~kept, -torch.inf)
    mass = chosen.exp().cumsum(-1)
    tokens = torch.searchsorted(mass, uniform[:, None].to(mass) * mass[:, -1:], right=True).clamp(max=mass.shape[1] - 1)
    tokens = tokens if order is None else order.gather(1, tokens)
    return tokens[:, 0], logps.gather(1, tokens)[:, 0]


class TorchEngine:
    """Generation with a Transformers model: one column of tokens per forward pass for all rows together.

    A row's next token is sampled, or forced (the observation), or padding while its code runs: one stream with one key–value
    cache, so nothing is prefilled twice and code runs beside generation. A prompt shared by a group is prefilled once.
    """

    def __init__(self, model, tokenizer, batch=128):
        self.model, self.chat, self.batch = model, Chat(tokenizer), batch

    def play(self, episodes, temperature=1.0, top_p=1.0, top_k=0, seed=0, progress=None):
        import torch
        for e in episodes:
            e.begin(self.chat)
        training, _ = self.model.training, self.model.eval()
        with torch.inference_mode(), ThreadPoolExecutor(16) as pool:
            for i in range(0, len(episodes), self.batch):
                self.play_batch(episodes[i:i + self.batch], pool, (temperature, top_p, top_k), seed + i, progress)
        self.model.train(training)

    def prefill(self, episodes):
        """-> cache, logits (B, V) of the last prompt token, mask (B, P), positions (B,) of the next token."""
        import torch
        prompts = list(dict.fromkeys(tuple(e.ids) for e in episodes))
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.model.device)          # (U, P)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                         use_cache=True, logits_to_keep=1)
        where = {p: i for i, p in enumerate(prompts)}
        rows = torch.tensor([where[tuple(e.ids)] for e in episodes], device=self.model.device)
        out.past_key_values.batch_select_indices(rows)
        return out.past_key_values, out.logits[rows, -1], mask[rows], mask.sum(1)[rows]

    def play_batch(self, episodes, pool, how, seed, progress):
        import torch
        device = self.model.device
        cache, logits, mask, position = self.prefill(episodes)
        dice = torch.rand(len(episodes), 1 + max(e.room for e in episodes), generator=torch.Generator().manual_seed(seed))
        rows = [Row(e, uniform) for e, uniform in zip(episodes, dice)]
        while rows:
            if all(r.running or r.done for r in rows) and any(r.running for r in rows):
                wait([r.running for r in rows if r.running], return_when=FIRST_COMPLETED)
            uniform = torch.stack([r.uniform[r.drawn] for r in rows]).to(device)
            tokens, logps = (x.tolist() for x in sample(logits, uniform, *how))
            column = [r.next(t, p, self.chat, pool) for r, t, p in zip(rows, tokens, logps)]
            live = [i for i, r in enumerate(rows) if not r.done]
            if len(live) <= 0.9 * len(rows):                                           # finished rows leave the batch
                if progress is not None:
                    progress.update(len(rows) - len(live))
                rows, column, keep = [rows[i] for i in live], [column[i] for i in live], torch.tensor(live, device=device).long()
                cache.batch_select_indices(keep)
                logits, mask, position = logits[keep], mask[keep], position[keep]
            if any(t is not None for t in column):
                real = torch.tensor([[int(t is not None)] for t in column], device=device)          # (B, 1)
                mask = torch.cat([mask, real], 1)
                logits = self.model(input_ids=torch.tensor([[t or 0] for t in column], device=device), attention_mask=mask,
                                    position_ids=position[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
                position = position + real[:, 0]


class Row:
    """Where one episode stands in the stream of columns."""

    def __init__(self, episode, uniform):
        self.episode, self.uniform, self.drawn = episode, uniform, 0
        self.ids, self.logps, self.forced, self.running, self.done = [], [], [], None, False

    def next(self, token, logp, chat, pool):
        """The row's next token: forced, or the `token` just drawn; None while its code runs and after its end."""
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


class VLLMEngine:
    """Generation with vLLM in this process (prefix caching on); under torchrun one engine a rank."""

    def __init__(self, path, tokenizer, memory=0.4, max_len=None, seed=0):
        import vllm
        self.vllm, self.chat = vllm, Chat(tokenizer)
        self.llm = vllm.LLM(path, gpu_memory_utilization=memory, enable_prefix_caching=True, max_model_len=max_len, seed=seed,
                            logprobs_mode="processed_logprobs", distributed_executor_backend="external_launcher"
                            if "RANK" in os.environ else None)

    def play(self, episodes, temperature=1.0, top_p=1.0, top_k=0, seed=0, progress=None):
        for e in episodes:
            e.begin(self.chat)
        live = list(episodes)
        with ThreadPoolExecutor(16) as pool:
            while live:
                how = [self.vllm.SamplingParams(
                    temperature=temperature, top_p=top_p, top_k=top_k, seed=hash((seed, i, e.calls)) & 0x7fffffff, logprobs=0,
                    max_tokens=e.room, stop_token_ids=[self.chat.end], detokenize=False) for i, e in enumerate(live)]
                outs = self.llm.generate([{"prompt_token_ids": e.ids} for e in live], how, use_tqdm=False)
                turns = [(list(o.outputs[0].token_ids), [p[t].logprob for t, p in zip(o.outputs[0].token_ids, o.outputs[0].logprobs)])
                         for o in outs]
                more = list(pool.map(lambda e, turn: e.token_turn(self.chat, *turn), live, turns))
                if progress is not None:
                    progress.update(sum(m is None for m in more))
                live = [e for e, m in zip(live, more) if m is not None]

    def load(self, pairs):
        """Take over the trainer's weights: (name, tensor) pairs of `state_dict()`, tied embeddings included."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pairs})
        self.llm.reset_prefix_cache()


class URLEngine:
    """Generation by an OpenAI-compatible chat endpoint; text only, so for data and evaluation, not for training."""

    def __init__(self, url, model, concurrency=64, timeout=600):
        self.url, self.model, self.concurrency, self.timeout = url.rstrip("/"), model, concurrency, timeout

    def play(self, episodes, temperature=1.0, top_p=1.0, top_k=0, seed=0, progress=None):
        from judge import chat_completion
        def run(e):
            seen = ""
            while seen is not None:
                choice = chat_completion(self.url, dict(
                    model=self.model, messages=e.messages, temperature=temperature, top_p=top_p, max_tokens=e.max_tokens,
                    **({"top_k": top_k} if top_k else {})), timeout=self.timeout)
                seen = e.turn(choice["message"]["content"], choice.get("finish_reason") != "length")
            if progress is not None:
                progress.update(1)
        with ThreadPoolExecutor(self.concurrency) as pool:
            list(pool.map(run, episodes))


def load_engine(kind, model, *, url=None, device=None, dtype="auto", batch=128, memory=0.9):
    """kind: torch | vllm | url. `model`: a Hugging Face folder or hub name (for url: the name the server knows)."""
    if kind == "url":
        return URLEngine(url, model)
    import torch
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    if kind == "vllm":
        return VLLMEngine(model, tokenizer, memory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TorchEngine(transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device), tokenizer, batch)


# ---- flags of every script that acts ----

def add_env_flags(parser):
    g = parser.add_argument_group("environment")
    g.add_argument("--search", help="web search: http:URL (Serper's JSON API, key in SEARCH_API_KEY) or local:FILE.jsonl (BM25)")
    g.add_argument("--search-cache", help="SQLite file that keeps the results, shared by processes and runs")
    g.add_argument("--sandbox", choices=["auto", "strict", "off"], default="auto",
                   help="auto names missing layers of isolation, strict refuses to run without them, off runs code unsealed")


def search_from_args(args):
    set_sandbox(args.sandbox)
    return make_search(args.search, args.search_cache)


def add_sampling_flags(parser, temperature=0.6, top_p=0.95, top_k=20):
    g = parser.add_argument_group("rollouts")
    g.add_argument("--engine", choices=["torch", "vllm", "url"], default="torch", help="what generates")
    g.add_argument("--student-url", help="OpenAI-compatible endpoint of the student, for --engine url")
    g.add_argument("--max-steps", type=int, default=8, help="thought–code steps after the start or the prefix")
    g.add_argument("--max-tokens", type=int, default=4096, help="new tokens after the start or the prefix, observations included")
    g.add_argument("--temperature", type=float, default=temperature, help="of sampling; 0 is greedy")
    g.add_argument("--top-p", type=float, default=top_p, help="probability mass that is sampled from")
    g.add_argument("--top-k", type=int, default=top_k, help="tokens that are sampled from; 0 for all")
    g.add_argument("--sampling-seed", type=int, default=0, help="of the sampled tokens")


def sampling_from_args(args, salt=0):
    return dict(temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.sampling_seed * 1_000_003 + salt)
