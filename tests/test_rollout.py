"""The vectorised loop: whose observation is whose, and what a time limit means."""

import contextlib

import numpy as np
import pytest
import torch
from common import CRITICS, NAMES, SCRIPTS

import a2c
import ppo
import reinforce

torch.set_num_threads(1)


def start(script, env_id, **changes):
    changes = {"policy_layers": (4,), "num_minibatches": 1} | changes
    config = script.Config(env_id=env_id, **changes)
    environments = script.Environments(config)
    space = environments.observation_size, environments.action_space
    agent, _ = script.make_agent(config, *space)
    environments.reset(1, 2)
    return agent, environments, config


class Label(torch.nn.Module):
    """A critic whose value tells which state it saw: 100 · episode + step."""

    def forward(self, observations):
        return 100 * observations[:, 0] + observations[:, 1]


@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_final_and_reset_observations_are_never_mixed_up(script, monkeypatch):
    flags = {"num_envs": 3, "unroll_length": 200, "normalize_rewards": False}
    agent, environments, config = start(script, "tasks:Counting-v0", **flags)
    seen = {}
    spy = lambda *args: seen.update(values=args[1], next_values=args[2]) or args[:2]  # noqa: E731
    monkeypatch.setattr(script, "compute_gae", spy)
    for _ in range(2):  # the second rollout begins in the middle of episodes
        batch = script.rollout(agent, environments, config)
        script.estimate_advantages(Label(), batch, config)
        values, next_values = seen["values"], seen["next_values"]
        ended = batch.terminated | batch.truncated
        assert (batch.terminated & batch.truncated).any()
        assert (batch.truncated & ~batch.terminated).any()
        # V(s_{t+1}) is of the same episode, one step on, even where that was the end
        torch.testing.assert_close(next_values, values + 1)
        # and the step after an end is the first of the next episode
        steps = batch.observations.view(200, 3, 2)
        episode, t = steps[..., 0], steps[..., 1]
        assert (t[1:][ended[:-1]] == 0).all()
        assert (episode[1:] - episode[:-1] == ended[:-1].float()).all()
        assert (t[1:][~ended[:-1]] > 0).all()
        assert len(batch.final_observations) == ended.sum()
    environments.vector.close()


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_divided_by_the_std_of_the_discounted_return(name):
    script = SCRIPTS[name]
    num_envs = 1 if name == "reinforce" else 3
    flags = {"num_envs": num_envs, "unroll_length": 100, "gamma": 0.9}
    agent, environments, config = start(script, "tasks:Counting-v0", **flags)
    batch = script.rollout(agent, environments, config)
    steps = batch.observations.view(*batch.rewards.shape, 2).double()
    raw = 100 * steps[..., 0] + steps[..., 1] + 1
    ended, sums = batch.terminated | batch.truncated, torch.zeros_like(raw)
    total = torch.zeros(num_envs, dtype=torch.float64)
    for t in range(len(raw)):
        sums[t] = total = 0.9 * total + raw[t]
        total = total * ~ended[t]
    std = sums.std(correction=0)
    expected = (raw / std).clamp(-10, 10).float()
    torch.testing.assert_close(batch.rewards, expected, rtol=1e-4, atol=1e-5)
    environments.vector.close()


@pytest.mark.parametrize("name", NAMES)
def test_episode_returns_are_the_raw_sums(name):
    script = SCRIPTS[name]
    num_envs = 1 if name == "reinforce" else 3
    flags = {"num_envs": num_envs, "unroll_length": 60}
    agent, environments, config = start(script, "tasks:Counting-v0", **flags)
    assert environments.pop_episodes() == {}
    batch = script.rollout(agent, environments, config)
    steps = batch.observations.view(*batch.rewards.shape, 2)
    raw = 100 * steps[..., 0] + steps[..., 1] + 1
    ended, returns, lengths = batch.terminated | batch.truncated, [], []
    for n in range(num_envs):
        (ends,) = torch.where(ended[:, n])
        first = 0
        for end in ends.tolist():
            returns.append(raw[first : end + 1, n].sum().item())
            lengths.append(end + 1 - first)
            first = end + 1
    episodes = environments.pop_episodes()
    assert episodes["episode_return"] == pytest.approx(np.mean(returns))
    assert episodes["episode_length"] == pytest.approx(np.mean(lengths))
    assert environments.pop_episodes() == {}
    environments.vector.close()


def test_reinforce_plays_whole_episodes():
    flags = {"num_envs": 1, "unroll_length": 50}
    agent, environments, config = start(reinforce, "tasks:Counting-v0", **flags)
    for _ in range(5):
        batch = reinforce.rollout(agent, environments, config)
        ended = (batch.terminated | batch.truncated)[:, 0]
        assert batch.observations[0, 1] == 0  # begins with the start of an episode
        assert ended[-1]  # and ends with the end of one,
        assert len(ended) >= 50
        assert not ended[49:-1].any()  # the first after enough steps
    environments.vector.close()


@pytest.mark.parametrize("name", NAMES)
def test_sync_and_async_give_the_same_bits(name):
    script = SCRIPTS[name]
    flags = {"num_envs": 1 if name == "reinforce" else 3, "unroll_length": 120}
    batches = []
    for vectorization in ("sync", "async"):
        flags["vectorization"] = vectorization
        agent, environments, config = start(script, "Pendulum-v1", **flags)
        batches.append([script.rollout(agent, environments, config) for _ in range(2)])
        environments.vector.close()
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_update_learns_on_standardised_observations(name, monkeypatch):
    script = SCRIPTS[name]
    flags = {"num_envs": 1 if name == "reinforce" else 3, "unroll_length": 200}
    agent, environments, config = start(script, "Pendulum-v1", **flags)
    learned = []
    spy = lambda agent, optimizer, batch, config: learned.append(batch) or {}  # noqa: E731
    monkeypatch.setattr(script, "update", spy)
    row = script.iterate(agent, None, environments, config)
    absorbed = agent.statistics.count.item()
    assert row["step"] == absorbed == 2 * len(learned[0].actions)  # two rollouts
    row = script.iterate(agent, None, environments, config)
    assert row["step"] == len(learned[1].actions)  # and one from then on
    assert agent.statistics.count.item() == absorbed + row["step"]
    environments.vector.close()

    flags["normalize_observations"] = False
    agent, environments, config = start(script, "Pendulum-v1", **flags)
    row = script.iterate(agent, None, environments, config)
    assert row["step"] == len(learned[2].actions)
    environments.vector.close()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("name", NAMES)
def test_an_update_stays_on_the_device_of_the_agent(name, env_id, monkeypatch):
    """The meta device stands in for a GPU: to mix it with the CPU fails as well."""
    script = SCRIPTS[name]
    size = {"num_envs": 2, "num_minibatches": 2, "num_epochs": 2}
    size = {} if name == "reinforce" else size
    agent, environments, config = start(script, env_id, unroll_length=16, **size)
    batch = script.rollout(agent, environments, config)
    environments.vector.close()
    agent, batch = agent.to("meta"), script.Batch(*[x.to("meta") for x in batch])
    # Tensors there have no values, and no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for method, value in ("item", 0.5), ("__float__", 0.5), ("__bool__", True):
        monkeypatch.setattr(torch.Tensor, method, lambda _, value=value: value)
    actions = agent.policy.to_environment(agent.policy(batch.observations).sample())
    assert actions.is_meta
    optimizer = torch.optim.Adam(agent.parameters())
    assert script.update(agent, optimizer, batch, config)
    assert script.measure(agent.policy, batch)
    agent.statistics.absorb(batch.observations)


def test_an_environment_need_not_know_of_render_modes():
    agent, environments, config = start(ppo, "tasks:Windowless-v0", unroll_length=4)
    assert len(ppo.rollout(agent, environments, config).actions) == 4 * 8
    environments.vector.close()


def test_nested_spaces_are_flattened_and_actions_shaped():
    flags = {"num_envs": 2, "unroll_length": 20}
    agent, environments, config = start(ppo, "tasks:Nested-v0", **flags)
    batch = ppo.rollout(agent, environments, config)
    assert batch.observations.shape == (40, 3 + 2 + 4)
    assert batch.actions.shape == (40, 4)
    environments.vector.close()


@pytest.mark.parametrize("script", [a2c, ppo], ids=lambda script: script.ALGORITHM)
def test_a_time_limit_does_not_shorten_the_value(script, tmp_path):
    """Reward 1 for ever: V is 1/(1 − γ) = 10, though episodes are cut after 20 steps.

    Without the bootstrap V would be the mean of (1 − γᵏ)/(1 − γ) for k = 1 … 20, 5.6.
    """
    config = script.Config(
        env_id="tasks:Forever-v0",
        total_timesteps=40 * 512,
        num_envs=4,
        unroll_length=128,
        num_epochs=10,
        gamma=0.9,
        learning_rate=3e-3,
        value_layers=(32,),
        policy_layers=(4,),
        normalize_rewards=False,
        normalize_observations=False,
        eval_episodes=1,
        eval_every=1000,
        checkpoint_every=1000,
        runs_dir=str(tmp_path),
    )
    run = script.train(config)
    agent, optimizer = script.make_agent(config, 2, ppo.Box(-1.0, 1.0, (1,)))
    script.load_checkpoint(run, config, agent, optimizer)
    value = agent.value(torch.ones(1, 2)).item()
    assert value == pytest.approx(10, abs=0.3)  # seeds 0..4: within 0.1
