"""Environments that go wrong, or are merely odd, made by `--env-id faulty:Name-v0`."""

import os
import random
import signal
import sys
import threading

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from tasks import Task

GOOD_STEPS = 102  # the batches of two iterations, 3 × 32 steps, and a few


class Faulty(Task):
    """Goes wrong after so many steps, in the second environment only."""

    steps, number = 0, 0

    def reset(self, seed=None, options=None):
        if seed is not None and not hasattr(self, "second"):
            # the seeds of a run's first reset are known: see `Environments.reset`
            seeds = np.random.SeedSequence((0, 0)).generate_state(3) >> 1
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


class DiesInReset(Faulty):
    """In the third iteration, which a checkpoint comes before."""

    def reset(self, seed=None, options=None):
        if getattr(self, "second", False) and self.steps > 90:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(seed=seed)

    def fail(self, observation):
        raise AssertionError("it should have died in reset")


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


class RaisesAtOnce(Task):
    """Deep inside, in a line with a per cent sign; after one episode."""

    count = 0

    def act(self, action):
        self.count += 1
        return self.deeper(), self.t == 9

    def deeper(self):
        return 1.0 if self.count < 50 else self.count % 0


class CannotBePickled(Exception):
    def __init__(self):
        super().__init__("a lock inside")
        self.lock = threading.Lock()


class RaisesUnpicklable(Task):
    def act(self, action):
        raise CannotBePickled


class Quits(Task):
    """As pygame programs do when their window is closed."""

    def act(self, action):
        return 1 / (self.t < 30 or sys.exit()), False


class WrongShape(Task):
    def observe(self):
        return super().observe()[None]


class WrongShapeLater(Task):
    def observe(self):
        return super().observe()[: 1 if self.t == 7 else 2]


class OldReset(Task):
    """gym before 0.26: the observation alone."""

    def reset(self, seed=None, options=None):
        return super().reset(seed=seed)[0]


class ArrayReward(Task):
    def act(self, action):
        return -(action**2), self.t == 9


class Fractions(Task):
    """Declared as whole numbers."""

    observation_space = Box(0, 100, (2,), np.int64)

    def observe(self):
        return np.array([self.t / 10, 0.7])


class HugeActions(Task):
    action_space = Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,))


class ImagesInside(Task):
    observation_space = Dict({"eye": Dict({"left": Box(0, 255, (8, 8, 3), np.uint8)})})


class Reward(Task):
    """The side that is shown, times the action, times a unit."""

    unit = 1.0

    def observe(self):
        self.side = self.np_random.choice([-1.0, 1.0])
        return np.array([self.side, 0.0], np.float32)

    def act(self, action):
        return self.unit * float(self.side * action[0]), self.t == 9


class HugeReward(Reward):
    unit = 1e21


class TinyReward(Reward):
    unit = 1e-7


class OverflowReward(Reward):
    """Finite in float64, infinite in float32."""

    unit = 1e39


class GlobalRandom(Task):
    def observe(self):
        return np.array([np.random.uniform(), random.random()], np.float32)  # noqa: NPY002

    def act(self, action):
        return np.random.normal(), self.t == 9  # noqa: NPY002


class CloseBeforeReset(Task):
    """The simulator is made in reset, and close() shuts it down."""

    def reset(self, seed=None, options=None):
        self.simulator = [1]
        return super().reset(seed=seed)

    def close(self):
        self.simulator.clear()

    def act(self, action):
        return 1.0, self.t == 9


class CloseFails(Task):
    def close(self):
        raise ConnectionError("the physics server is gone")

    def act(self, action):
        return 1.0, self.t == 9


class OneInstance(Task):
    """A simulator of which one may live at a time."""

    alive = 0

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        if OneInstance.alive:
            raise RuntimeError("the simulator runs already")
        OneInstance.alive += 1

    def close(self):
        OneInstance.alive -= 1

    def act(self, action):
        return 1.0, self.t == 9


IN_EVALUATION = [RaisesInEvaluation, NaNInEvaluation]
UNLIMITED = [Endless, *Faulty.__subclasses__()]
for task in [*globals().values()]:
    if isinstance(task, type) and issubclass(task, Task) and task is not Task:
        limit = None if task in UNLIMITED else 150
        gym.register(f"{task.__name__}-v0", task, max_episode_steps=limit)
