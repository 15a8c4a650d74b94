"""The scripts as texts: what is shared is the same, what differs is the paper's."""

import ast
import difflib
import re
import subprocess
import sys
from dataclasses import fields
from itertools import combinations
from unicodedata import combining

import pytest
from common import NAMES, ROOT, SCRIPTS

TEXT = {name: (ROOT / f"{name}.py").read_text() for name in NAMES}
PAIRS = [*combinations(NAMES, 2)]

# They are there to be lowered: lines, and changed lines (added + removed).
LONGEST = {"reinforce": 669, "a2c": 727, "trpo": 822, "ppo": 733, "vmpo": 803}
FURTHEST = {
    ("reinforce", "a2c"): 160,
    ("a2c", "ppo"): 55,
    ("ppo", "vmpo"): 130,
    ("ppo", "trpo"): 170,
}
WIDTH, LONGEST_FUNCTION = 88, 45

# What may differ although it has the same name: this is the algorithm.
OWN = {
    "ALGORITHM",
    "FRACTIONS",  # which of its settings are from 0 to 1
    "WHOLE_EPISODES",  # REINFORCE plays them to the end
    "Config",  # Table 2; what all scripts share of it is compared on its own
    "Agent",  # no critic in REINFORCE, multipliers in V-MPO
    "policy_loss",
    "update",
}
# whole episodes of one environment; no bootstrapping
OWN_OF_REINFORCE = OWN | {"Config.__post_init__", "Batch", "rollout"}


def definitions(name: str) -> dict[str, str]:
    """Source of each function and class, decorators included, and of constants."""
    found, body = {}, [(node, "") for node in ast.parse(TEXT[name]).body]
    for node, prefix in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines = TEXT[name].splitlines()[first - 1 : node.end_lineno]
            found[prefix + node.name] = "\n".join(lines)
            if node.name == "Config":
                body += [(method, "Config.") for method in node.body]
        elif isinstance(node, ast.Assign):
            found[node.targets[0].id] = ast.get_source_segment(TEXT[name], node)
    return found


def changed_lines(a: str, b: str) -> int:
    """Lines added and removed, by the matching that `diff` makes."""
    files = [str(ROOT / f"{name}.py") for name in (a, b)]
    output = subprocess.run(["diff", *files], capture_output=True, text=True).stdout
    return sum(line.startswith(("<", ">")) for line in output.splitlines())


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_has_the_same_name_has_the_same_source(one, other):
    here, there = definitions(one), definitions(other)
    own = OWN_OF_REINFORCE if "reinforce" in (one, other) else OWN
    drifted = []
    for name in sorted(here.keys() & there.keys() - own):
        drifted += difflib.unified_diff(
            here[name].splitlines(),
            there[name].splitlines(),
            f"{one}.py {name}",
            f"{other}.py {name}",
            lineterm="",
        )
    assert not drifted, "\n" + "\n".join(drifted)
    assert len(here.keys() & there.keys()) > 30


@pytest.mark.parametrize("name", NAMES)
def test_what_all_settings_share_comes_first_and_is_identical(name):
    def shared(script):
        text = definitions(script)["Config"]
        first = text[text.index("    env_id") : text.index("    num_envs")]
        check = definitions(script)["Config.__post_init__"]
        return first, check[: check.index("raise")]

    assert shared(name) == shared("ppo")
    assert len(shared(name)[0].splitlines()) > 20


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_everything_stands_in_the_same_order(one, other):
    here, there = [*definitions(one)], [*definitions(other)]
    assert [n for n in here if n in there] == [n for n in there if n in here]
    sections = [re.findall(r"\n# ── (.+?) ─+\n", TEXT[name]) for name in (one, other)]
    assert sections[0] == sections[1]
    assert len(sections[0]) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_no_script_imports_another_and_only_one_constant_names_it(name):
    tree = ast.parse(TEXT[name])
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    known = {"gymnasium", "numpy", "torch", "tqdm", "tyro", "wandb"}
    assert imported - set(sys.stdlib_module_names) <= known
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    docstring = ast.get_docstring(tree, clean=False)
    assert [s for s in strings if name in s and s != docstring] == [name]


def test_the_size_stays():
    print("lines", {name: len(text.splitlines()) for name, text in TEXT.items()})
    for name, text in TEXT.items():
        lines = text.splitlines()
        assert len(lines) <= LONGEST[name], name
        assert max(sum(not combining(c) for c in line) for line in lines) <= WIDTH
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= LONGEST_FUNCTION, (name, node.name)


def test_the_differences_stay_small():
    print(f"{'':10}", *(f"{name:>10}" for name in NAMES))
    for one in NAMES:
        print(f"{one:10}", *(f"{changed_lines(one, other):10}" for other in NAMES))
    for pair, limit in FURTHEST.items():
        assert changed_lines(*pair) <= limit, pair


# ── pseudocode ──────────────────────────────────────────────────────────────────────

NUMBER = dict(zip(NAMES, (3, 4, 5, 6, 8), strict=True))  # of its Algorithm in the paper
LOOP = ["while t ≤ T do", "for i = 1, …, U do", "a ∼ π_θ", "s, r ∼ P(s, a)"]
LOOP += ["Store (a, s, r, β(a|s)) in D", "for all epochs do"]
QUOTED = {
    "reinforce": [
        "Generate trajectory s_0, a_0, r_1, s_1, …, s_T under policy π_θ",
        "G_t ← Σ_k γ^{k−t} r_k",
        "θ ← θ + α G_t ∇_θ ln π_θ(a_t|s_t)",
    ],
    "a2c": [
        *("while t ≤ T do", "a ∼ π_θ", "s, r ∼ P(s, a)"),  # in Algorithm 6's words
        "R ← r_j + γR, A = R − V_ϕ(s_j)",
        "dθ ← dθ + ∇_θ ln π_θ(a_j|s_j) A",
        "dϕ ← dϕ + ∇_ϕ (R − V_ϕ(s_j))²",
        "update θ and ϕ using dθ and dϕ",
    ],
    "trpo": [
        *LOOP,
        "Compute returns R and advantages A",
        "g ← 1/|D| Σ_D ∇_θ π_θ(a|s)/β(a|s) A",
        "Compute Ĥ as the Hessian of the sample average KL-divergence",
        "Compute d ≈ Ĥ⁻¹ g via conjugate gradient algorithm",
        "θ ← θ_old + b^m √(2δ / dᵀĤd) d",
        "until (sample loss improves and KL constraint satisfied) or m > K",
        "dϕ ← 1/|D| Σ_D ∇_ϕ (R − V_ϕ(s))²",
        "Update ϕ using dϕ via gradient descent",
    ],
    "ppo": [
        *LOOP,
        "R, A ← computeGAE(v, r, λ, γ)",
        "dθ ← ∇_θ 1/|D| Σ_D min(π/β, clip(π/β, 1 − ε, 1 + ε)) A",
        "dϕ ← ∇_ϕ 1/|D| Σ_D (R − V_ϕ(s))²",
        "update θ and ϕ using dθ and dϕ",
    ],
    "vmpo": [
        *LOOP,
        "Compute returns R and advantages A",
        "Compute D̃",
        "L_ν ← 1/|D| Σ_D ν(ε_ν − sg(KL(π_old‖π_θ))) + sg(ν) KL(π_old‖π_θ)",
        "L_π ← −1/|D̃| Σ_D̃ ln π_θ(a|s) ψ(s, a)",
        "L_η ← η ε_η + η ln(1/|D̃| Σ_D̃ exp(A/η))",
        "dθ ← ∇_θ (L_π + L_ν), dη ← ∂/∂η L_η, dν ← ∂/∂ν L_ν",
        "dϕ ← 1/|D| Σ_D ∇_ϕ (R − V_ϕ(s))²",
        "update θ, η, ν and ϕ using dθ, dη, dν and dϕ",
    ],
    "GAE": [
        "δ ← r_i + γ · v_{i+1} · (1 − ω) − v_i",
        "x ← δ + γ · λ · (1 − ω) · x",
        "A_i ← x",
        "R_i ← A_i + v_i",
    ],
}
QUOTE = re.compile(r"# Algs?\. ([\d–, ]+): (.+)")


def numbers(label: str) -> set[int]:
    """The algorithms that «6», «4–8» or «5, 6, 8» stands for."""
    found = set()
    for part in label.split(","):
        first, _, last = part.strip().partition("–")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def quotes_in_order(name: str, function: str, seen: set[str]) -> list[tuple[str, str]]:
    """The quoted lines in the order in which the code comes to them."""
    if function in seen:
        return []
    seen.add(function)
    source, found = definitions(name), []
    for line in source[function].splitlines()[1:]:
        if match := QUOTE.search(line):
            found.append(match.groups())
        for called in re.findall(r"\b(\w+)\(", line.split("#")[0]):
            if called in source and source[called].lstrip("@").startswith(
                ("def", "torch.no_grad()\ndef")
            ):
                found += quotes_in_order(name, called, seen)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_line_of_the_pseudocode_is_quoted_once_and_in_order(name):
    quotes = quotes_in_order(name, "train", set())
    for number, lines in ((NUMBER[name], QUOTED[name]), (7, QUOTED["GAE"])):
        quoted = [text for label, text in quotes if number in numbers(label)]
        assert quoted == (lines if number < 7 or name != "reinforce" else [])
    everything = [m.groups() for m in map(QUOTE.search, TEXT[name].splitlines()) if m]
    assert sorted(everything) == sorted(quotes)  # none where the code never comes
    assert f"Algorithm {NUMBER[name]}" in SCRIPTS[name].__doc__


# ── Table 2 and Appendix A ──────────────────────────────────────────────────────────

TABLE_2 = {  # reinforce, a2c, trpo, ppo, vmpo; None where the table has a dash
    "learning_rate": (3e-4, 3e-4, 3e-4, 3e-4, 3e-4),
    "num_minibatches": (1, 8, 8, 8, 8),
    "num_epochs": (1, 1, 10, 10, 10),  # TRPO: 1 of the policy, 10 of the critic
    "gamma": (0.99, 0.99, 0.99, 0.99, 0.99),  # a dash for REINFORCE, but see docs/
    "gae_lambda": (None, 0.95, 0.95, 0.95, 0.95),
    "normalize_advantages": (None, True, True, True, False),
    "entropy_coefficient": (0.0, 0.1, None, 0.0, None),  # 0 in TRPO and V-MPO
    "max_grad_norm": (0.5, 0.5, 0.5, 0.5, 0.5),
    "unroll_length": (2000, 2048, 2048, 2048, 2048),  # a dash for REINFORCE
    "delta": (None, None, 0.01, None, None),
    "cg_damping": (None, None, 0.1, None, None),
    "cg_max_iterations": (None, None, 10, None, None),
    "line_search_max_iterations": (None, None, 10, None, None),
    "line_search_shrinkage": (None, None, 0.8, None, None),
    "epsilon": (None, None, None, 0.2, None),
    "eta_min": (None, None, None, None, 1e-8),
    "nu_min": (None, None, None, None, 1e-8),
    "eta_init": (None, None, None, None, 1.0),
    "nu_mean_init": (None, None, None, None, 1.0),
    "nu_std_init": (None, None, None, None, 1.0),
    "eps_nu_mean": (None, None, None, None, 0.01),
    "eps_nu_std": (None, None, None, None, 5e-5),
    "eps_eta": (None, None, None, None, 0.01),
    # Appendix A and Section 6
    "num_envs": (1, 8, 8, 8, 8),
    "policy_layers": ((32,) * 4,) * 5,
    "value_layers": (None, *((256,) * 5,) * 4),
    "normalize_observations": (True,) * 5,
    "normalize_rewards": (True,) * 5,
    "squash_actions": (True,) * 5,
    "total_timesteps": (8_000_000,) * 5,
}
# Options that the paper mentions but does not use are off.
OFF = {"baseline": False, "importance_weights": False, "fisher_fraction": 1.0}


@pytest.mark.parametrize("algorithm", NAMES)
def test_defaults_are_the_papers(algorithm):
    config, column = SCRIPTS[algorithm].Config(), NAMES.index(algorithm)
    for name, values in TABLE_2.items():
        assert getattr(config, name, None) == values[column], name
    for name, value in OFF.items():
        assert getattr(config, name, value) == value
    own = {field.name for field in fields(config)} - TABLE_2.keys() - OFF.keys()
    assert own == {
        *("env_id", "seed", "device", "precision", "vectorization", "eval_every"),
        *("eval_episodes", "checkpoint_every", "runs_dir", "resume", "evaluate"),
        "learning_rate_decay",  # "slight", Section 6; see docs/hyperparameters.md
        *("track", "wandb_project", "capture_video", "render"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_help_says_of_each_flag_what_stands_beside_its_field(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        SCRIPTS[name].parse(["--help"])
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    texts = re.findall(r"\n    (\w+): .*? = .*?  # (.+)", definitions(name)["Config"])
    assert [field for field, _ in texts] == [
        f.name for f in fields(SCRIPTS[name].Config)
    ]
    for field, text in texts:
        flag = field.replace("_", "-")
        place = re.search(rf" --{flag}[ ,](.*?) \(default: ", output)
        assert place[1].endswith(text), flag
        assert not set(re.findall(r"--[\w-]+", place[1])) - {f"--no-{flag}"}, flag


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_quote_the_code_as_it_is(name):
    """Tables of the form | pseudocode | `function` | `code` |."""
    page = (ROOT / "docs" / f"{name}.md").read_text().replace("\\|", "∣")
    rows = re.findall(r"\n\| [^|]+ \| `(\w+)` \| `([^|]+)` \|", page)
    source = {k: " ".join(v.split()) for k, v in definitions(name).items()}
    assert len(rows) >= 6
    for function, code in rows:
        assert code.replace("∣", "|") in source[function], (function, code)


# ── the README ──────────────────────────────────────────────────────────────────────


def test_the_readmes_tables_are_measured():
    readme = (ROOT / "README.md").read_text()
    for name in NAMES:
        (row,) = re.findall(rf"\| \[`{name}\.py`\]\({name}\.py\) .*", readme)
        assert row.split("|")[-2].strip() == str(len(TEXT[name].splitlines()))
    for one, other in PAIRS:
        (row,) = re.findall(rf"\n\| `{one}` (.*)", readme)
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[NAMES.index(other)] == str(changed_lines(one, other)), (one, other)
