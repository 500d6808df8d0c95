"""The engines of env.py that generate elsewhere than in the trainer's model: vLLM, and an endpoint."""
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from judge import chat_completion

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
