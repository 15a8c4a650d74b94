"""A film strip of a trained policy beside the learning curve of its run.

    python docs/experiments/strip.py runs/RUN --out docs/images/halfcheetah.png

Plays best.pt with the mode of the policy, as an evaluation does, in an environment of
MuJoCo, and draws off screen by EGL. Frames are successive steps of one episode.
"""

import argparse
import importlib
import sys
from pathlib import Path

from plot import AXES, NAMES, RETURN, find_folders, load_config, read_progress
from run import Parser, begin

# isort: split

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

WIDTH, HEIGHT = 400, 290  # of a frame
TRAINING = "train/episode_return"
NAMED = "in training", "in evaluations"
COLORS = 128  # of the palette: a third of the size, and no difference that one sees


def play(run: Path, options) -> tuple[list[np.ndarray], str]:
    """Frames of an episode, and what they show."""
    algorithm, _ = load_config(run)
    script = importlib.import_module(algorithm)
    config = script.parse(["--evaluate", str(run / "best.pt"), "--capture-video"])
    agent, _, at, _ = script.make_agent(config)
    # The model's own camera, beside the robot: gymnasium's stays where it started
    view = {"camera_name": "track", "width": WIDTH, "height": HEIGHT}
    env = script.Adapter(gym.make(config.env_id, render_mode="rgb_array", **view))
    (observation, _), frames = env.reset(seed=config.seed), []
    for step in range(options.first + options.every * options.count):
        if step >= options.first and (step - options.first) % options.every == 0:
            frames.append(env.render())
        with torch.no_grad():
            mode = agent.policy(torch.as_tensor(observation)[None]).mode
            action = agent.policy.to_environment(mode).numpy()[0]
        observation, _, *ended, _ = env.step(action.reshape(env.action_space.shape))
        if any(ended):
            env.close()
            sys.exit(f"the episode ended after {step + 1} steps: lower --first")
    seconds = env.unwrapped.dt * options.every
    env.close()
    return frames, f"after {at.step:,} steps, a frame every {seconds:g} s"


def draw(run: Path, frames: list[np.ndarray], about: str, path: Path) -> None:
    """Returns in training and in evaluations, and two rows of frames."""
    algorithm, config = load_config(run)
    curves = read_progress(run, [TRAINING, RETURN])
    figure = Figure((9, 2.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.2))
    axes, style = left.subplots(), {TRAINING: "-", RETURN: "o"}
    for (column, (steps, returns)), name in zip(curves.items(), NAMED, strict=True):
        steps = np.array(steps) / 1e6
        axes.plot(steps, returns, style[column], label=name, color="#0072B2")
    axes.set(xlabel="Environment steps (million)", ylabel=AXES[RETURN])
    axes.set_title(f"{NAMES.get(algorithm, algorithm)}, {config['env_id']}")
    axes.legend(loc="lower right", frameon=False)
    down = 2 if len(frames) > 4 else 1
    spaces = {"wspace": 0.02, "hspace": 0.02}
    grid = right.subplots(down, -(-len(frames) // down), gridspec_kw=spaces)
    for panel in np.ravel(grid):
        panel.set_axis_off()
    for panel, frame in zip(np.ravel(grid), frames, strict=False):
        panel.imshow(frame, interpolation="lanczos")
    right.suptitle(about, fontsize=axes.title.get_fontsize())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=170)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def main(arguments: list[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=style)
    parser.add_argument("run", type=Path, help="folder of a run")
    add = parser.add_argument
    add("--first", type=int, default=200, help="step of the first frame; default: 200")
    add("--count", type=int, default=8, help="of frames; default: 8")
    add("--every", type=int, default=1, help="steps between two frames; default: 1")
    add("--out", type=Path, default=Path("strip.png"), help="default: strip.png")
    options = parser.parse_args(arguments)
    (run,) = find_folders([options.run])
    draw(run, *play(run, options), options.out)
    return 0


if __name__ == "__main__":
    begin(main)
