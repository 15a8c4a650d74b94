"""The vectorised loop: whose observation is whose, and what a time limit means."""

import contextlib
from dataclasses import replace

import pytest
import tasks
import torch
from common import CRITICS, NAMES, SCRIPTS, make_environments, rows

import a2c
import ppo
import reinforce

torch.set_num_threads(1)


def start(script, env_id, **changes):
    changes = {"policy_layers": (4,), "num_minibatches": 1} | changes
    config = script.Config(env_id=env_id, **changes)
    environments = make_environments(script, config)
    agent, *_ = script.make_agent(config)
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
    environments.close()


@pytest.mark.filterwarnings("ignore:.*share an object")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_an_array_that_the_environment_fills_again_is_copied(script, vectorization):
    """Uncopied, the final observation 5 turns into the next episode's first, 0."""
    flags = {"num_envs": 2, "unroll_length": 12, "vectorization": vectorization}
    agent, environments, config = start(script, "tasks:Reused-v0", **flags)
    batch = script.rollout(agent, environments, config)
    seen = batch.observations.view(12, 2)
    assert seen[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert batch.final_observations.flatten().tolist() == [5] * 4
    assert batch.last_observations.flatten().tolist() == [2, 2]
    environments.close()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_of_environments_fit_31_bits_and_depend_on_all_numbers(name):
    """C simulators refuse more."""
    script = SCRIPTS[name]
    config = script.Config("tasks:Hundred-v0")
    environments = make_environments(script, config)
    tasks.Hundred.seeds.clear()
    others = [environments.reset(seed, step) for seed in range(20) for step in range(5)]
    seen = tasks.Hundred.seeds + others
    assert len({*seen}) == len(seen) == 100 * (config.num_envs + 1)
    assert max(seen) < 2**31
    assert max(seen) > 2**30
    environments.close()


@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_episodes_longer_than_many_unrolls_are_finished(script, tmp_path):
    """Resets come by the step: a short unroll must not bring them sooner."""
    config = script.Config(
        env_id="tasks:Hundred-v0",
        total_timesteps=4_000,
        num_envs=4,
        unroll_length=5,
        num_minibatches=1,
        num_epochs=1,
        policy_layers=(4,),
        value_layers=(4,),
        eval_episodes=0,
        runs_dir=str(tmp_path),
    )
    lengths = {row["train/episode_length"] for row in rows(script.train(config))}
    assert lengths == {"", "100.0"}


@pytest.mark.parametrize("decay", [0.0, 0.005, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_falls_linearly_by_the_fraction_asked_for(
    name, decay, tmp_path, monkeypatch
):
    script, seen, size = SCRIPTS[name], [], {}
    if name != "reinforce":
        size = {"num_envs": 2, "num_minibatches": 2, "value_layers": (4,)}
    config = script.Config(
        env_id="tasks:Hundred-v0",
        total_timesteps=1_000,
        learning_rate=2e-3,
        learning_rate_decay=decay,
        unroll_length=100,
        num_epochs=1,
        policy_layers=(4,),
        eval_episodes=0,
        runs_dir=str(tmp_path),
        **size,
    )
    iterate = script.iterate

    def spy(agent, optimizer, *rest):
        seen.append({group["lr"] for group in optimizer.param_groups})
        return iterate(agent, optimizer, *rest)

    monkeypatch.setattr(script, "iterate", spy)
    steps = [0, *(int(row["step"]) for row in rows(script.train(config)))][:-1]
    assert len(seen) == len(steps) >= 4
    for (rate,), step in zip(seen, steps, strict=True):
        assert rate == pytest.approx(2e-3 * (1 - decay * step / 1_000))
    assert script.Config().learning_rate_decay == 0.005


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
    environments.close()


@pytest.mark.parametrize("name", NAMES)
def test_episode_returns_are_the_raw_sums(name):
    script = SCRIPTS[name]
    num_envs = 1 if name == "reinforce" else 3
    flags = {"num_envs": num_envs, "unroll_length": 60}
    agent, environments, config = start(script, "tasks:Counting-v0", **flags)
    assert environments.finished == []
    batch = script.rollout(agent, environments, config)
    steps = batch.observations.view(*batch.rewards.shape, 2)
    raw = 100 * steps[..., 0] + steps[..., 1] + 1
    ended, returns = batch.terminated | batch.truncated, []
    for n in range(num_envs):
        (ends,) = torch.where(ended[:, n])
        first = 0
        for end in ends.tolist():
            returns.append((n, raw[first : end + 1, n].sum().item(), end + 1 - first))
            first = end + 1
    assert sorted(returns) == sorted(environments.finished)
    environments.close()


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
    environments.close()


@pytest.mark.parametrize("name", NAMES)
def test_sync_and_async_give_the_same_bits(name):
    script = SCRIPTS[name]
    flags = {"num_envs": 1 if name == "reinforce" else 3, "unroll_length": 120}
    batches = []
    for vectorization in ("sync", "async"):
        flags["vectorization"] = vectorization
        agent, environments, config = start(script, "Pendulum-v1", **flags)
        batches.append([script.rollout(agent, environments, config) for _ in range(2)])
        environments.close()
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
    environments.close()

    flags["normalize_observations"] = False
    agent, environments, config = start(script, "Pendulum-v1", **flags)
    row = script.iterate(agent, None, environments, config)
    assert row["step"] == len(learned[2].actions)
    environments.close()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("name", NAMES)
def test_an_update_stays_on_the_device_of_the_agent(name, env_id, monkeypatch):
    """The meta device stands in for a GPU: to mix it with the CPU fails as well."""
    script = SCRIPTS[name]
    size = {"num_envs": 2, "num_minibatches": 2, "num_epochs": 2}
    size = {} if name == "reinforce" else size
    agent, environments, config = start(script, env_id, unroll_length=16, **size)
    batch = script.rollout(agent, environments, config)
    environments.close()
    agent, batch = agent.to("meta"), script.Batch(*[x.to("meta") for x in batch])
    # Tensors there have no values, and no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for method, value in ("item", 0.5), ("__float__", 0.5), ("__bool__", True):
        monkeypatch.setattr(torch.Tensor, method, lambda _, value=value: value)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: [0.5] * len(x))
    actions = agent.policy.to_environment(agent.policy(batch.observations).sample())
    assert actions.is_meta
    optimizer = torch.optim.Adam(agent.parameters())
    assert script.update(agent, optimizer, batch, config)
    assert script.measure(agent.policy, batch)
    agent.statistics.absorb(batch.observations)


def test_an_environment_need_not_know_of_render_modes():
    agent, environments, config = start(ppo, "tasks:Windowless-v0", unroll_length=4)
    assert len(ppo.rollout(agent, environments, config).actions) == 4 * 8
    environments.close()


def test_nested_spaces_are_flattened_and_actions_shaped():
    flags = {"num_envs": 2, "unroll_length": 20}
    agent, environments, config = start(ppo, "tasks:Nested-v0", **flags)
    batch = ppo.rollout(agent, environments, config)
    assert batch.observations.shape == (40, 3 + 2 + 4)
    assert batch.actions.shape == (40, 4)
    environments.close()


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
        runs_dir=str(tmp_path),
    )
    run = script.train(config)
    agent, *_ = script.make_agent(replace(config, resume=str(run)))
    value = agent.value(torch.ones(1, 2)).item()
    assert value == pytest.approx(10, abs=0.3)  # seeds 0..4: within 0.1
