"""What the paper reports: the values that our runs are set beside.

Those at 8 and 1 M steps are read off its Figure 4, ± 10 %, where a line is a mean over
three seeds; PPO's are its Table 3's.
"""

# In HalfCheetah, Ant, Humanoid, Hopper
PAPER_8M = {
    "ppo": (6414, 5671, 7633, 2616),
    "vmpo": (5150, 2500, 900, 2400),
    "trpo": (4700, 3500, 800, 2200),
    "a2c": (4150, 970, 700, 2500),
    "reinforce": (1500, 850, 370, 600),
}
PAPER_1M = {
    "ppo": (4332, 1258, 700, 895),
    "vmpo": (2600, 1000, 450, 800),
    "trpo": (3500, 1600, 400, 1900),
    "a2c": (None,) * 4,
    "reinforce": (None,) * 4,
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
