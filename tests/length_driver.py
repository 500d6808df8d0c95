"""A fork of grpo_short.py whose reward is the shorter, the better: does a run of it shorten its responses?

  python tests/length_driver.py NOISE …the flags of grpo_short.py…

NOISE is the standard deviation of what is added to the engine's log-probs, as if another program had made them.
"""
import os
import sys

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

import grpo_short  # noqa: E402
from plumbing.engines import TorchEngine  # noqa: E402


def reward(trajectory, judge, args):
    tokens = trajectory["usage"]["student_tokens"]
    return -float(tokens), {"tokens": tokens}


play = TorchEngine.play
noise = float(sys.argv[1])


def play_with_noise(engine, episodes, **how):
    play(engine, episodes, **how)
    generator = torch.Generator().manual_seed(0)
    for episode in episodes:
        added = torch.randn(len(episode.logps), generator=generator) * noise
        episode.logps = [logp + more for logp, more in zip(episode.logps, added.tolist())]


def main(args):
    grpo_short.main(args, reward)


if noise:
    TorchEngine.play = play_with_noise
if __name__ == "__main__":
    grpo_short.cli(main, grpo_short.parse_args(sys.argv[2:]))
