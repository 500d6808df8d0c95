"""Rewards while others still play: an episode's reward is asked for as soon as the episode ends."""
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from plumbing.chat_api import BadReply
from plumbing.records import Record

Episode = Any          # env.Episode: plumbing/ imports no script


class Rewards:
    """Asks for the rewards of episodes in threads of its own, as a judge may take seconds for each."""

    def __init__(self, reward: Callable[[Record], tuple[float, dict[str, float]]], threads: int) -> None:
        """reward: trajectory -> its reward, and the parts that are logged; threads: asked at once."""
        self.reward = reward
        self.pool = ThreadPoolExecutor(threads)
        self.asked: dict[Episode, Future] = {}

    def ask(self, episode: Episode) -> None:
        """Begin to find the reward of an episode that has ended."""
        self.asked[episode] = self.pool.submit(self.rewarded, episode)

    def rewarded(self, episode: Episode) -> Record:
        """An episode's trajectory with `judge_usage`, `reward` and `reward_PART`; without a reward if its
        search, interpreter or judge failed."""
        trajectory = episode.trajectory() | {"judge_usage": {}}
        lost = episode.interpreter.lost
        episode.interpreter.close()                        # its process is not needed any more
        if episode.stop == "failed" or lost:
            return trajectory
        try:
            value, parts = self.reward(trajectory)
        except BadReply:
            return trajectory
        return trajectory | {"reward": value} | {f"reward_{name}": part for name, part in parts.items()}

    def collect(self, groups: list[list[Episode]]) -> list[list[Record]]:
        """Groups of episodes that have ended -> their trajectories with rewards."""
        for group in groups:
            for episode in group:
                if episode not in self.asked:              # an engine that ends an episode without a turn
                    self.ask(episode)
        try:
            return [[self.asked.pop(episode).result() for episode in group] for group in groups]
        except BaseException:                              # say, the judge is down: ask no more
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise
