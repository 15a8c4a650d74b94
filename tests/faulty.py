"""Environments that go wrong, or are merely odd, made by `--env-id faulty:Name-v0`."""

import os
import signal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from tasks import Task

GOOD_STEPS = 102  # the batches of two iterations, 3 × 32 steps, and a few


class Faulty(Task):
    """Goes wrong after so many steps, in the second environment only."""

    steps, number = 0, 0

    def reset(self, seed=None, options=None):
        if seed is not None and not hasattr(self, "second"):
            # the seeds of a run's first reset are known: see `environment_seeds`
            seeds = np.random.SeedSequence((0, 0)).generate_state(2).tolist()
            self.second = seed == seeds[1]
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if getattr(self, "second", False) and self.steps > GOOD_STEPS:
            return self.fail(observation)
        return observation, reward, terminated, truncated, info


class NaNObservation(Faulty):
    def fail(self, observation):
        return observation * np.nan, 1.0, False, False, {}


class InfiniteReward(Faulty):
    def fail(self, observation):
        return observation, -np.inf, False, False, {}


class NaNFinalObservation(Faulty):
    def fail(self, observation):
        return observation * np.nan, 1.0, True, False, {}


class Raises(Faulty):
    def fail(self, observation):
        return 1 / 0


class Dies(Faulty):
    def fail(self, observation):
        os.kill(os.getpid(), signal.SIGKILL)


class RaisesInEvaluation(Task):
    """Fails 100 steps after a reset, which training comes to later."""

    def act(self, action):
        return 1 / (100 - self.t), False


class NaNInEvaluation(Task):
    def act(self, action):
        return np.nan if self.t == 100 else 1.0, False


class Outside(Task):
    """Observations outside the declared space, one of them constant."""

    observation_space = Box(-1, 1, (2,), np.float32)

    def observe(self):
        return np.array([1e4 * self.t, 7.0], dtype=np.float32)

    def act(self, action):
        return float(action[0]), self.t == 9


class OneStep(Task):
    def act(self, action):
        return float(action[0]), True


class Endless(Task):
    pass


class NoReward(Task):
    def act(self, action):
        return 0.0, self.t == 9


class OneAction(Task):
    action_space = Discrete(1)

    def act(self, action):
        return 1.0, self.t == 9


IN_EVALUATION = [RaisesInEvaluation, NaNInEvaluation]
for task in [
    *Faulty.__subclasses__(),
    *IN_EVALUATION,
    Outside,
    OneStep,
    Endless,
    NoReward,
    OneAction,
]:
    limit = None if task in (Endless, *Faulty.__subclasses__()) else 150
    gym.register(f"{task.__name__}-v0", task, max_episode_steps=limit)
