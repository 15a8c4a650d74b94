"""Small environments for the tests, made by `--env-id tasks:Name-v0`."""

import os
import time

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple


class Task(gym.Env):
    """Observes a vector of two numbers and acts in [−1, 1], unless told otherwise."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        reward, terminated = self.act(action)
        return self.observe(), reward, terminated, False, {}

    def observe(self):
        return np.array([self.t, 1.0], dtype=np.float32)

    def act(self, action):
        return 1.0, False

    def render(self):
        return np.full((32, 32, 3), self.t % 256, dtype=np.uint8)


class Forever(Task):
    """Reward 1 on every step, for ever; only a time limit ends an episode."""

    def observe(self):
        return np.ones(2, dtype=np.float32)


class Counting(Task):
    """Observes (number of the episode, step in it); ends at random in both ways."""

    episode = 0

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.episode = 0
        self.episode += 1
        return super().reset(seed=seed)

    def observe(self):
        return np.array([self.episode, self.t], dtype=np.float32)

    def step(self, action):
        self.t += 1
        chance = self.np_random.random()
        terminated, truncated = chance < 0.1, 0.05 < chance < 0.2  # or both
        reward = 100.0 * self.episode + self.t
        return self.observe(), reward, terminated, truncated, {}


class Reused(Task):
    """Counts to 5 in one array that it fills in place, as many simulators do."""

    observation_space = Box(-9.0, 9.0, (1,), np.float32)

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.array = np.zeros(1, np.float32)

    def observe(self):
        self.array[:] = self.t
        return self.array

    def step(self, action):
        observation, *_ = super().step(action)
        return observation, 1.0, False, self.t == 5, {}


class Hundred(Task):
    """Episodes of 100 steps; notes the seeds that it was reset with."""

    seeds = []  # noqa: RUF012

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.seeds.append(seed)
        return super().reset(seed=seed)

    def act(self, action):
        return 1.0, self.t == 100


class Identity(Task):
    """Do what is shown: one step, and the reward is the squared error, negative."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)

    def observe(self):
        if self.t == 0:
            self.wanted = self.np_random.uniform(-0.8, 0.8, 1).astype(np.float32)
        return self.wanted.copy()

    def act(self, action):
        return -float(np.square(action - self.wanted).sum()), True


class DiscreteIdentity(Identity):
    """The same with four symbols; the actions count from 10."""

    observation_space = Discrete(4)
    action_space = Discrete(4, start=10)

    def observe(self):
        if self.t == 0:
            self.wanted = int(self.np_random.integers(4))
        return self.wanted

    def act(self, action):
        return float(action - 10 == self.wanted), True


class PointMass(Task):
    """Push a mass to the origin and keep it there, for 50 steps, between two walls.

    Without walls the return of one escape, −6,000, outweighs those of all who stay.
    """

    def reset(self, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.state = self.np_random.uniform([-1, -0.5], [1, 0.5])
        return super().reset(seed=None)

    def observe(self):
        return self.state.astype(np.float32)

    def act(self, action):
        x, v = self.state
        v = 0.95 * v + 0.2 * float(action[0])
        self.state = np.clip([x + 0.2 * v, v], -2.0, 2.0)
        return -float(x**2 + 0.1 * v**2), False


class Held(PointMass):
    """The same; step 300 waits as long as there is a file of the name in $HOLD."""

    steps = 0

    def act(self, action):
        self.steps += 1
        while self.steps == 300 and os.path.exists(os.environ.get("HOLD", "")):
            time.sleep(0.05)
        return super().act(action)


class Nested(Task):
    """Dict, Tuple and Discrete observations; an action of two dimensions by two."""

    observation_space = Dict(
        {"a": Tuple((Discrete(3), Box(-1, 1, (2,)))), "b": Box(0, 1, (2, 2))}
    )
    action_space = Box(-0.4, 0.4, (2, 2), np.float32)

    def observe(self):
        return self.observation_space.sample()

    def act(self, action):
        return float(action.sum()), self.t == 5


class Windowless(Task):
    """Takes no render mode, as gymnasium allows."""

    def __init__(self):
        super().__init__()


class Broken(Task):
    def __init__(self, render_mode=None):
        raise RuntimeError("the simulator\nis not installed")


class Images(Task):
    observation_space = Box(0, 255, (8, 8, 3), np.uint8)


class ManyActions(Task):
    action_space = MultiDiscrete([3, 3])


class Unbounded(Task):
    action_space = Box(-np.inf, np.inf, (1,), np.float32)


class Integers(Task):
    action_space = Box(0, 5, (1,), np.int64)


LIMITS = {"Forever": 20, "PointMass": 50, "Held": 50}
for task in [Task, *Task.__subclasses__(), DiscreteIdentity, Held]:
    name = task.__name__
    limit = LIMITS.get(name)
    gym.register(f"{name}-v0", task, max_episode_steps=limit)
