"""A film strip of each trained robot in docs/policies: what it does, in one picture.

    python docs/experiments/strip.py
    python docs/experiments/strip.py runs/RUN/best.pt --output .

Plays the mode of the policy, on one seed, and puts frames at equal distances in a row.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MUJOCO_GL", "egl")

FRAMES, FIRST, APART = 7, 60, 4  # the first one's step, and steps from one to the next
SHAPE = 150, 200  # of a frame, in pixels: height, width


def play(path: Path) -> tuple[str, list[np.ndarray]]:
    """The environment's name, and the frames."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    script = importlib.import_module(state["algorithm"])
    config = script.Config(**state["config"])
    env = script.make_environment(config, "rgb_array")
    size, space = env.observation_space.shape[0], env.action_space
    policy = script.Agent(size, space, config).policy
    policy.load_state_dict(state["policy"])
    env.unwrapped.mujoco_renderer.camera_id = 0  # the one that follows the robot
    frames, (observation, _) = [], env.reset(seed=config.seed)
    for step in range(FIRST + (FRAMES - 1) * APART + 1):
        if step >= FIRST and (step - FIRST) % APART == 0:
            frames.append(env.render())
        with torch.no_grad():
            mode = policy(torch.tensor(observation)[None]).mode
            action = policy.to_environment(mode)[0].numpy()
        observation, _, *ended, _ = env.step(action)
        if any(ended):
            break
    env.close()
    return config.env_id, frames


def strip(frames: list[np.ndarray]) -> Image.Image:
    """The frames in a row, each cut to its middle in the strip's proportions."""
    height, width = SHAPE
    picture = Image.new("RGB", (width * len(frames), height), "white")
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame)
        tall = image.width * height // width
        top = (image.height - tall) // 2
        image = image.crop((0, top, image.width, top + tall))
        picture.paste(image.resize((width, height)), (i * width, 0))
    return picture


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args(arguments)
    policies = options.policies or sorted((ROOT / "docs" / "policies").glob("*.pt"))
    options.output.mkdir(parents=True, exist_ok=True)
    for path in policies:
        env_id, frames = play(path)
        file = options.output / f"{env_id}.png"
        strip(frames).quantize(64).save(file, optimize=True)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
