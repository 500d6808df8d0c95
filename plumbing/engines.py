"""What generates the policy's turns: a Transformers model in plain torch, vLLM, or an endpoint."""
from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from plumbing.chat_api import CUT_OFF, BadReply, chat_completion
from plumbing.cli import InputError
from plumbing.ranks import say_once
from plumbing.records import Record
from plumbing.spending import count

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from tqdm import tqdm

Episode = Any          # env.Episode and env.Chat: plumbing/ imports no script
Chat = Any


class Engine(Protocol):
    """What an engine does.

    To add an engine: write a class with these methods here, name it in `load_engine`, and add its name to
    --engine in plumbing/cli.py. mps.py and eval.py call only `play`; grpo_short.py trains on what was played,
    so it needs the other methods too, and an engine that knows token ids and log-probs.
    """

    batched: bool      # True: episodes given together share forward passes, so callers gather many of them.
    #                    False: each episode is played at once, and `play` may be called from any thread.
    separate: bool     # True: it is not the trainer's kind of model, so every sync has to be checked.
    chat: Chat         # what it encodes and decodes with; an engine of texts has none

    def play(self, episodes: list[Episode], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
             seed: int = 0, progress: tqdm | None = None) -> None:
        """Play every episode to its end; `progress` counts those that ended.

        An engine of tokens calls `episode.begin(chat)`. It samples what follows `episode.ids` to `chat.end`
        or a token of `chat.stray`, at most `episode.tokens_left` tokens, gives them to `episode.token_turn`,
        and goes on until that returns None. An engine of texts does the same with `episode.messages` and
        `episode.turn`. `episode.sampling_seed(seed)` seeds an episode's random numbers. Temperature 0 is
        greedy.
        """

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainer's weights, under their Hugging Face names.

        Does nothing where the engine generates with the trainer's own model.
        """

    def sleep(self) -> None:
        """Free what memory the engine can until `load`: the trainer works now."""

    def greedy(self, prompt: list[int], n: int = 16) -> tuple[list[int], list[float]]:
        """The prompt's greedy continuation by n tokens, and their log-probs. Only for `separate` engines."""


def load_engine(args: argparse.Namespace, path: str, load_chat: Callable[[str, str | None], Chat],
                starts: list[Record]) -> Engine:
    """The engine of mps.py and eval.py, by the flags of `sampling_flags`.

    path: a Hugging Face folder or hub name; for --engine url, the model's name there. starts: what all ranks
    together will play from. Raises InputError for anything that is no chat model.
    """
    if args.engine == "url":
        return URLEngine(args.student_url, path, args.concurrency, args.timeout, args.retries)
    from plumbing.models import load_config, load_model, named_on_error, usable_dtype
    chat = load_chat(path, args.chat_template)
    if args.engine == "vllm":
        dtype = load_config(path).dtype                    # "auto" alone would turn fp32 into half precision
        return VLLMEngine(path, chat, dtype=usable_dtype(path, dtype) if dtype else "auto",
                          **vllm_settings(args, path, chat, starts))
    model = load_model(path, "auto")
    with named_on_error(path):
        return TorchEngine(model, chat, threads=args.threads)


def check_trainer_engine(args: argparse.Namespace) -> None:
    """InputError for an engine that does not give what grpo_short.py trains on: token ids and log-probs."""
    if args.temperature == 0:
        raise InputError("--temperature 0 makes all rollouts from a start alike: there is nothing to compare")
    if args.engine == "vllm" and (args.top_p < 1 or args.top_k):
        raise InputError("--engine vllm gives log-probs after --top-p and --top-k: train with 1 and 0")


def vllm_settings(args: argparse.Namespace, path: str, chat: Chat, starts: list[Record]) -> dict[str, Any]:
    """The keyword arguments of VLLMEngine that flags decide.

    Raises InputError if --max-tokens after the longest start do not fit the model, or --max-model-len.
    """
    from plumbing.models import load_config
    openings = [start.get("messages") or [{"role": "user", "content": start["question"]}] for start in starts]
    start = max((len(chat.encode(messages)[0]) for messages in openings), default=0)
    needed = start + args.max_tokens + 1
    limit = getattr(load_config(path).get_text_config(), "max_position_embeddings", None) or needed
    room = args.max_model_len or limit
    if needed > room:
        what = "--max-model-len" if args.max_model_len else f"the positions of {path}"
        raise InputError(f"--max-tokens {args.max_tokens} after a start of {start} tokens is more than "
                         f"{room}, {what}: lower it")
    # mps.py goes on from a corrected step with --max-tokens anew: what was before it may be as long
    longest = args.max_model_len or min(limit, needed + args.max_tokens)
    return {"memory": args.vllm_memory, "longest": longest, "attention": args.vllm_attention,
            "threads": args.threads}


def trainer_engine(args: argparse.Namespace, trainer: Any, chat: Chat, starts: list[Record]) -> Engine:
    """The engine that generates for `trainer`, DeepSpeed's engine around the policy (grpo_short.py)."""
    if args.lora_rank and args.dtype == "bf16" and (args.engine == "vllm" or args.zero == 3):
        say_once("--lora-rank: the engine gets the merged weights in bf16, which rounds small changes away, "
                 "so rollouts lag behind; --dtype fp32, or --engine torch with --zero 2, loses none")
    if args.engine == "vllm":
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[args.dtype]
        return VLLMEngine(args.model, chat, seed=args.seed, dtype=dtype, shared_gpu=True,
                          **vllm_settings(args, args.model, chat, starts))
    if args.zero < 3:
        return TorchEngine(trainer.module.model, chat, args.rollout_batch, args.threads, separate=False)

    # ZeRO-3 shards the weights: generate with a copy. It is loaded in the trainer's dtype, not cast to it: a
    # cast would round the rotary frequencies too, which the trainer keeps in fp32
    from plumbing.models import load_model
    copy = load_model(args.model, next(trainer.module.parameters()).dtype)
    return TorchEngine(copy, chat, args.rollout_batch, args.threads)


def sampling_from_args(args: argparse.Namespace, salt: int = 0) -> dict[str, Any]:
    """The keyword arguments of an engine's `play`; another salt, other samples."""
    return {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k,
            "seed": args.sampling_seed * 1_000_003 + salt}


# ---- a Transformers model ----

def sample(logits: Tensor, uniform: Tensor, temperature: float, top_p: float,
           top_k: int) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting its distribution at `uniform` in [0, 1) -> tokens (B,), logps (B,).

    logits (B, V), uniform (B,). Log-probs are of the whole distribution at this temperature, as the trainer
    computes them. Temperature 0: greedy.
    """
    import torch
    if temperature == 0:
        logps, tokens = torch.log_softmax(logits.float(), -1).max(-1)
        return tokens, logps
    logps = torch.log_softmax(logits.float() / temperature, -1)                           # (B, V)
    if top_k or top_p < 1:
        kept = logps.shape[1]
        if top_k:
            kept = min(top_k, kept)
        best, order = logps.topk(kept)                                                    # (B, K), best first
        mass = best.exp()
        before = mass.cumsum(-1) - mass                    # of the better tokens
        mass = mass * (before < top_p * mass.sum(-1, keepdim=True))
        tokens = order.gather(1, invert(mass, uniform))
    else:
        tokens = invert(logps.exp(), uniform)
    return tokens[:, 0], logps.gather(1, tokens)[:, 0]


def invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """The first index at which the summed mass (B, K) exceeds a share `uniform` (B,) of the whole -> (B, 1).

    mass [0.5 0.25 0.25], uniform 0.6: 1
    """
    import torch
    summed = mass.cumsum(-1)
    index = torch.searchsorted(summed, uniform[:, None].to(summed) * summed[:, -1:], right=True)
    return index.clamp(max=mass.shape[1] - 1)


@contextlib.contextmanager
def generating(model: torch.nn.Module) -> Iterator[None]:
    """Without gradients and out of train mode, to which the model then returns."""
    import torch
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


class TorchEngine:
    """Generation with a Transformers model: one column of tokens per forward pass for all rows together.

    A row's next token is sampled, forced (the observation), or padding while its code runs: one stream with
    one key–value cache, so nothing is prefilled twice and code runs beside generation. A prompt shared by a
    group is prefilled once.
    """

    batched = True

    def __init__(self, model: torch.nn.Module, chat: Chat, batch: int = 128, threads: int = 16,
                 separate: bool = True) -> None:
        """batch: rows of a forward pass; threads: programs that run at once; separate: False where the model
        is the trainer's own."""
        from plumbing.attention import use_segments
        from plumbing.kv_cache import shortest_window
        if model.config._attn_implementation == "sdpa":
            use_segments(model)                            # decodes without copies of keys and values
        self.model = model
        self.chat = chat
        self.batch = batch
        self.threads = threads
        self.separate = separate
        self.window = shortest_window(model.config)
        with generating(model):
            self.check()

    def check(self) -> None:
        """Raise InputError unless columns with padding among them give the log-probs of plain rows."""
        import torch
        name = type(self.model).__name__
        needs = (f"--engine torch cannot generate with {name}: it needs a cache of every token's keys and "
                 "values, and positions that padding does not shift")
        starts = [3, 4, 5, 6, 7], [3, 4], [3, 4, 5, 6, 7]
        gaps = []
        try:
            columns = self.prefill([SimpleNamespace(ids=ids) for ids in starts])
            for column in [8, None, 9], [None, 5, None], [9, 6, 8]:
                columns.append(column)
            columns.keep([1, 0])
            columns.append([7, 10])
            for row, logits in zip(([3, 4, 5, 6, 7], [3, 4, 5, 6, 7, 8, 9, 10]), columns.logits):
                plain = self.model(torch.tensor([row], device=logits.device)).logits[0, -1]
                gap = torch.log_softmax(logits.float(), -1) - torch.log_softmax(plain.float(), -1)
                gaps.append(float(gap.abs().mean()))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
            why = " ".join(str(error).split())[:100]
            raise InputError(f"{needs} ({type(error).__name__}: {why}); give --engine vllm") from error
        largest = 0.02 if self.model.dtype == torch.float32 else 0.5       # nats, room for rounding
        if not max(gaps) <= largest:
            raise InputError(f"{needs} (log-probs are off by {max(gaps):.2f} nats); give --engine vllm")

    def play(self, episodes: list[Episode], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
             seed: int = 0, progress: tqdm | None = None) -> None:
        for episode in episodes:
            episode.begin(self.chat)
        how = (temperature, top_p, top_k)
        batch = self.rows_together(episodes)
        with generating(self.model), ThreadPoolExecutor(self.threads) as pool:
            for at in range(0, len(episodes), batch):
                self.play_batch(episodes[at:at + batch], pool, how, seed, progress)

    def rows_together(self, episodes: list[Episode]) -> int:
        """How many episodes may share a forward pass.

        A sliding window counts columns, padding too, so it has to hold all of a batch's columns; each has a
        new token of at least one row. A row alone is never padded.
        """
        if self.window is None:
            return self.batch
        prompt = max((len(e.ids) for e in episodes), default=0)
        new = max((e.tokens_left for e in episodes), default=1)
        together = max(1, min(self.batch, (self.window - prompt) // max(1, new)))
        if together < self.batch:
            say_once(f"the model's layers see {self.window} tokens back: --engine torch generates in batches "
                     f"of {together}, --engine vllm needs none")
        return together

    def play_batch(self, episodes: list[Episode], pool: ThreadPoolExecutor, how: tuple[float, float, int],
                   seed: int, progress: tqdm | None) -> None:
        """Column by column: draw a token for each row, ask the rows which token they take, run the model."""
        import torch
        columns = self.prefill(episodes)
        rows = [Row(episode, seed) for episode in episodes]
        while rows:
            wait_for_code(rows)
            uniform = torch.stack([row.uniform[row.drawn] for row in rows]).to(columns.logits.device)
            tokens, logps = sample(columns.logits, uniform, *how)
            column = []
            for row, token, logp in zip(rows, tokens.tolist(), logps.tolist()):
                column.append(row.next(token, logp, self.chat, pool))
            live = [i for i, row in enumerate(rows) if not row.done]
            if len(live) <= 0.9 * len(rows):               # finished rows leave the batch, some at a time
                if progress is not None:
                    progress.update(len(rows) - len(live))
                rows = [rows[i] for i in live]
                column = [column[i] for i in live]
                columns.keep(live)
            if any(token is not None for token in column):
                columns.append(column)

    def prefill(self, episodes: list[Episode]) -> Columns:
        """Run the model once on each different prompt; the rows of a group get copies of its cache."""
        import torch

        from plumbing.kv_cache import make_growing
        prompt_of = [tuple(episode.ids) for episode in episodes]
        prompts = list(dict.fromkeys(prompt_of))                                          # U different ones
        width = max(map(len, prompts))
        padded = []                                                                       # (U, P)
        present = []                                                                      # 0 in padding
        for prompt in prompts:
            padding = [0] * (width - len(prompt))
            padded.append(padding + list(prompt))
            present.append(padding + [1] * len(prompt))
        device = self.model.device
        mask = torch.tensor(present, device=device)
        out = self.model(input_ids=torch.tensor(padded, device=device), attention_mask=mask,
                         position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
        number = {prompt: i for i, prompt in enumerate(prompts)}
        rows = torch.tensor([number[prompt] for prompt in prompt_of], device=device)      # (B,)
        cache = out.past_key_values
        cache.batch_select_indices(rows)
        make_growing(cache)
        return Columns(self.model, cache, out.logits[rows, -1], mask[rows], mask.sum(1)[rows])

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the trainer's weights into a model of our own; the trainer's model has them already."""
        import torch
        if not self.separate:
            return
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                if name in own:                            # of tied weights it has one name only
                    own[name].copy_(weight)

    def sleep(self) -> None:
        """There is nothing to free: the cache of the last batch is gone already."""

    def greedy(self, prompt: list[int], n: int = 16) -> tuple[list[int], list[float]]:
        """The prompt's greedy continuation by n tokens, and their log-probs."""
        import torch
        tokens = []
        logps = []
        with generating(self.model):
            for _ in range(n):
                ids = torch.tensor([prompt + tokens], device=self.model.device)
                logp, token = torch.log_softmax(self.model(ids).logits[0, -1].float(), -1).max(-1)
                tokens.append(int(token))
                logps.append(float(logp))
        return tokens, logps


class Columns:
    """The stream of tokens of a batch: the model's cache, and where its next forward pass begins."""

    def __init__(self, model: torch.nn.Module, cache: Any, logits: Tensor, mask: Tensor,
                 position: Tensor) -> None:
        self.model = model
        self.cache = cache             # Transformers' key–value cache of B rows, T columns
        self.logits = logits           # (B, V), of each row's next token
        self.mask = mask               # (B, T), 0 where the cache holds padding
        self.position = position       # (B,), of each row's next token

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        import torch
        index = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.logits = self.logits[index]
        self.mask = self.mask[index]
        self.position = self.position[index]

    def append(self, column: list[int | None]) -> None:
        """Run the model on one more token of every row; None is padding."""
        import torch
        device = self.mask.device
        ids = torch.tensor([[token or 0] for token in column], device=device)             # (B, 1)
        real = torch.tensor([[int(token is not None)] for token in column], device=device)
        self.mask = torch.cat([self.mask, real], 1)
        out = self.model(input_ids=ids, attention_mask=self.mask, position_ids=self.position[:, None],
                         past_key_values=self.cache, use_cache=True)
        self.logits = out.logits[:, -1]
        self.position = self.position + real[:, 0]


class Row:
    """Where one episode stands in the stream of columns."""

    def __init__(self, episode: Episode, seed: int) -> None:
        import torch
        random = torch.Generator().manual_seed(episode.sampling_seed(seed))
        self.episode = episode
        self.uniform = torch.rand(1 + episode.tokens_left, generator=random)    # one a token that is drawn
        self.drawn = 0                               # how many of them are used up
        self.ids: list[int] = []                     # tokens of the turn that is being sampled
        self.logps: list[float] = []                 # their log-probs
        self.forced: list[int] = []                  # observation tokens that are still to come, in reverse
        self.running: Future | None = None           # the code of the turn just sampled
        self.done = False

    def next(self, token: int, logp: float, chat: Chat, pool: ThreadPoolExecutor) -> int | None:
        """The row's next token: forced, or the `token` just drawn; None while code runs and at the end."""
        if self.running is not None and self.running.done():
            between = self.running.result()
            self.running = None
            if between is None:
                self.done = True
            else:
                self.forced = between[::-1]
        if self.done or self.running is not None:
            return None
        if self.forced:
            return self.forced.pop()
        self.ids.append(token)
        self.logps.append(logp)
        self.drawn += 1
        if token == chat.end or token in chat.stray or len(self.ids) >= self.episode.tokens_left:
            self.running = pool.submit(self.episode.token_turn, chat, self.ids, self.logps)
            self.ids = []
            self.logps = []
        return token


def wait_for_code(rows: list[Row]) -> None:
    """Wait while more than half of the live rows run code: a column costs nearly as much for few rows."""
    live = [row for row in rows if not row.done]
    running = [row.running for row in live if row.running is not None and not row.running.done()]
    while 2 * len(running) > len(live):
        wait(running, return_when=FIRST_COMPLETED)
        running = [job for job in running if not job.done()]


# ---- vLLM ----

# In this process, so that weights are handed over by reference; and quiet: no telemetry, no banner, no
# warning at every sync about modules without weights (whether a sync came through is checked by its user).
VLLM_ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": "ERROR"}
VLLM_CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}      # GiB; no pinning


class VLLMEngine:
    """Generation with vLLM in this process; under torchrun one engine a rank, on the rank's GPU.

    A request is a turn. What stands before it (the group's prefix, the episode's earlier turns) is in the
    prefix cache, so nothing is computed twice; the other episodes generate while the code of one runs.
    """

    batched = True
    separate = True

    def __init__(self, path: str, chat: Chat, memory: float = 0.9, longest: int | None = None,
                 attention: str | None = None, threads: int = 16, seed: int = 0,
                 dtype: torch.dtype | str = "auto", shared_gpu: bool = False) -> None:
        """memory: share of the GPU for weights and cache; longest: tokens of a whole trajectory; attention:
        vLLM's name of a backend (None for both: vLLM's choice); threads: programs that run at once;
        shared_gpu: `sleep` leaves it to the trainer.
        """
        import torch
        cuda = torch.cuda.is_available()
        settings = VLLM_ENV if cuda else VLLM_ENV | VLLM_CPU_ENV
        for name, value in settings.items():
            os.environ.setdefault(name, value)             # before vLLM is imported
        import vllm
        self.vllm = vllm
        self.chat = chat
        self.threads = threads
        self.longest = longest
        self.sleeps = cuda and shared_gpu                  # whether `sleep` frees anything
        self.asleep = False
        launcher = "external_launcher" if "RANK" in os.environ else None
        # vLLM's CPU build (0.32) fails where the prompt of a request with a seed is computed in pieces
        in_one_piece = {} if cuda else {"enable_chunked_prefill": False,
                                        "max_num_batched_tokens": max(4096, longest or 0)}
        try:
            self.llm = vllm.LLM(path, dtype=dtype, seed=seed, gpu_memory_utilization=memory,
                                max_model_len=longest, attention_backend=attention,
                                enable_prefix_caching=True, enable_sleep_mode=self.sleeps,
                                enforce_eager=not cuda, skip_tokenizer_init=True,
                                logprobs_mode="processed_logprobs", distributed_executor_backend=launcher,
                                **in_one_piece)
        except (AssertionError, ValueError) as error:      # of memory, a setting, an unknown model
            said = " ".join(str(error).split())[:300]
            raise InputError(f"vLLM does not start with {path}: {said} (--vllm-memory {memory:g} is its "
                             "share of the GPU, where nothing else may take or free memory now)") from error
        size = self.llm.llm_engine.model_config.get_vocab_size()
        self.stops = [token for token in (chat.end, *chat.stray) if token < size]      # vLLM refuses others

    def params(self, **how: Any) -> Any:
        """vLLM's SamplingParams. A turn ends only with the chat template's end of turn or a token that has no
        place in a turn (`stop_token_ids`), whatever else the model's own files call an end."""
        final = self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        return self.vllm.SamplingParams(logprobs=0, detokenize=False, ignore_eos=True, output_kind=final,
                                        **how)

    def play(self, episodes: list[Episode], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
             seed: int = 0, progress: tqdm | None = None) -> None:
        engine = self.llm.llm_engine
        asked: dict[str, int] = {}                         # name of a request -> index of its episode
        running: dict[Future, int] = {}                    # a turn's code -> index of its episode

        def ask(i: int) -> None:
            episode = episodes[i]
            if self.longest is not None and len(episode.ids) >= self.longest:
                episode.turn("", complete=False)           # corrected steps have filled the room
                if progress is not None:
                    progress.update(1)
                return
            name = f"{i} {episode.calls}"
            params = self.params(temperature=temperature, top_p=top_p, top_k=top_k,
                                 max_tokens=episode.tokens_left, seed=episode.sampling_seed(seed),
                                 stop_token_ids=self.stops)
            engine.add_request(name, self.vllm.inputs.tokens_input(episode.ids), params)
            asked[name] = i

        with ThreadPoolExecutor(self.threads) as pool:
            for i, episode in enumerate(episodes):
                episode.begin(self.chat)
                ask(i)
            while asked or running:
                if asked:
                    for request in engine.step():
                        i = asked.pop(request.request_id)
                        tokens, logps = sampled(request)
                        running[pool.submit(episodes[i].token_turn, self.chat, tokens, logps)] = i
                if not asked:
                    wait(running, return_when=FIRST_COMPLETED)
                for job in [job for job in running if job.done()]:
                    i = running.pop(job)
                    if job.result() is not None:
                        ask(i)
                    elif progress is not None:
                        progress.update(1)

    def greedy(self, prompt: list[int], n: int = 16) -> tuple[list[int], list[float]]:
        """The prompt's greedy continuation by n tokens, and their log-probs."""
        params = self.params(temperature=0, max_tokens=n)
        requests = self.llm.generate([self.vllm.inputs.tokens_input(prompt)], params, use_tqdm=False)
        return sampled(requests[0])

    def sleep(self) -> None:
        """Free weights and cache on the GPU until `load`."""
        if self.sleeps:
            self.llm.sleep(level=2)
            self.asleep = True

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainer's weights, under their Hugging Face names.

        Tied embeddings need both names; without `lm_head.weight` vLLM keeps its old head and says nothing.
        """
        import torch
        if self.asleep:
            torch.cuda.empty_cache()                       # PyTorch keeps what an update freed, vLLM needs it
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False
        self.llm.reset_prefix_cache()


def sampled(request: Any) -> tuple[list[int], list[float]]:
    """-> token ids, log-probs of a finished vLLM request."""
    out = request.outputs[0]
    tokens = list(out.token_ids)
    return tokens, [at[token].logprob for token, at in zip(tokens, out.logprobs)]


# ---- an endpoint ----

class URLEngine:
    """Generation by an OpenAI-compatible chat endpoint; text only: for data and evaluation, not training."""

    batched = False
    separate = True

    def __init__(self, url: str, model: str, concurrency: int = 64, timeout: float = 600,
                 retries: int = 12) -> None:
        self.url = url
        self.model = model
        self.concurrency = concurrency                     # requests in flight at once
        self.timeout = timeout                             # seconds for one reply
        self.retries = retries                             # further tries when network or server fails
        self.refused: set[str] = set()                     # fields of a request that it does not take

    def play(self, episodes: list[Episode], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
             seed: int = 0, progress: tqdm | None = None) -> None:
        body = {"model": self.model, "temperature": temperature, "top_p": top_p}
        if top_k:
            body["top_k"] = top_k                          # not every endpoint knows it

        def play_one(episode: Episode) -> None:
            goes_on = True
            while goes_on:
                messages = [{**m, "content": m["content"].strip()} for m in episode.messages]    # as in Chat
                ask = {"messages": messages, "max_tokens": episode.max_tokens,
                       "seed": episode.sampling_seed(seed)}
                try:
                    choice = chat_completion(self.url, body | ask, timeout=self.timeout,
                                             retries=self.retries, refused=self.refused)
                except BadReply as error:
                    # not even a question is taken; a draft of baselines/correctors.py is none
                    if len(messages) == 1 and getattr(episode, "is_question", True) and not episode.calls:
                        raise InputError(f"--student-url {self.url}: {error}") from None
                    episode.turn("", complete=False)       # the messages are too long for the server by now
                    break
                spent = choice.get("usage") or {}              # not every endpoint tells it
                count(student_tokens=int(spent.get("completion_tokens") or 0))
                complete = choice.get("finish_reason") not in CUT_OFF
                goes_on = episode.turn(choice["message"]["content"], complete) is not None
            if progress is not None:
                progress.update(1)

        with ThreadPoolExecutor(self.concurrency) as pool:
            list(pool.map(play_one, episodes))             # the list raises what a thread raised
