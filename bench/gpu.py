"""What only a GPU can show, in one run of at most six minutes: does the CUDA path compute what it should, how
fast is it, and how much memory does it take?

    python bench/gpu.py --out runs/gpu --budget 350      # one GPU of 80 GB
    python bench/gpu.py --only parity attend             # some of the sections
    python bench/gpu.py --table --out runs/gpu           # what it found, as the table of bench/README.md
    python bench/gpu.py --cpu-smoke                      # no GPU: the same code, tiny sizes, a few minutes

It needs one CUDA GPU and the packages of requirements-gpu.txt; what needs vLLM is left out where that is
missing. It needs no network: all weights are random and made on the spot. With --cpu-smoke the packages of
requirements.txt are enough; a few plain lines then stand in for the flash-attention kernel, and the speeds mean
nothing.

  parity   log-probs, losses and gradients in bf16 of packed rows (flash-attention, SDPA) and of padded rows,
           against padded rows in fp32: trajectories and GRPO groups with observations, grouped heads, head
           sizes 64 and 128, lengths that are no multiple of 128, recomputed activations, logits in chunks
  cli      real runs of sft.py and grpo_short.py under DeepSpeed, ZeRO 0, 2 and 3 in bf16, 0 in fp32, and
           grpo_short.py with vLLM, in the background while `parity` runs
  attend   the attention alone, forward and backward, in ms, and the gathering of a shared prefix
  sft      tokens a second at the shapes of Qwen2.5 1.5B and 7B, rows of 4096 tokens, beside Transformers
  grpo     forward and backward of an update on a group, (prefix, response, rollouts) = (512, 330, 16) and
           (840, 430, 16), beside padded rows and Transformers
  decode   TorchEngine and VLLMEngine beside Transformers' generate, 8 prompts x 16
  memory   1.5B under DeepSpeed in a process of its own: the peak of two steps, ZeRO 0, 2, 3

A section starts nothing that the budget has no time for. A fault in one is written down and the others go
on. The figures are printed as a table and written to OUT/gpu.json; what the real runs printed is in
OUT/cli.log. The exit code is 1 if there was a fault, a gradient too far off, or a real run that failed.
"""
import argparse
import contextlib
import gc
import importlib.util
import inspect
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types

START = time.time()
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]
SECTIONS = ["parity", "cli", "attend", "sft", "grpo", "decode", "memory"]
SHAPES = {"1.5B": dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                       num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True),
          "7B": dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                     num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False)}
SMOKE = dict(vocab_size=1024, hidden_size=128, intermediate_size=96, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2)
# (tokens, trained) of 16 of the authors' trajectories, from short to long, at 3.5 characters a token
LENGTHS = [(184, 161), (293, 252), (378, 341), (422, 353), (463, 410), (532, 145), (594, 500),
           (797, 252), (869, 162), (918, 308), (1008, 231), (1176, 432), (1440, 680), (1551, 343),
           (1733, 466), (4031, 3877)]


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/gpu", help="folder for gpu.json and cli.log (default runs/gpu)")
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these sections (default: all)")
    p.add_argument("--budget", type=float, default=350,
                   help="seconds; no section starts what it cannot end (default 350)")
    p.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on the CPU, no flash-attention (default: off)")
    p.add_argument("--table", action="store_true",
                   help="print the table of bench/README.md from OUT/gpu.json, and end (default: off)")
    p.add_argument("--child", choices=["memory", "vllm"], help=argparse.SUPPRESS)     # in its own process
    p.add_argument("--zero", type=int, help=argparse.SUPPRESS)
    return p.parse_args()


ARGS = parse_args()
CPU = ARGS.cpu_smoke
if CPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.attention.varlen as varlen
import transformers

import sft
from env import Chat, Episode
from plumbing import attention
from plumbing.attention import Segments, use_segments
from plumbing.engines import TorchEngine, VLLMEngine
from plumbing.models import LogProbs, TokenLogProbs, matmul_rate, model_flops
from plumbing.packing import Rollout, collate, pack_examples, pad_examples
from plumbing.ranks import start_distributed
from plumbing.trainer import make_trainer

DEVICE = torch.device("cpu" if CPU else "cuda")
HAS_VLLM = importlib.util.find_spec("vllm") is not None
RESULT = dict(sections={}, faults=[])
SEEDED = threading.Lock()      # held by who draws weights: `cli` and `parity` share the generator
left = lambda: 1e9 if CPU else ARGS.budget - (time.time() - START)


def say(text):
    print(f"[{time.time() - START:5.0f} s] {text}", flush=True)


def save():
    with open(os.path.join(ARGS.out, "gpu.json"), "w") as f:
        json.dump(RESULT, f, indent=1, default=str)


def fault(what, error):
    first = (str(error).strip().splitlines() or [""])[0][:300]
    text = f"{what}: {type(error).__name__}: {first}"
    RESULT["faults"].append(dict(what=what, error=text, trace=traceback.format_exc()[-3000:]))
    say("FAULT " + text)


@contextlib.contextmanager
def guarded(what):
    """A fault is written down; the run goes on."""
    try:
        yield
    except Exception as error:                                             # also torch.OutOfMemoryError
        fault(what, error)
    finally:
        free()


def free():
    gc.collect()
    if not CPU:
        torch.cuda.empty_cache()


def sync():
    if not CPU:
        torch.cuda.synchronize()


def measure(work, repeats=3, warm=1):
    """-> seconds (median), GiB of the peak beyond what is held before; gradients are to be None before."""
    held, found = 0 if CPU else torch.cuda.memory_allocated(), []
    for _ in range(warm):
        work()
    sync()
    if not CPU:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        sync()
        found.append(time.perf_counter() - start)
    peak = 0 if CPU else (torch.cuda.max_memory_allocated() - held) / 2 ** 30
    return statistics.median(found), peak


# ---- which attention packed rows get ----

def reference_varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
    """Flash-attention's contract in plain code, for --cpu-smoke: causal, aligned to the last key."""
    assert window_size == (-1, 0) and cu_q.dtype == cu_k.dtype == torch.int32
    assert longest_q == cu_q.diff().max() and longest_k == cu_k.diff().max()
    outs = []
    for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:]):
        mask = torch.ones(b - a, d - c, dtype=torch.bool, device=q.device).tril(d - c - (b - a))
        part = [x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])]
        outs.append(torch.nn.functional.scaled_dot_product_attention(
            *part, mask, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(outs)


FLASH, SDPA = attention.attend_flash, attention.attend_sdpa


def flash(q, k, v, segments, scaling, varlen=None):
    """Flash-attention, PyTorch's own where `attend` has chosen none."""
    return FLASH(q, k, v, segments, scaling, varlen or attention.torch_varlen)


def sdpa(q, k, v, segments, scaling, varlen=None):
    return SDPA(q, k, v, segments, scaling)


WAYS = {"flash": flash, "sdpa": sdpa}


@contextlib.contextmanager
def attending(way=None):
    """Packed rows attend by this one of WAYS; None: by the one `attend` chooses, in the smoke by flash."""
    if CPU and way is None:
        way = "flash"
    if way is not None:
        attention.attend_flash = attention.attend_sdpa = WAYS[way]
    try:
        yield
    finally:
        attention.attend_flash, attention.attend_sdpa = FLASH, SDPA


def attend(q, k, v, segments, scale):
    return attention.attend(torch.nn.Module(), q, k, v, None, segments=segments, scaling=scale,
                            varlen=attention.find_varlen("auto"))[0]


def prepare_attention():
    """Record which flash-attention `attend` takes, and whether it runs."""
    RESULT["flash"] = attention.find_varlen("auto").__name__
    RESULT["varlen_attn"] = str(inspect.signature(varlen.varlen_attn))
    if CPU:
        varlen.varlen_attn = reference_varlen
        RESULT["attend"] = "not tried: flash-attention is replaced"
        return
    make = lambda *shape: torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    x = [make(1, heads, 134, 64) for heads in (8, 2, 2)]
    try:
        attend(*x, Segments([40, 33, 61], [None, 0, 0], DEVICE), 0.125).sum().backward()
        RESULT["attend"] = "runs"
    except Exception as error:
        RESULT["attend"] = f"{type(error).__name__}: {error}"
    say(f"attend with {RESULT['flash']}: {RESULT['attend']}")


def machine():
    """Ceilings: bf16 matmul on random data, memory copy; and what the project takes as the matmul rate."""
    n = 512 if CPU else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    seconds, _ = measure(lambda: a @ b, 10, 3)
    x = torch.empty(2 ** 20 if CPU else 2 ** 32, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    copy, _ = measure(lambda: y.copy_(x), 5, 2)
    RESULT["machine"] = dict(
        torch=torch.__version__, transformers=transformers.__version__, python=sys.version.split()[0],
        device="cpu" if CPU else torch.cuda.get_device_name(), cuda=torch.version.cuda,
        matmul_tflops=2 * n ** 3 / seconds / 1e12, copy_tb_s=2 * x.numel() / copy / 1e12,
        project_matmul_tflops=matmul_rate(DEVICE, torch.bfloat16) / 1e12)
    say(f"{RESULT['machine']}")


# ---- parity ----

def tiny(family, head_dim):
    """Two layers, grouped heads (4 a key-value head; smoke: 2), weights exact in bf16 -> fp32 policy."""
    heads = 8 if not CPU else 4
    width = heads * head_dim
    config, model = {"qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
                     "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM)}[family]
    with SEEDED, torch.no_grad():
        torch.manual_seed(0)
        made = model(config(
            vocab_size=1000, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=heads, num_key_value_heads=2, max_position_embeddings=4096,
            initializer_range=0.05, tie_word_embeddings=family == "qwen2"))
        for name, p in made.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.1)
            p.copy_(p.bfloat16())
    return LogProbs(made.to(DEVICE).train())


def documents():
    rng = random.Random(1)
    lengths = [1, 17, 128, 129, 300, 511, 77] if not CPU else [1, 9, 33, 20]
    ids = lambda n: [rng.randrange(1000) for _ in range(n)]
    return [(ids(n), [int((i // 7) % 3 != 1) for i in range(n)]) for n in lengths]


def group(prompt, lengths, seed):
    """Rollouts with observations inside (loss_mask 0), some cut in mid-turn, all with an advantage."""
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(1000) for _ in range(n)]
    prefix, found = ids(prompt), []
    for n in lengths:
        mask = [1] + [int((i // 7) % 3 != 1) for i in range(1, n)]
        old = [rng.uniform(-7.3, -6.5) * m for m in mask]
        found.append(Rollout(prefix + ids(n), [0] * prompt + mask, [0.0] * prompt + old, rng.uniform(-2, 2),
                             prompt))
    return found


@contextlib.contextmanager
def one_rank():
    """grpo_short.update without DeepSpeed: the policy is the trainer, gradients stay in .grad."""
    import grpo_short as grpo

    def step(trainer, micro, loss_of, lr):
        for batch in micro:
            loss_of(*batch).backward()
        return 0.0
    ranks = grpo.ranks
    kept = ranks.sum_over_ranks, ranks.most_over_ranks, grpo.optimizer_step
    ranks.sum_over_ranks = lambda *numbers, after=None: list(numbers)
    ranks.most_over_ranks = lambda number: number
    grpo.optimizer_step = step
    try:
        yield grpo
    finally:
        ranks.sum_over_ranks, ranks.most_over_ranks, grpo.optimizer_step = kept


def update(grpo, trainer, groups, args):
    """A mini-batch of groups, pi_old the engine's -> what came of its update."""
    micro, tokens = grpo.mini_batch(groups, args, DEVICE)
    old = grpo.anchor(trainer, micro, "engine", args.temperature)
    return grpo.update(trainer, micro, tokens, old, None, args)


def gradients(policy):
    return {n: p.grad.float().clone() for n, p in policy.named_parameters() if p.grad is not None}


def run_sft(policy, packed):
    """-> log-probs of the trained tokens in the order of the documents, gradient of a weighted loss."""
    policy.zero_grad()
    batch = (pack_examples if packed else pad_examples)(documents(), DEVICE)
    logps = policy(*batch, temperature=0.8)
    (logps * torch.linspace(-1, 2, len(logps), device=DEVICE)).mean().backward()
    return logps.detach().float(), gradients(policy)


def run_grpo(policy, packed):
    """-> the update's sums for the log, gradient of grpo_short's own loss."""
    policy.zero_grad()
    groups = ([group(200, [33, 257, 8, 1, 60], 1), group(129, [90, 17], 3)] if not CPU else
              [group(20, [13, 8, 1], 1), group(9, [9], 3)])
    flags = "--model m --data d --out o --teacher-url u --micro-batch 3 --temperature 0.8".split()
    with one_rank() as grpo:
        args = grpo.parse_args(flags + ([] if packed else ["--no-pack"]))
        done = update(grpo, policy, groups, args)
    return torch.tensor([done.sums["loss"], statistics.mean(done.gaps)]), gradients(policy)


def distance(a, b):
    """||a - b|| / ||b|| over all gradients, and the same of the output matrix alone."""
    assert a.keys() == b.keys()
    norm = lambda d: math.sqrt(sum(float((x.double() ** 2).sum()) for x in d.values()))
    outer = [n for n in b if n.endswith(("lm_head.weight", "embed_tokens.weight"))]
    head = min(outer, key=lambda n: "lm_head" not in n)                    # where tied it is the embeddings
    diff = {n: a[n] - b[n] for n in b}
    return norm(diff) / norm(b), norm({0: diff[head]}) / norm({0: b[head]})


# name, policy, packed, one of WAYS, chunks of 64 tokens, activations recomputed
PARITY = [("fp32 packed sdpa", "exact", True, "sdpa", False, False),
          ("bf16 padded", "half", False, None, False, False),
          ("bf16 packed flash", "half", True, None, False, False),         # on a GPU as `attend` chooses
          ("bf16 packed sdpa", "half", True, "sdpa", False, False),
          ("bf16 packed flash, recomputed", "half", True, "flash", False, True),
          ("bf16 packed flash, 64-token chunks", "half", True, "flash", True, False)]
if CPU:                                                                    # the kernel has no fp32
    PARITY.insert(1, ("fp32 packed flash", "exact", True, "flash", False, False))


def parity():
    rows, chunk = [], TokenLogProbs.LOGITS
    for family, head_dim in (("qwen2", 64), ("llama", 128)):
        policies = dict(exact=tiny(family, head_dim), half=tiny(family, head_dim))
        for p in policies["half"].parameters():                # not the rotary buffers: as DeepSpeed does
            p.data = p.data.bfloat16()
        for kind, run in ("sft", run_sft), ("grpo", run_grpo):
            policies["exact"].model.set_attn_implementation("sdpa")        # Transformers' own, fp32, padded
            truth = run(policies["exact"], False)
            of_kind = []
            for name, which, packed, way, chunks, again in PARITY:
                if family == "llama" and (again or chunks and kind == "grpo"):
                    continue                                               # qwen2 has it
                policy = policies[which]
                with guarded(f"parity {family} {kind} {name}"):
                    use_segments(policy.model)
                    if again:
                        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
                    TokenLogProbs.LOGITS = 1000 * 64 if chunks else chunk
                    with attending(way):
                        value, gradient = run(policy, packed)
                    value, expected = value.cpu().double(), truth[0].cpu().double()
                    far, head = distance(gradient, truth[1])
                    of_kind.append(dict(family=family, head_dim=head_dim, kind=kind, way=name, gradient=far,
                                        value=float((value - expected).abs().mean()), head=head))
                if again:
                    policy.model.gradient_checkpointing_disable()
                TokenLogProbs.LOGITS = chunk
            base = next((r["gradient"] for r in of_kind if r["way"] == "bf16 padded"), float("nan"))
            for r in of_kind:
                bound = 1e-4 if r["way"].startswith("fp32") else max(2e-3, 1.5 * base)
                r["ok"] = r["gradient"] < bound
            rows += of_kind
    RESULT["sections"]["parity"] = rows
    for r in rows:
        say(f"parity {r['family']} {r['head_dim']} {r['kind']:4} {r['way']:36} value {r['value']:.1e} "
            f"gradient {r['gradient']:.1e} head {r['head']:.1e} {'ok' if r['ok'] else 'TOO FAR'}")


# ---- real runs ----

def write(path, records):
    with open(path, "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in records)


def make_inputs(path):
    """An untrained student, demonstrations of one step, starts for GRPO: few, so that some come out right."""
    import student
    import teacher
    import world
    tokenizer = student.make_tokenizer()
    with SEEDED:
        model = student.make_model(tokenizer, width=64)
    model.save_pretrained(path("init"))
    tokenizer.save_pretrained(path("init"))
    data, starts = [], []
    for t in world.make_tasks(random.Random(0), "t", 60, set(), math=(2, 3), hops=(2, 3)):
        if t["kind"] != "math":
            continue
        head = [{"role": "user", "content": t["question"]},
                {"role": "assistant", "content": f"<first_thought>{teacher.PLANS['math']}</first_thought>"},
                {"role": "user", "content": "Observation: None"}]
        step = teacher.Task(t["question"]).next(False)
        data.append({**t, "messages": head + [{"role": "assistant", "content": step}]})
        starts.append({**t, "kind": "key_step", "messages": head,
                       "chosen": {"content": step, "observation": "6"},
                       "rejected": {"content": "<thought>a</thought><code>1/0</code>",
                                    "observation": "Error"}})
    write(path("bc.jsonl"), data[:6])
    write(path("rl.jsonl"), starts[:6])


def together(commands, path, log):
    """Run scripts at once -> {name: exit code, seconds, rows of metrics; where it failed, its last words}."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1" if CPU else "2"}
    running, rows = {}, {}
    for name, (script, *flags) in commands.items():
        output = open(path(name + ".txt"), "w+")
        command = [sys.executable, str(ROOT / script), *map(str, flags), "--out", path(name)]
        job = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        running[name] = output, time.time(), job
    for name, (output, start, job) in running.items():
        try:
            job.wait(min(900, max(5, left() - 5)))
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
        with output:
            output.seek(0)
            text = output.read()
        log.write(f"==== {name}, exit code {job.returncode}\n{text}\n")
        log.flush()
        rows[name] = dict(rc=job.returncode, seconds=time.time() - start, metrics=[],
                          tail=text[-600:] if job.returncode else "")
        if os.path.exists(path(name, "metrics.jsonl")):
            with open(path(name, "metrics.jsonl")) as f:
                rows[name]["metrics"] = [json.loads(line) for line in f]
    return rows


def cli(found):
    """sft.py and grpo_short.py as a user runs them; the metrics of all ways side by side."""
    import teacher
    ways = [("fp32", 0), ("bf16", 0), ("bf16", 2), ("bf16", 3)]
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(ARGS.out, "cli.log"), "w") as log:
        path = lambda *names: os.path.join(folder, *names)
        make_inputs(path)
        server, url = teacher.serve(teacher.parse_args(["--port", "0"]))
        found["sft"] = together({f"sft {dtype} zero {zero}": (
            "sft.py", "--model", path("init"), "--data", path("bc.jsonl"), "--steps", 60, "--batch", 8,
            "--lr", "3e-3", "--row-tokens", 256, "--dtype", dtype, "--zero", zero)
            for dtype, zero in ways}, path, log)
        trained = next((path(n) for n in ("sft bf16 zero 0", "sft fp32 zero 0")
                        if os.path.exists(path(n, "config.json"))), path("init"))
        grpo = ("grpo_short.py", "--model", trained, "--data", path("rl.jsonl"), "--teacher-url", url,
                "--prompts", 4, "--mini-batch", 2, "--group", 6, "--steps", 2, "--lr", "1e-3",
                "--max-tokens", 60, "--max-failed", 1)
        commands = {f"grpo {dtype} zero {zero}": (*grpo, "--dtype", dtype, "--zero", zero) for dtype, zero in ways}
        if HAS_VLLM:
            commands["grpo bf16 vllm"] = (*grpo, "--dtype", "bf16", "--engine", "vllm", "--vllm-memory", 0.1)
        found["grpo"] = together(commands, path, log)
        server.shutdown()


def cli_or_fault(found):
    try:
        cli(found)
    except BaseException as error:                                         # in a thread: also SystemExit
        fault("cli", error)


def report_cli(found):
    for kind, rows in found.items():
        for name, r in rows.items():
            first, last = (r["metrics"] or [{}])[0], (r["metrics"] or [{}])[-1]
            keys = ("loss", "grad_norm") if kind == "sft" else ("reward", "logp_gap", "sync_gap", "grad_norm")
            pick = lambda row: " ".join(f"{k} {row[k]:.4g}" for k in keys if k in row)
            say(f"cli {name:18} exit code {r['rc']} {r['seconds']:.0f} s, {len(r['metrics'])} steps; "
                f"first: {pick(first)}; last: {pick(last)}"
                + (f"\n      {r['tail'][-300:]!r}" if r["tail"] else ""))
    RESULT["sections"]["cli"] = found


# ---- attention alone ----

def timed(work, leaves):
    """-> dict of ms forward, ms with backward, GiB; leaves: what gets gradients."""
    def both():
        for leaf in leaves:
            leaf.grad = None
        out = work()
        out.backward(out.detach())
    with torch.no_grad():
        ahead, _ = measure(work, 10, 3)
    seconds, peak = measure(both, 10, 3)
    return dict(forward_ms=1e3 * ahead, both_ms=1e3 * seconds, peak_gib=peak)


def section_attend():
    rows = RESULT["sections"].setdefault("attend", [])
    H, kv, D = (28, 4, 128) if not CPU else (4, 2, 16)
    layouts = {"group 840 + 16 x 430": ([840] + [430] * 16, [None] + [0] * 16),
               "row of 4096, 5 documents": ([900, 1100, 700, 796, 600], None)}
    if CPU:
        layouts = {"group": ([24] + [12] * 4, [None] + [0] * 4)}
    make = lambda *shape: torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    for title, (lengths, parents) in layouts.items():
        x = [make(1, h, sum(lengths), D) for h in (H, kv, kv)]
        for way in WAYS:
            with guarded(f"attend {title} {way}"), attending(way):
                segments = Segments(lengths, parents, DEVICE)
                work = lambda: attend(*x, segments, D ** -0.5)
                rows.append(dict(layout=title, arm=way, **timed(work, x)))
        with guarded(f"attend {title} padded"):
            full = [lengths[0] + n for n in lengths[1:]] if parents else lengths
            y = [make(len(full), h, max(full), D) for h in (H, kv, kv)]
            arm = f"SDPA causal, padded {len(full)} x {max(full)}"
            work = lambda: torch.nn.functional.scaled_dot_product_attention(
                *y, is_causal=True, enable_gqa=True)
            rows.append(dict(layout=title, arm=arm, **timed(work, y)))
        if parents:
            keys, k = Segments(lengths, parents, DEVICE).cumulative[0], make(sum(lengths), kv, D)
            for name, gather in (("k[keys]", lambda: k[keys]),
                                 ("k.index_select(0, keys)", lambda: k.index_select(0, keys))):
                with guarded(f"attend gather {name}"):
                    rows.append(dict(layout=title, arm=name, **timed(gather, [k])))
    for r in rows:
        say(f"attend {r['layout']:26} {r['arm']:30} forward {r['forward_ms']:.2f} ms, with backward "
            f"{r['both_ms']:.2f} ms, {r['peak_gib']:.2f} GiB")


# ---- speed ----

def build(shape):
    """A Qwen2 of this shape with random bf16 weights, made on the device."""
    sizes = {**SHAPES[shape], **(SMOKE if CPU else {})}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with DEVICE:
            model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
                max_position_embeddings=8192, eos_token_id=1, pad_token_id=1, bos_token_id=None, **sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    return LogProbs(model.train())


def trajectories(vocabulary):
    rng = random.Random(0)
    chosen = [LENGTHS[i] for i in (2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3, 5, 15, 1, 0)]
    if CPU:
        chosen = [(n // 20, t // 20) for n, t in chosen[:6]]
    found = []
    for n, trained in chosen:                                              # turns and observations alternate
        mask = [0] * (n - trained) + [1] * trained
        blocks = [mask[i:i + 40] for i in range(0, n, 40)]
        rng.shuffle(blocks)
        found.append(([rng.randrange(10, vocabulary) for _ in range(n)], sum(blocks, [])))
    return found


def backward_all(policy, batches, total):
    policy.zero_grad(set_to_none=True)
    for batch in batches:
        sft.bc_loss(policy(*batch), total).backward()


def hf_sft(policy, examples, micro, total):
    """The same batch as Transformers' Trainer puts it: any order, padded, logits of all positions."""
    policy.zero_grad(set_to_none=True)
    for i in range(0, len(examples), micro):
        ids, present, loss = (x.to(DEVICE) for x in collate(examples[i:i + micro], 1))
        out = policy.model(input_ids=ids, attention_mask=present, labels=ids.masked_fill(loss == 0, -100),
                           num_items_in_batch=total, use_cache=False)
        out.loss.backward()
        del out


def fits(name, attempts, policy):
    """The first (micro-batch, work) that fits -> its micro-batch, seconds, GiB."""
    for micro, work in attempts:
        policy.zero_grad(set_to_none=True)
        free()
        try:
            return micro, *measure(work, 1 if CPU else 2)
        except torch.OutOfMemoryError:
            pass
    raise RuntimeError(f"{name}: out of memory at a micro-batch of {attempts[-1][0]}")


def time_arms(title, arms, policy, flops, row):
    """Measure {arm: [(micro-batch or None, work)]} -> yields the row of figures of each, begun by `row`."""
    for name, attempts in arms.items():
        if left() < 15:
            say(f"{title} {name}: no time")
            return
        with guarded(f"{title} {name}"):
            if name.startswith("Transformers"):
                policy.model.set_attn_implementation("sdpa")
            else:
                use_segments(policy.model)
            micro, seconds, peak = fits(name, attempts, policy)
            share = flops / seconds / 1e12 / RESULT["machine"]["matmul_tflops"]
            yield dict(**row, arm=name, micro=micro, seconds=seconds, peak_gib=peak, of_matmul=share)
            say(f"{title} {name}: {seconds:.3f} s, {share:.0%} of matmul, {peak:.1f} GiB beyond weights, "
                + ("recomputed" if row["recompute"] else "kept")
                + (f", micro-batch {micro}" if micro else ""))


def section_sft(policy, shape, recompute, only=None):
    examples = trajectories(policy.model.config.vocab_size)
    total, tokens = sft.trained_tokens(examples), sum(len(ids) for ids, _ in examples)

    def ours(pack, micro=8):
        args = types.SimpleNamespace(pack=pack, row_tokens=4096 if not CPU else 128, micro_batch=micro)

        def one():
            with attending():
                backward_all(policy, sft.micro_batches(examples, 0, 1, args, DEVICE), total)
        return one
    arms = {"ours packed": [(None, ours(True))],
            "ours padded": [(m, ours(False, m)) for m in (8, 4, 2, 1)],
            "Transformers sdpa": [(m, lambda m=m: hf_sft(policy, examples, m, total)) for m in (8, 4, 2, 1)]}
    if only:
        arms = {only: arms[only]}
    row = dict(shape=shape, recompute=recompute, tokens=tokens, trained=total)
    for r in time_arms(f"sft {shape}", arms, policy, model_flops(policy.model, False)(examples), row):
        RESULT["sections"].setdefault("sft", []).append({**r, "tokens_per_s": tokens / r["seconds"]})
    policy.zero_grad(set_to_none=True)


def rollouts(P, R, G, vocabulary):
    rng = random.Random(0)
    ids = lambda n: [rng.randrange(10, vocabulary) for _ in range(n)]
    prefix, old = ids(P), -math.log(vocabulary)
    return [Rollout(prefix + ids(R), [0] * P + [1] * R, [0.0] * P + [old] * R, float((-1) ** i), P)
            for i in range(G)]


def hf_grpo(policy, rollouts, micro):
    """Padded rollouts with the prefix in each, logits of the response kept, as TRL's loss takes them."""
    policy.zero_grad(set_to_none=True)
    P = rollouts[0].prompt_length
    R = len(rollouts[0].input_ids) - P
    for i in range(0, len(rollouts), micro):
        part = rollouts[i:i + micro]
        ids = torch.tensor([r.input_ids for r in part], device=DEVICE)
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
                              logits_to_keep=R + 1).logits[:, :-1]
        logps = torch.stack([row.float().log_softmax(-1).gather(-1, t[:, None])[:, 0]
                             for row, t in zip(logits, ids[:, P:])])
        old = torch.tensor([r.engine_logps[P:] for r in part], device=DEVICE)
        advantage = torch.tensor([r.advantage for r in part], device=DEVICE)[:, None]
        ratio = (logps - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        (-gain.sum() / (R * len(rollouts))).backward()
        del logits, logps, ratio, gain


def section_grpo(policy, shape, recompute):
    """Utilisation is that of padded rollouts' arithmetic for all arms alike: packed rows do less of it."""
    for P, R, G in ((512, 330, 16), (840, 430, 16)) if not CPU else ((24, 12, 4),):
        played = rollouts(P, R, G, policy.model.config.vocab_size)
        plain = model_flops(policy.model, False)([(r.input_ids, r.loss_mask) for r in played])

        def ours(*flags):
            def one():
                policy.zero_grad(set_to_none=True)
                with one_rank() as grpo, attending():
                    args = grpo.parse_args("--model m --data d --out o --teacher-url u".split() + list(flags))
                    update(grpo, policy, [played], args)
            return one
        arms = {"ours packed": [(None, ours())],
                "ours padded": [(m, ours("--no-pack", "--micro-batch", str(m))) for m in (8, 4, 2)],
                "Transformers sdpa": [(m, lambda m=m: hf_grpo(policy, played, m)) for m in (8, 4, 2, 1)]}
        row = dict(shape=shape, recompute=recompute, P=P, R=R, G=G)
        for r in time_arms(f"grpo {shape} P {P} R {R}", arms, policy, plain, row):
            RESULT["sections"].setdefault("grpo", []).append(
                {**r, "response_tokens_per_s": R * G / r["seconds"]})
    policy.zero_grad(set_to_none=True)


def speed(wanted):
    for shape in SHAPES:
        if left() < 40:
            say(f"{shape}: no time")
            return
        recompute = shape == "7B"
        with guarded(f"model {shape}"):
            policy = build(shape)
            say(f"{shape}: {sum(p.numel() for p in policy.parameters()) / 1e9:.2f}B parameters, "
                f"{policy.model.config.num_hidden_layers} layers"
                + (", activations recomputed except where it says kept" if recompute else ""))
            if "sft" in wanted and recompute:
                section_sft(policy, shape, False, "ours packed")
            if recompute:
                policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            if "sft" in wanted:
                section_sft(policy, shape, recompute)
            if "grpo" in wanted:
                section_grpo(policy, shape, recompute)
            if recompute:
                policy.model.gradient_checkpointing_disable()
            policy.zero_grad(set_to_none=True)
            if "decode" in wanted and shape == "1.5B":
                with guarded("decode"):
                    decode(policy.model)
            del policy
        save()


def in_child(*flags):
    """Run a section's part in a process of its own -> what it found."""
    command = [sys.executable, os.path.abspath(__file__), *flags]
    done = subprocess.run(command + (["--cpu-smoke"] if CPU else []), capture_output=True, text=True,
                          timeout=300 if CPU else max(10, left()))
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT")]
    if not lines:
        raise RuntimeError((done.stderr or done.stdout).strip()[-300:].replace("\n", " | "))
    return json.loads(lines[-1][7:])


# ---- decoding ----

class Still:
    """An interpreter that runs nothing."""
    lost = False

    def fork(self):
        return self

    def close(self):
        pass


NEW, PROMPT, PROMPTS, COPIES = (96, 512, 8, 16) if not CPU else (6, 24, 2, 4)


def play_prompts(engine):
    """-> the episodes of one turn that were played, COPIES of each prompt."""
    starts = [dict(id=str(i), question=" ".join(["Cy"] * (PROMPT - 3) + [str(i)])) for i in range(PROMPTS)]
    played = [Episode(start, Still(), max_steps=1, max_tokens=NEW, copy=i)
              for start in starts for i in range(COPIES)]
    engine.play(played)
    return played


def decode(model):
    import student
    use_segments(model)
    engine = TorchEngine(model, Chat(student.make_tokenizer()), 128)
    rows = RESULT["sections"].setdefault("decode", [])
    played = []

    def ours():
        played[:] = play_prompts(engine)
    seconds, peak = measure(ours, 1, 1)
    sampled = sum(sum(e.loss_mask) for e in played)
    rows.append(dict(arm="TorchEngine", tokens=sampled, seconds=seconds, tokens_per_s=sampled / seconds,
                     peak_gib=peak, prompt=played[0].prompt_length, rows=len(played)))
    say(f"decode TorchEngine: {sampled / seconds:.0f} tokens/s, {len(played)} rows, "
        f"{1e3 * seconds / NEW:.1f} ms a column")
    model.eval()
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([e.ids[:e.prompt_length] for e in played], device=DEVICE)

    def theirs():
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
                           max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=1)
    seconds, peak = measure(theirs, 1, 1)
    tokens = NEW * len(played)
    rows.append(dict(arm="Transformers generate", tokens=tokens, seconds=seconds,
                     tokens_per_s=tokens / seconds, peak_gib=peak))
    say(f"decode generate: {tokens / seconds:.0f} tokens/s")
    use_segments(model)
    model.train()
    if HAS_VLLM and left() > 90:
        rows.append(in_child("--child", "vllm"))
        say(f"decode VLLMEngine: {rows[-1]['tokens_per_s']:.0f} tokens/s, {rows[-1]['started']:.0f} s to start")


def child_vllm():
    """The same prompts with vLLM, which keeps what it took of the GPU -> a line of JSON."""
    import student
    tokenizer = student.make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        build("1.5B").model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        free()
        start = time.time()
        engine = VLLMEngine(folder, Chat(tokenizer), memory=0.4, longest=PROMPT + NEW + 40, dtype="bfloat16")
    started = time.time() - start
    played = []
    seconds, _ = measure(lambda: played.extend(play_prompts(engine)), 1, 1)
    sampled = sum(sum(e.loss_mask) for e in played[-PROMPTS * COPIES:])
    print("RESULT", json.dumps(dict(arm="VLLMEngine", tokens=sampled, seconds=seconds, started=started,
                                    tokens_per_s=sampled / seconds, peak_gib=None)), flush=True)


# ---- memory under DeepSpeed ----

def child_memory(zero):
    """Two real optimizer steps of 1.5B under DeepSpeed, activations recomputed -> a line of JSON."""
    prepare_attention()
    rank, world, device = start_distributed()
    sizes = {**SHAPES["1.5B"], **(SMOKE if CPU else {})}
    with device:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(max_position_embeddings=8192, **sizes))
    policy, n = LogProbs(model), model.num_parameters()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    flags = ["--model", "m", "--data", "d", "--out", "o", "--dtype", "bf16"]
    args = sft.parse_args(flags + ["--zero", str(zero), "--row-tokens", "4096" if not CPU else "128"])
    trainer = make_trainer(policy, args)
    examples = trajectories(sizes["vocab_size"])
    gib = lambda held: 0 if CPU else held() / 2 ** 30
    found = dict(zero=zero, parameters=n, held_gib=gib(torch.cuda.memory_allocated))
    if not CPU:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        start = time.time()
        with attending():
            _, norm = sft.update(trainer, sft.micro_batches(examples, rank, world, args, device),
                                 sft.trained_tokens(examples), 1e-5)
        sync()
    peak = gib(torch.cuda.max_memory_allocated)
    found.update(seconds=time.time() - start, norm=norm, peak_gib=peak,
                 bytes_per_parameter=peak * 2 ** 30 / n)
    print("RESULT", json.dumps(found), flush=True)


def memory():
    rows = RESULT["sections"].setdefault("memory", [])
    for zero in 0, 3, 2:
        if left() < 35:
            say(f"memory zero {zero}: no time")
            return
        with guarded(f"memory zero {zero}"):
            r = in_child("--child", "memory", "--zero", str(zero))
            rows.append(r)
            say(f"memory 1.5B zero {zero}: held {r['held_gib']:.1f} GiB, peak {r['peak_gib']:.1f} GiB = "
                f"{r['bytes_per_parameter']:.1f} bytes a parameter, {r['seconds']:.2f} s a step")


# ---- all ----

def table():
    s, m = RESULT["sections"], RESULT.get("machine", {})
    how = lambda r: (("  recomputed" if r["recompute"] else "  kept")
                     + (f"  micro-batch {r['micro']}" if r["micro"] else ""))
    print(f"\n==== {m.get('device')}, torch {m.get('torch')}, matmul {m.get('matmul_tflops', 0):.0f} TFLOP/s "
          f"on random data ({m.get('project_matmul_tflops', 0):.0f} by matmul_rate), copy "
          f"{m.get('copy_tb_s', 0):.2f} TB/s, {time.time() - START:.0f} s")
    print(f"attend with {RESULT.get('flash')}: {RESULT.get('attend')}")
    if s.get("parity"):
        bad = [r for r in s["parity"] if not r["ok"]]
        print(f"parity: {len(s['parity']) - len(bad)} of {len(s['parity'])} within bounds"
              + "".join(f"; {r['family']} {r['kind']} {r['way']}: {r['gradient']:.1e}" for r in bad))
        for way in dict.fromkeys(r["way"] for r in s["parity"]):
            rows = [r for r in s["parity"] if r["way"] == way]
            print(f"  {way:36} gradient error {min(r['gradient'] for r in rows):.1e} to "
                  f"{max(r['gradient'] for r in rows):.1e}, output matrix {max(r['head'] for r in rows):.1e}")
    for name, r in cli_runs():
        row = (r["metrics"] or [{}])[-1]
        print(f"cli {name:18} exit code {r['rc']}, last step: " + ", ".join(
            f"{k} {row[k]:.3g}" for k in ("loss", "reward", "logp_gap", "sync_gap", "grad_norm") if k in row))
    for r in s.get("attend", []):
        print(f"attend {r['layout']:26} {r['arm']:30} {r['forward_ms']:7.2f} ms {r['both_ms']:7.2f} ms "
              "with backward")
    for r in s.get("sft", []):
        print(f"sft {r['shape']:5} {r['arm']:20} {r['tokens_per_s']:8.0f} tokens/s {r['of_matmul']:5.0%} "
              f"of matmul {r['peak_gib']:6.1f} GiB" + how(r))
    for r in s.get("grpo", []):
        print(f"grpo {r['shape']:5} {r['P']:4} {r['R']:4} {r['arm']:20} {r['seconds']:7.3f} s "
              f"{r['peak_gib']:6.1f} GiB" + how(r))
    for r in s.get("decode", []):
        print(f"decode {r['arm']:22} {DECODE(r)}")
    for r in s.get("memory", []):
        print(f"memory 1.5B zero {r['zero']}: peak {r['peak_gib']:.1f} GiB = {r['bytes_per_parameter']:.1f} "
              f"bytes a parameter, {r['seconds']:.2f} s a step")
    for f in RESULT["faults"]:
        print("FAULT " + f["error"])


# a line of the page: its name, the section, the rows of it that count, what is told of such a row
SPEED = lambda r: f"{r['tokens_per_s']:,.0f} tokens/s, {r['of_matmul']:.0%} of the matmul rate, {r['peak_gib']:.1f} GiB"
UPDATE = lambda r: f"{r['seconds']:.3f} s, {r['peak_gib']:.1f} GiB"
ARMS = {"packed": "ours packed", "`--no-pack`": "ours padded", "Transformers, padded": "Transformers sdpa"}
PAGE = [*[(f"`sft.py`, {title}", "sft", dict(arm=arm), SPEED) for title, arm in ARMS.items()],
        *[(f"update on a group {P}/{R}/16, {title}", "grpo", dict(P=P, R=R, arm=arm), UPDATE)
          for P, R in ((512, 330), (840, 430)) for title, arm in ARMS.items()]]
DECODE = lambda r: (f"{r['tokens_per_s']:,.0f} tokens/s"
                    + (f", {r['peak_gib']:.1f} GiB" if r["peak_gib"] is not None else ""))      # vLLM takes a share
STATES = lambda r: f"{r['peak_gib']:.1f} GiB, {r['bytes_per_parameter']:.1f} bytes a parameter"
PAGE_SMALL = [*[(f"decoding 8 prompts x 16, {arm}", "decode", dict(arm=arm), DECODE)
                for arm in ("TorchEngine", "VLLMEngine", "Transformers generate")],
              *[(f"peak of a step under DeepSpeed, `--zero {zero}`", "memory", dict(zero=zero), STATES)
                for zero in (0, 2, 3)]]


def cell(section, wanted, text):
    """What was found, or that nothing was."""
    for r in RESULT["sections"].get(section, []):
        if all(r[name] == value for name, value in wanted.items()):
            return text(r)
    return "not run"


def page():
    """Print the table of bench/README.md: 7B with recomputed activations, 1.5B without."""
    found = RESULT.get("machine", {})
    print(f"| {found.get('device', 'one GPU')}, bf16 | Qwen2.5-1.5B | Qwen2.5-7B, recomputed |\n|---|---:|---:|")
    for title, section, wanted, text in PAGE:
        both = [cell(section, dict(wanted, shape=shape, recompute=shape == "7B"), text) for shape in SHAPES]
        print(f"| {title} | {both[0]} | {both[1]} |")
    for title, section, wanted, text in PAGE_SMALL:
        print(f"| {title} | {cell(section, wanted, text)} | |")
    rows = RESULT["sections"].get("parity", [])
    close = f"{sum(r['ok'] for r in rows)} of {len(rows)} within bf16 noise" if rows else "not run"
    runs = f"{sum(r['rc'] == 0 for _, r in cli_runs())} of {len(cli_runs())} without a fault" if cli_runs() else "not run"
    print(f"| losses and gradients of packed rows (small models) | {close} | |\n"
          f"| real runs of `sft.py` and `grpo_short.py` (small models) | {runs} | |")


def cli_runs():
    return [item for rows in RESULT["sections"].get("cli", {}).values() for item in rows.items()]


def all_is_well():
    return not (RESULT["faults"] or any(not r["ok"] for r in RESULT["sections"].get("parity", []))
                or any(r["rc"] for _, r in cli_runs()))


def main():
    if not CPU and not torch.cuda.is_available():
        sys.exit("error: there is no CUDA GPU here (--cpu-smoke does without)")
    os.makedirs(ARGS.out, exist_ok=True)
    wanted, found, runs = set(ARGS.only), {}, None
    with guarded("attention"):
        prepare_attention()
    if "cli" in wanted:
        runs = threading.Thread(target=cli_or_fault, args=[found], daemon=True)
        runs.start()
    if "parity" in wanted:
        with guarded("parity"):
            parity()
        save()
    if runs is not None:                                                   # nothing is timed beside them
        runs.join(120 if not CPU else 900)
        if runs.is_alive():
            fault("cli", TimeoutError("still running, beside what is timed below"))
        report_cli(dict(found))
        save()
    with guarded("machine"):
        machine()
    if "attend" in wanted:
        with guarded("attend"):
            section_attend()
        save()
    if wanted & {"sft", "grpo", "decode"}:
        speed(wanted)
    if "memory" in wanted:
        memory()
    RESULT["seconds"] = time.time() - START
    save()
    table()
    sys.exit(0 if all_is_well() else 1)


if __name__ == "__main__":
    if ARGS.child == "memory":
        child_memory(ARGS.zero)
    elif ARGS.child == "vllm":
        child_vllm()
    elif ARGS.table:
        if os.path.exists(os.path.join(ARGS.out, "gpu.json")):
            with open(os.path.join(ARGS.out, "gpu.json")) as saved:
                RESULT.update(json.load(saved))
        page()
    else:
        main()
