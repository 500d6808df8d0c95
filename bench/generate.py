"""The torch engine against Transformers' `generate`: one model, the same rows and tasks, in turns.

  python bench/generate.py --model runs/smollm2/ckpt/bc --data runs/smollm2/bc.jsonl

`rows`: a row for each of 64 trajectories, from its question on, as many tokens as the trajectory has after it; what
a row writes after its last token counts for nothing. `episodes`: 64 tasks without a search, played greedily as an
agent; `generate` writes a turn for all of them, their code runs, and the next call begins at the whole text again.
Both in this process, with the same dtype and threads, first one and then the other; engine, episodes and interpreters
are made before the clock starts. A CPU-second is one of this process, without the interpreters.
"""
import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}

import torch
import transformers

from env import load_chat, make_episodes
from plumbing.attention import use_segments
from plumbing.cli import InputError
from plumbing.engines import TorchEngine
from plumbing.models import load_model
from plumbing.records import read_jsonl

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, metavar="FOLDER", help="Hugging Face checkpoint of a chat model")
    p.add_argument("--data", required=True, metavar="FILE", help="trajectories with their tasks: bc.jsonl, sft.jsonl")
    p.add_argument("--rows", type=int, default=64, help="rows generated together (default 64)")
    p.add_argument("--max-tokens", type=int, default=440, help="after the question, of an episode (default 440)")
    p.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of the weights (default fp32)")
    p.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    p.add_argument("--repeats", type=int, default=3, help="of each measurement; the median counts (default 3)")
    return p.parse_args()


# ---- the peer: generate with padding on the left ----

class EndAt(transformers.StoppingCriteria):
    """Row i ends with column ends[i]."""

    def __init__(self, ends):
        self.ends = torch.tensor(ends)

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] >= self.ends


def generate(model, prompts, lengths, ends=()):
    """The greedy continuation of each prompt by at most so many tokens, or to one of the tokens `ends`."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    present = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    stop = transformers.StoppingCriteriaList([EndAt([width + length for length in lengths])])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=present, max_new_tokens=max(lengths), stopping_criteria=stop,
                             do_sample=False, eos_token_id=list(ends) or None, pad_token_id=0)
    found = []
    for row, length in zip(out[:, width:].tolist(), lengths):
        row = row[:length]
        at = [i for i, token in enumerate(row) if token in ends]
        found.append(row[:at[0] + 1] if at else row)
    return found


def play_by_turns(model, chat, episodes):
    for episode in episodes:
        episode.begin(chat)
    live = episodes
    with ThreadPoolExecutor(16) as pool:                   # as many programs at once as the engine runs
        while live:
            turns = generate(model, [e.ids for e in live], [e.tokens_left for e in live], [chat.end, *chat.stray])
            goes_on = pool.map(lambda e, ids: e.token_turn(chat, ids, [0.0] * len(ids)), live, turns)
            live = [e for e, between in zip(live, goes_on) if between is not None]


# ---- rows of a given length, for the engine ----

class Fixed:
    """What the engine takes for an episode: it begins at these ids and ends after `tokens_left` tokens."""

    def __init__(self, ids, new):
        self.ids = ids
        self.tokens_left = new

    def begin(self, chat):
        pass

    def sampling_seed(self, seed):
        return seed

    def token_turn(self, chat, ids, logps):
        self.written = ids


# ---- both ----

def measure(ways, prepare, repeats):
    """ways: {name: function of what prepare(name) gives}, run in turns
    -> {name: [CPU-seconds, seconds], medians}, {name: what it was given last}."""
    times = {name: [] for name in ways}
    given = {}
    for i in range(repeats):
        for name in list(ways)[::1 if i % 2 else -1]:
            given[name] = prepare(name)
            cpu, wall = time.process_time(), time.perf_counter()
            ways[name](given[name])
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: [statistics.median(column) for column in zip(*found)] for name, found in times.items()}, given


def attend(model, name):
    """The attention of the engine, or that of plain Transformers."""
    if name == "TorchEngine":
        use_segments(model)
    else:
        model.set_attn_implementation("sdpa")


def show(what, tokens, times):
    for name, (cpu, wall) in times.items():
        print(f"| {what} | {name} | {tokens[name]} | {tokens[name] / cpu:.0f} | {tokens[name] / wall:.0f} |", flush=True)
    (ours, _), (theirs, _) = times["TorchEngine"], times["generate"]
    print(f"| | **TorchEngine / generate** | | "
          f"**{tokens['TorchEngine'] / ours / (tokens['generate'] / theirs):.1f}** | |", flush=True)


def read_records(path):
    """-> [(messages, task)]; InputError where a task or its run is missing."""
    records = [record for _, record in read_jsonl(path, ("id", "question", "answer", "messages"))]
    return [(record["messages"], {name: record[name] for name in ("id", "question", "answer")}) for record in records]


def main(args):
    torch.set_num_threads(args.threads)
    records = read_records(args.data)
    model = load_model(args.model, DTYPES[args.dtype]).eval()
    model.generation_config = transformers.GenerationConfig()              # no penalties of its own
    chat = load_chat(args.model)
    engine = TorchEngine(model, chat, batch=args.rows)
    fixed = TorchEngine(model, SimpleNamespace(end=-1, stray=()), batch=args.rows)
    print(f"{args.model}, {args.dtype}, {args.threads} thread(s), medians of {args.repeats}\n\n"
          "| what | by | tokens | tokens/CPU-s | tokens/s |\n|---|---|---:|---:|---:|", flush=True)

    prompts = [chat.encode(messages[:1])[0] for messages, _ in records[:args.rows]]
    lengths = [len(chat.encode(messages)[0]) - len(prompt) for (messages, _), prompt in zip(records, prompts)]

    def rows(name):
        attend(model, name)
        return [Fixed(prompt, length) for prompt, length in zip(prompts, lengths)]

    def by_generate(rows):
        for row, ids in zip(rows, generate(model, prompts, lengths)):
            row.written = ids
    ways = {"TorchEngine": lambda rows: fixed.play(rows, temperature=0), "generate": by_generate}
    times, given = measure(ways, rows, args.repeats)
    show(f"{len(prompts)} rows of {min(lengths)} to {max(lengths)}", dict.fromkeys(ways, sum(lengths)), times)
    same = sum(a.written == b.written for a, b in zip(*given.values()))
    print(f"| | rows with the same tokens: {same} of {len(prompts)} | | | |", flush=True)

    tasks = [task for messages, task in records if not any("web_search" in m["content"] for m in messages)][:args.rows]
    if not tasks:
        raise InputError(f"{args.data}: every task searches, so no episode can be played here")

    made = []

    def episodes(name):
        for episode in made:
            episode.interpreter.close()
        attend(model, name)
        made[:] = make_episodes(tasks, max_tokens=args.max_tokens)
        return list(made)
    ways = {"TorchEngine": lambda episodes: engine.play(episodes, temperature=0),
            "generate": lambda episodes: play_by_turns(model, chat, episodes)}
    times, given = measure(ways, episodes, args.repeats)
    tokens = {name: sum(sum(e.loss_mask) for e in found) for name, found in given.items()}
    show(f"{len(tasks)} episodes", tokens, times)
    same = sum(a.messages == b.messages for a, b in zip(*given.values()))
    print(f"| | episodes that are the same: {same} of {len(tasks)} | | | |")


if __name__ == "__main__":
    try:
        main(parse_args())
    except InputError as error:
        sys.exit(f"error: {error}")
