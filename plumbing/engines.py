"""What generates: a Transformers model in plain torch, vLLM in this process, or an endpoint."""
import functools
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from plumbing.chat_api import chat_completion
from plumbing.cli import InputError
from plumbing.models import load_model, named_on_error


def load_engine(kind, model, url, make_chat):
    """kind: torch | vllm | url. `model`: a Hugging Face folder or hub name; for url, its name there."""
    if kind == "url":
        if not url:
            raise InputError("--engine url needs --student-url")
        return URLEngine(url, model)
    if kind == "vllm":
        import transformers
        with named_on_error(model):
            chat = make_chat(transformers.AutoTokenizer.from_pretrained(model))
            dtype = transformers.AutoConfig.from_pretrained(model).dtype or "auto"     # its "auto" halves fp32
        return VLLMEngine(model, chat, dtype=dtype)
    loaded, tokenizer = load_model(model, "auto")
    with named_on_error(model):
        return TorchEngine(loaded, make_chat(tokenizer))


#
# ---- a Transformers model ----


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

    def __init__(self, model, chat, batch=128):
        from plumbing.attention import use_segments
        if model.config._attn_implementation == "sdpa":
            use_segments(model)                            # decodes without copies of keys and values
        self.model, self.chat, self.batch = model, chat, batch

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


#
# ---- vLLM ----


# In this process, so that weights are handed over by reference; and quiet: no telemetry, no banner, no
# warning at every sync about modules without weights (whether a sync came through is checked by its user).
VLLM_ENV = dict(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
                VLLM_LOGGING_LEVEL="ERROR")
VLLM_CPU_ENV = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")       # GiB


class VLLMEngine:
    """Generation with vLLM in this process; under torchrun one engine a rank, on the rank's GPU.

    A request is a turn. What stands before it (the group's prefix, the episode's earlier turns) is in the
    prefix cache, so nothing is computed twice; the other episodes generate while the code of one runs.
    """

    def __init__(self, path, chat, memory=0.9, seed=0, dtype="auto", shared_gpu=False):
        """memory: share of the GPU for weights and cache; shared_gpu: leave it to the trainer in `sleep`."""
        import torch
        cuda = torch.cuda.is_available()
        for name, value in (VLLM_ENV if cuda else VLLM_ENV | VLLM_CPU_ENV).items():
            os.environ.setdefault(name, value)
        import vllm
        self.vllm, self.chat, self.sleeps, self.asleep = vllm, chat, cuda and shared_gpu, False
        launcher = "external_launcher" if "RANK" in os.environ else None
        self.llm = vllm.LLM(path, dtype=dtype, seed=seed, gpu_memory_utilization=memory,
                            enable_prefix_caching=True, enable_sleep_mode=self.sleeps, enforce_eager=not cuda,
                            skip_tokenizer_init=True, logprobs_mode="processed_logprobs",
                            distributed_executor_backend=launcher)

    def params(self, **how):
        """Only the chat template's end of turn ends a turn, whatever else the model's files call an end."""
        final = self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        return self.vllm.SamplingParams(logprobs=0, detokenize=False, ignore_eos=True, output_kind=final,
                                        **how)

    def play(self, episodes, temperature=1.0, top_p=1.0, top_k=0, seed=0, progress=None):
        engine, asked, running = self.llm.llm_engine, {}, {}        # request id -> index, future -> index

        def ask(i):
            e, name = episodes[i], f"{i} {episodes[i].calls}"
            params = self.params(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=e.room,
                                 seed=e.dice(seed), stop_token_ids=[self.chat.end])
            engine.add_request(name, self.vllm.inputs.tokens_input(e.ids), params)
            asked[name] = i

        with ThreadPoolExecutor(16) as pool:
            for i, e in enumerate(episodes):
                e.begin(self.chat)
                ask(i)
            while asked or running:
                for out in engine.step() if asked else []:
                    i = asked.pop(out.request_id)
                    running[pool.submit(episodes[i].token_turn, self.chat, *sampled(out))] = i
                if not asked:
                    wait(running, return_when=FIRST_COMPLETED)
                for job in [job for job in running if job.done()]:
                    i = running.pop(job)
                    if job.result() is not None:
                        ask(i)
                    elif progress is not None:
                        progress.update(1)

    def greedy(self, prompt, n=16):
        """-> the n likeliest tokens after the prompt, their log-probs."""
        params = self.params(temperature=0, max_tokens=n)
        return sampled(self.llm.generate([self.vllm.inputs.tokens_input(prompt)], params, use_tqdm=False)[0])

    def sleep(self):
        """Free weights and cache on the GPU until `load`."""
        if self.sleeps:
            self.llm.sleep(level=2)
            self.asleep = True

    def load(self, pairs):
        """Take over the trainer's weights: (name, tensor) pairs under Hugging Face names.

        Tied embeddings need both names; without `lm_head.weight` vLLM keeps its old head and says nothing.
        """
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pairs})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False
        self.llm.reset_prefix_cache()


def sampled(request):
    """-> token ids, log-probs of a finished vLLM request."""
    out = request.outputs[0]
    return list(out.token_ids), [at[token].logprob for token, at in zip(out.token_ids, out.logprobs)]


#
# ---- an endpoint ----


class URLEngine:
    """Generation by an OpenAI-compatible chat endpoint; text only: for data and evaluation, not training."""

    def __init__(self, url, model, concurrency=64, timeout=600):
        self.url, self.model, self.concurrency, self.timeout = url, model, concurrency, timeout

    def play(self, episodes, temperature=1.0, top_p=1.0, top_k=0, seed=0, progress=None):
        body = (dict(model=self.model, temperature=temperature, top_p=top_p)
                | (dict(top_k=top_k) if top_k else {}))

        def run(e):
            seen = ""
            while seen is not None:
                ask = dict(messages=e.messages, max_tokens=e.max_tokens, seed=e.dice(seed))
                choice = chat_completion(self.url, body | ask, timeout=self.timeout)
                seen = e.turn(choice["message"]["content"], choice.get("finish_reason") != "length")
            if progress is not None:
                progress.update(1)
        with ThreadPoolExecutor(self.concurrency) as pool:
            list(pool.map(run, episodes))
