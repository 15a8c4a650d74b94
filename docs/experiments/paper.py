"""What the paper reports: the values that our runs are set beside.

PPO's are its Table 3's. The others are where a line of Figure 4, the mean of three
seeds, has 8 and 1 M steps, measured in the images of its panels that the published
repository has (images/perf_plot_*.png at c89044a). A pixel is 26, 20, 30 and 15 in the
four, and PPO's lines end within one of Table 3. A2C's end on Hopper is nearly hidden
behind other lines (± 40). REINFORCE's on HalfCheetah is the mean over the last million
steps, because its last point, 1,100, falls out of line; its 60 at 1 M is on the flank
between 300 and 0.
"""

# In HalfCheetah, Ant, Humanoid, Hopper
PAPER_8M = {
    "ppo": (6414, 5671, 7633, 2616),
    "vmpo": (5190, 2480, 910, 2150),
    "trpo": (4740, 3470, 820, 2260),
    "a2c": (4140, 980, 670, 2200),
    "reinforce": (1620, 860, 370, 600),
}
PAPER_1M = {
    "ppo": (4332, 1258, 700, 895),
    "vmpo": (2900, 1010, 440, 660),
    "trpo": (3480, 1640, 500, 2340),
    "a2c": (0, 1000, 300, 400),
    "reinforce": (60, 970, 330, 220),
}
# Table 3: framework, MuJoCo version, million steps, then the four environments
TABLE_3 = (
    ("CleanRL", "v4", "1", 2906, None, 742, 2052),
    ("Baselines", "v1", "1", 1669, None, None, 2316),
    ("SB3", "v3", "1", 5819, 1327, None, 2410),
    ("RLlib", "v2", "44", 9664, None, None, None),
    ("ACME", "v2", "10", 6800, 5200, 6600, 2550),
    ("the paper", "v4", "1", *PAPER_1M["ppo"]),
    ("the paper", "v4", "8", *PAPER_8M["ppo"]),
)
