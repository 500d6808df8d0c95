"""A fork of grpo_short.py for the study: negative advantages are 0, so no rollout is pushed away from.

  python demo/no_negative.py …the flags of grpo_short.py…
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import grpo_short

plain_advantages = grpo_short.group_advantages


def group_advantages(rewards):
    return plain_advantages(rewards).clamp(min=0)


grpo_short.group_advantages = group_advantages
if __name__ == "__main__":
    grpo_short.cli(grpo_short.main, grpo_short.parse_args())
