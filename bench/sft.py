"""sft.py against TRL's SFTTrainer: same model, same trajectories, one after another, each in its own process.

  python bench/sft.py                         (pip install trl datasets, for TRL's rows)
  python bench/sft.py --model runs/smollm2/ckpt/base --data runs/smollm2/bc.jsonl

Model: 22M parameters, hidden 384, 6 layers, 32k vocabulary. Trajectories: lengths of the authors'
(../shared/data/score_release, or $SCORE_DATA), 3.5 characters a token, random tokens. Or a checkpoint and a
file of trajectories as sft.py reads them. All in fp32. Per CPU-second, as a shared machine's clock says little:
non-padding and trained tokens; the share of the measured matmul rate that the model's arithmetic makes up
(head on trained tokens only, causal attention, no recomputation, for all alike); peak of resident memory,
whole and above that of the process with the model loaded. The matmul rate is measured before, between and
after; the median counts.
"""
import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
VOCABULARY = 32000
LONGEST = 4096                                             # tokens of a trajectory
WAYS = ["TRL padded", "TRL packed", "ours padded", "ours packed"]


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=3, help="measured optimizer steps, after one to warm up (default 3)")
    p.add_argument("--batch", type=int, default=8, help="trajectories per step (TRL packed: as rows; default 8)")
    p.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    p.add_argument("--model", metavar="FOLDER", help="Hugging Face checkpoint (default: 22M random weights)")
    p.add_argument("--data", metavar="FILE", help="trajectories, JSONL (default: lengths of the authors')")
    p.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to measure (default: all)")
    p.add_argument("--run", choices=WAYS + ["matmul"], help=argparse.SUPPRESS)
    args = p.parse_args()
    if (args.model is None) != (args.data is None):
        p.error("--model and --data go together")
    return args


def trajectories(args):
    """[(input_ids, loss_mask)] of the file, in its order, or random tokens, as many as the authors' have."""
    if args.data is None:
        return made_trajectories()
    from env import load_chat
    from plumbing.records import read_jsonl
    chat = load_chat(args.model)
    found = [chat.encode(record["messages"]) for _, record in read_jsonl(args.data)]
    found = [(ids, mask) for ids, mask in found if len(ids) <= LONGEST]
    if len(found) < 2 * args.batch * (args.steps + 1):
        sys.exit(f"{args.data}: {len(found)} trajectories are too few for {args.steps} steps of {args.batch}")
    return found


def made_trajectories():
    """As long as the authors': question, plan, then thought, code, observation."""
    folder = Path(os.environ.get("SCORE_DATA", ROOT / "../shared/data/score_release"))
    rng, found = random.Random(0), []
    for path in sorted(folder.glob("*_trajectories.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            r = json.loads(line)
            parts = [(len(r["original_task_info"]["question"]), 0),
                     (len(r.get("first_thought") or "plan"), 1)]
            for s in r["steps"]:
                parts += [(len(s["thought"]) + len(s["code"]), 1), (len(str(s["observation"])), 0)]
            ids, mask = [], []
            for characters, trained in parts[:-1]:
                n = 4 + int(characters / 3.5)
                ids += [rng.randrange(VOCABULARY) for _ in range(n)]
                mask += [trained] * n
            if len(ids) <= LONGEST:
                found.append((ids, mask))
    if not found:
        sys.exit(f"{folder}: no *_trajectories.jsonl (set SCORE_DATA)")
    rng.shuffle(found)
    return found


def make_model(folder):
    """A checkpoint with the demo's tokenizer (its template is all that is used of it) -> parameters."""
    sys.path.insert(0, str(ROOT / "demo"))
    import torch
    import transformers

    import student
    torch.manual_seed(0)
    tokenizer = student.make_tokenizer()
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


class Meter:
    """CPU-seconds and tokens of the steps after the first; memory from here on."""

    def __init__(self):
        self.before, self.seconds, self.tokens, self.trained, self.flops = self.peak(), 0.0, 0, 0, 0.0

    @staticmethod
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def report(self):
        print("RESULT", json.dumps(dict(seconds=self.seconds, tokens=self.tokens, trained=self.trained,
                                        flops=self.flops, peak=self.peak(), above=self.peak() - self.before)))


def run_ours(folder, pack, args):
    import torch

    import sft
    from plumbing.models import load_policy, model_flops
    from plumbing.ranks import start_distributed
    from plumbing.trainer import make_trainer
    flags = sft.parse_args(["--model", folder, "--data", "-", "--out", "-", "--dtype", "fp32", "--lr", "1e-4",
                            "--pack" if pack else "--no-pack"])
    _, _, device = start_distributed()
    torch.set_num_threads(args.threads)
    policy = load_policy(folder, flags)
    flops, data = model_flops(policy.model, 0), trajectories(args)
    meter = Meter()
    trainer = make_trainer(policy, flags)
    for step in range(args.steps + 1):
        batch = data[step * args.batch:(step + 1) * args.batch]
        tokens, start = sft.trained_tokens(batch), time.process_time()
        sft.update(trainer, sft.micro_batches(batch, 0, 1, flags, device), tokens, 1e-4)
        if step:
            meter.seconds += time.process_time() - start
            meter.tokens += sum(len(ids) for ids, _ in batch)
            meter.trained += tokens
            meter.flops += flops(batch)
    meter.report()


def run_trl(folder, pack, args):
    import datasets
    import torch
    import transformers
    import trl
    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from plumbing.models import model_flops
    flops, data = model_flops(model, 0), trajectories(args)
    rows = [dict(input_ids=ids, assistant_masks=mask) for ids, mask in data[:2 * args.batch * (args.steps + 1)]]
    per_step, longest = 1, LONGEST
    if pack:                                     # rows of up to 4096, as many a step as hold a batch
        tokens = sum(len(r["input_ids"]) for r in rows) / len(rows) * args.batch
        per_step = max(1, round(tokens / LONGEST))
        longest = max(min(LONGEST, round(tokens / per_step)), max(len(r["input_ids"]) for r in rows))
    config = trl.SFTConfig(tempfile.mkdtemp(), per_device_train_batch_size=1 if pack else args.batch,
                           gradient_accumulation_steps=per_step, max_steps=args.steps + 1, packing=pack,
                           max_length=longest, learning_rate=1e-4, report_to=[], use_cpu=True, bf16=False,
                           gradient_checkpointing=False, save_strategy="no", disable_tqdm=True)
    meter = Meter()

    class Counting(trl.SFTTrainer):
        def training_step(self, model, inputs, *rest):
            if self.state.global_step:
                self.count(inputs)
            return super().training_step(model, inputs, *rest)

        def count(self, inputs):
            """Packed ones begin where positions start again; the attention mask ends padded ones."""
            labels, positions = inputs["labels"], inputs.get("position_ids")
            if positions is not None:
                starts = (positions[0] == 0).nonzero()[:, 0].tolist() + [labels.shape[1]]
                parts = [labels[0, a:b] for a, b in zip(starts, starts[1:])]
            else:
                parts = [row[:int(mask.sum())] for row, mask in zip(labels, inputs["attention_mask"])]
            batch = [([0] * len(p), (p != -100).tolist()) for p in parts]
            meter.tokens += sum(len(ids) for ids, _ in batch)
            meter.trained += sum(sum(mask[1:]) for _, mask in batch)
            meter.flops += flops(batch)

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.process_time()

        def on_step_end(self, _, state, *__, **___):
            if state.global_step > 1:
                meter.seconds += time.process_time() - self.start

    Counting(model, args=config, train_dataset=datasets.Dataset.from_list(rows), callbacks=[Clock()],
             processing_class=transformers.AutoTokenizer.from_pretrained(folder)).train()
    meter.report()


def run_matmul(args):
    """Floating-point operations a CPU-second of a large fp32 product, the best of several."""
    import torch
    torch.set_num_threads(args.threads)
    a, times = torch.randn(2048, 2048), []
    for _ in range(8):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    print("RESULT", json.dumps(2 * 2048 ** 3 / min(times)))


def measure(way, folder, args):
    command = [sys.executable, __file__, "--run", way, "--steps", str(args.steps), "--batch", str(args.batch),
               "--threads", str(args.threads)]
    if args.data:
        command += ["--model", args.model, "--data", args.data]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={**os.environ, "BENCH_MODEL": folder, "OMP_NUM_THREADS": str(args.threads)})
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(found[-1][7:]) if found else (done.stderr.strip().splitlines() or ["no result"])[-1]


def main(args):
    if args.run:
        folder, kind = os.environ["BENCH_MODEL"], args.run.split()[-1]
        if args.run == "matmul":
            return run_matmul(args)
        return (run_trl if args.run.startswith("TRL") else run_ours)(folder, kind == "packed", args)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or f"{make_model(folder) / 1e6:.1f}M parameters"
        folder = args.model or folder
        print(f"{model}, {args.threads} thread(s), {args.steps} steps of {args.batch} trajectories", flush=True)
        rates, rows = [measure("matmul", folder, args)], {}
        for way in args.ways:
            rows[way] = measure(way, folder, args)
            rates.append(measure("matmul", folder, args))
            print(f"  {way}: {rows[way]}", flush=True)
    rate = statistics.median(rates)
    print(f"\nmatmul {rate / 1e9:.1f} GFLOP a CPU-second ({', '.join(f'{r / 1e9:.1f}' for r in rates)})\n\n"
          "| | non-padding tokens per CPU-s | trained tokens per CPU-s | of matmul rate | peak MiB | above "
          "the model |\n|---|---|---|---|---|---|")
    for way, r in rows.items():
        if isinstance(r, str):
            print(f"| {way} | did not run: {r} |")
            continue
        print(f"| {way} | {r['tokens'] / r['seconds']:.0f} | {r['trained'] / r['seconds']:.0f} | "
              f"{r['flops'] / r['seconds'] / rate:.0%} | {r['peak']:.0f} | {r['above']:.0f} |")


if __name__ == "__main__":
    main(parse_args())
