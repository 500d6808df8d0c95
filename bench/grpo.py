"""Cost of a GRPO update: packed groups beside padded rollouts and TRL's GRPOTrainer, in one run, same model.

    python bench/grpo.py                     # about half an hour on two cores
    python bench/grpo.py --only updates      # one of: updates, step, judge, table
    python bench/grpo.py --trl-python ../venv-trl/bin/python       # an interpreter that has trl
    python bench/grpo.py --out grpo.json     # the figures also as JSON
    python bench/grpo.py --model runs/smollm2/ckpt/base --shape 140 150 8      # an update of a real model

Without --model it has 6 layers of width 384 and random weights, fp32, 22M parameters with a vocabulary of 32k. A
group has G rollouts of R new tokens after a prefix of P. Every figure comes from a process of its own, after a
warm-up on a short group. An update is forward, backward and AdamW, at a micro-batch of 8 where rollouts are
padded; `anchored` has the pass for pi_old as well. CPU-seconds are those of the process with all its threads;
memory is its peak beyond what it held before (model, optimizer and libraries). TRL's loss gets the same
sequences; in the whole step it generates its own.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]
SHAPES = [(512, 330, 32768), (840, 430, 32768), (512, 330, 4096), (840, 430, 4096)]         # P, R, vocabulary
MODEL = os.environ.get("BENCH_MODEL")                                      # of a measurement: --model
TABLE = [(512, 128, G) for G in (1, 4, 16, 64)] + [(P, 128, 16) for P in (1, 128, 512, 1024, 2048)]


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=["updates", "step", "judge", "table"], help="a part of it (default: all)")
    p.add_argument("--trl-python", default=sys.executable, help="a Python that has trl (default: this one)")
    p.add_argument("--model", metavar="FOLDER", help="measure one update of this checkpoint, nothing else")
    p.add_argument("--shape", nargs=3, type=int, metavar=("P", "R", "G"), default=[140, 150, 8],
                   help="with --model: tokens of the prefix, of a response, rollouts (default 140 150 8)")
    p.add_argument("--repeats", type=int, default=1, help="updates per process; the cheapest counts (default 1)")
    p.add_argument("--threads", type=int, default=2, help="of every process (default 2)")
    p.add_argument("--out", help="JSON file for the figures (default: none)")
    p.add_argument("--arm", help=argparse.SUPPRESS)                    # one measurement, in its own process
    args = p.parse_args()
    if args.model and (args.only or args.shape[2] % 8):
        p.error("--model measures updates only, of a multiple of 8 rollouts")
    return args


# ---- one measurement ----

def make_model(vocabulary):
    import torch
    import transformers

    import student
    if MODEL:
        return (transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
                transformers.AutoTokenizer.from_pretrained(MODEL))
    tokenizer = student.make_tokenizer()
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=vocabulary, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)), tokenizer


def make_rollouts(P, R, G, vocabulary):
    import math
    import random

    from plumbing.packing import Rollout
    rng = random.Random(0)
    ids = lambda n: [rng.randrange(10, vocabulary) for _ in range(n)]
    prefix, old = ids(P), -math.log(vocabulary)
    return [Rollout(prefix + ids(R), [0] * P + [1] * R, [0.0] * P + [old] * R, float((-1) ** i), P)
            for i in range(G)]


def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2 ** 20


def measure(work, small, repeats):
    """-> CPU-seconds and seconds of the cheapest of the repeats, MiB of the peak beyond what was held."""
    small()
    before, found = held(), []
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")                                                       # VmHWM starts again
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
    return dict(cpu=min(found)[0], seconds=min(found)[1], memory=peak - before)


def our_trainer(vocabulary, *flags):
    import grpo_short
    from plumbing.models import LogProbs
    from plumbing.ranks import start_distributed
    from plumbing.trainer import make_trainer
    _, _, device = start_distributed()
    args = grpo_short.parse_args(["--model", "m", "--data", "d", "--out", "o", "--teacher-url", "u",
                                  "--dtype", "fp32", "--lr", "1e-6", *flags])
    model, tokenizer = make_model(vocabulary)
    return make_trainer(LogProbs(model), args), tokenizer, args, device


def one_update(trainer, groups, args, device, whose="engine"):
    """A mini-batch of groups; whose: the log-probs of pi_old, "trainer" for a pass of their own."""
    import grpo_short
    micro, tokens = grpo_short.mini_batch(groups, args, device)
    old = grpo_short.anchor(trainer, micro, whose, args.temperature)
    return grpo_short.update(trainer, micro, tokens, old, None, args)


def ours(P, R, G, vocabulary, repeats, *flags, whose="engine"):
    trainer, _, args, device = our_trainer(vocabulary, *flags)
    update = lambda rollouts: one_update(trainer, [rollouts], args, device, whose)
    rollouts, small = make_rollouts(P, R, G, vocabulary), make_rollouts(16, 16, 2, vocabulary)
    return measure(lambda: update(rollouts), lambda: update(small), repeats)


def trl_trainer(vocabulary, G, R, batch, prompts):
    import datasets
    import trl
    model, tokenizer = make_model(vocabulary)
    config = trl.GRPOConfig(
        output_dir=os.path.join(tempfile.gettempdir(), "trl-bench"), per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(1, G // batch), num_generations=G, max_completion_length=R, beta=0.0,
        loss_type="bnpo", temperature=1.0, learning_rate=1e-6, bf16=False, use_cpu=True, report_to=[],
        max_steps=len(prompts), logging_steps=1000, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, shuffle_dataset=False)
    reward = lambda completions, **_: [float(len(c) % 7) for c in completions]
    return trl.GRPOTrainer(model=model, reward_funcs=reward, args=config, processing_class=tokenizer,
                           train_dataset=datasets.Dataset.from_list([dict(prompt=p) for p in prompts]))


def trl_update(P, R, G, vocabulary, repeats):
    import torch
    trainer = trl_trainer(vocabulary, G, R, 8, ["x"])
    trainer.current_gradient_accumulation_steps = max(1, G // 8)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6, fused=True)
    trainer.model.train()

    def update(rollouts):
        P = rollouts[0].prompt_length
        for i in range(0, len(rollouts), 8):
            part = rollouts[i:i + 8]
            ids = torch.tensor([r.input_ids for r in part])
            trainer._compute_loss(trainer.model, dict(
                prompt_ids=ids[:, :P], prompt_mask=torch.ones_like(ids[:, :P]), completion_ids=ids[:, P:],
                completion_mask=torch.ones_like(ids[:, P:]),
                advantages=torch.tensor([r.advantage for r in part]),
                old_per_token_logps=torch.tensor([r.engine_logps[P:] for r in part]))).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    rollouts, small = make_rollouts(P, R, G, vocabulary), make_rollouts(16, 16, 2, vocabulary)
    return measure(lambda: update(rollouts), lambda: update(small), repeats)


def question(tokenizer, P):
    """Text of P tokens, the chat template's included."""
    from env import Chat
    chat = Chat(tokenizer)
    words = P - len(chat.encode([{"role": "user", "content": "Cy"}])[0]) + 1
    text = " ".join(["Cy"] * words)
    assert len(chat.encode([{"role": "user", "content": text}])[0]) == P
    return text


def our_step(P, R, G, vocabulary, repeats, *flags):
    import torch

    import grpo_short
    from env import Chat, make_episodes
    from plumbing.engines import TorchEngine
    from plumbing.packing import Rollout
    trainer, tokenizer, args, device = our_trainer(vocabulary, *flags)
    engine, phases = TorchEngine(trainer.module.model, Chat(tokenizer)), {}

    def step(P, R, G):
        clock = time.process_time()
        start = dict(id="a", question=question(tokenizer, P), answer="1", key=None)
        episodes = make_episodes([start], G, 8, R)
        engine.play(episodes)
        phases["generation"] = time.process_time() - clock
        rewards = torch.tensor([float(sum(e.ids) % 7) for e in episodes])
        advantages = grpo_short.group_advantages(rewards).tolist()
        group = [Rollout(e.ids, e.loss_mask, e.logps, a, e.prompt_length) for e, a in zip(episodes, advantages)]
        one_update(trainer, [group], args, device)
        assert min(len(e.ids) for e in episodes) == P + R
    return {**measure(lambda: step(P, R, G), lambda: step(32, 8, 2), repeats), **phases}


def judged_step(P, R, G, vocabulary, repeats, latency=2.0, early=True):
    """Seconds of G rollouts of 1 to R tokens, and of their rewards by a judge of so many seconds, 64 at once;
    early: each asked for when its episode ends, as grpo_short.py does, else when all have ended."""
    from env import Chat, make_episodes
    from plumbing.engines import TorchEngine
    from plumbing.rewards import Rewards
    trainer, tokenizer, _, _ = our_trainer(vocabulary)
    engine = TorchEngine(trainer.module.model, Chat(tokenizer))

    def judge(trajectory):
        time.sleep(latency)
        return 1.0, {}

    def step(P, R, G):
        rewards, episodes = Rewards(judge, 64), []
        for i in range(G):
            start = dict(id=str(i), question=question(tokenizer, P), answer="1", key=None)
            episodes += make_episodes([start], 1, 8, R * (i + 1) // G, on_end=rewards.ask if early else None)
        begin = time.perf_counter()
        engine.play(episodes)
        played = time.perf_counter() - begin
        rewards.collect([episodes])
        return played, time.perf_counter() - begin
    step(32, 8, 2)
    played, whole = step(P, R, G)
    return dict(cpu=0.0, generation=played, seconds=whole, ratio=whole / played)


def trl_step(P, R, G, vocabulary, repeats):
    """The second step of `train()`, between two calls of a callback; the first is the warm-up."""
    import transformers

    import student
    prompt = [{"role": "user", "content": question(student.make_tokenizer(), P)}]
    trainer = trl_trainer(vocabulary, G, R, 8, [prompt] * 2)
    clock, generate, generated = [], trainer._generate_single_turn, []

    def timed(*args, **kwargs):
        start = time.process_time()
        out = generate(*args, **kwargs)
        generated.append(time.process_time() - start)
        return out
    trainer._generate_single_turn = timed

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.append((time.process_time(), time.perf_counter()))
    trainer.add_callback(Clock())
    trainer.train()
    (cpu, wall), (cpu2, wall2) = clock
    return dict(cpu=cpu2 - cpu, seconds=wall2 - wall, generation=generated[-1])


ARMS = {"packed": ours, "anchored": lambda *a: ours(*a, whose="trainer"),
        "padded": lambda *a: ours(*a, "--no-pack"), "trl": trl_update,
        "step packed": our_step, "step padded": lambda *a: our_step(*a, "--no-pack"), "step trl": trl_step,
        "judge meanwhile": judged_step, "judge afterwards": lambda *a: judged_step(*a, early=False)}


# ---- all of them ----

def run(arm, P, R, G, vocabulary, args):
    """A measurement in its own process -> its figures, or None where trl is not installed."""
    python = args.trl_python if arm.endswith("trl") else sys.executable
    if arm.endswith("trl") and subprocess.run([python, "-c", "import trl"], capture_output=True).returncode:
        print(f"{python} has no trl: {arm} is left out", file=sys.stderr)
        return None
    env = {**os.environ, "BENCH_MODEL": args.model or "", "OMP_NUM_THREADS": str(args.threads),
           "OMP_WAIT_POLICY": "passive", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
           "CUDA_VISIBLE_DEVICES": ""}
    what = json.dumps([arm, P, R, G, vocabulary, args.repeats])
    done = subprocess.run([python, __file__, "--arm", what], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return dict(arm=arm, P=P, R=R, G=G, vocabulary=vocabulary, load=os.getloadavg()[0],
                **json.loads(done.stdout.splitlines()[-1]))


def main(args):
    rows = []

    def compare(title, arms, *shape):
        print(f"\n{title}\n| | CPU-seconds | of it generation | seconds | peak memory, MiB |\n"
              "|---|---:|---:|---:|---:|")
        for arm in arms:
            row = run(arm, *shape, args)
            if row:
                rows.append(row)
                memory = f"{row['memory']:.0f}" if "memory" in row else ""
                generation = f"{row['generation']:.1f}" if "generation" in row else ""
                print(f"| {arm} | {row['cpu']:.1f} | {generation} | {row['seconds']:.1f} | {memory} |",
                      flush=True)

    parts = [args.only] if args.only else ["updates", "step", "judge", "table"]
    if args.model:
        parts = []
        import transformers
        vocabulary = transformers.AutoConfig.from_pretrained(args.model).vocab_size
        P, R, G = args.shape
        compare(f"One update of {args.model}, P {P}, R {R}, G {G}", ["packed", "anchored", "padded", "trl"],
                P, R, G, vocabulary)
    if "updates" in parts:
        for P, R, vocabulary in SHAPES:
            compare(f"One update, P {P}, R {R}, G 16, vocabulary {vocabulary}", ["packed", "anchored", "padded", "trl"],
                    P, R, 16, vocabulary)
    if "step" in parts:
        compare("A whole step, rollout, reward and update, P 512, R 128, G 16, vocabulary 32768",
                ["step packed", "step padded", "step trl"], 512, 128, 16, 32768)
    if "judge" in parts:
        print("\n256 rollouts of 1 to 430 tokens, each judged in 2 s\n| rewards are asked for | rollouts, seconds "
              "| with rewards | ratio |\n|---|---:|---:|---:|")
        for arm in ("judge meanwhile", "judge afterwards"):
            row = run(arm, 64, 430, 256, 4096, args)
            rows.append(row)
            print(f"| {arm.split()[1]} | {row['generation']:.1f} | {row['seconds']:.1f} | {row['ratio']:.2f} |",
                  flush=True)
    if "table" in parts:
        print("\nCPU-seconds of an update, R 128, vocabulary 4096\n| P | G | P + G R | packed | per 1000 "
              "| G (P + R) | padded | per 1000 |\n|---:|---:|---:|---:|---:|---:|---:|---:|")
        for P, R, G in TABLE:
            packed, padded = (run(arm, P, R, G, 4096, args) for arm in ("packed", "padded"))
            rows += [packed, padded]
            few, many = P + G * R, G * (P + R)
            print(f"| {P} | {G} | {few} | {packed['cpu']:.2f} | {1000 * packed['cpu'] / few:.2f} | {many} "
                  f"| {padded['cpu']:.2f} | {1000 * padded['cpu'] / many:.2f} |", flush=True)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    args = parse_args()
    if args.arm:
        import torch
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        arm, *shape = json.loads(args.arm)
        print(json.dumps(ARMS[arm](*shape)))
    else:
        main(args)
