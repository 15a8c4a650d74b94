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

# What may differ although it has the same name: this is the algorithm.
OWN = {
    "Config",  # Table 2; the fields that all scripts share are compared on their own
    "Agent",  # no critic in REINFORCE, multipliers in V-MPO
    "policy_loss",
    "update",
}
OWN_OF_REINFORCE = OWN | {"Batch", "rollout"}  # whole episodes; no bootstrapping

# Lines, and changed lines (added + removed). Measured when the scripts were written;
# they are there to be lowered.
LONGEST = {"reinforce": 830, "a2c": 896, "ppo": 907, "vmpo": 973, "trpo": 995}
FURTHEST = {
    ("reinforce", "a2c"): 158,
    ("a2c", "ppo"): 60,
    ("ppo", "vmpo"): 130,
    ("ppo", "trpo"): 180,
}


def definitions(name: str) -> dict[str, str]:
    """Source of each function and class, decorators included, and of constants."""
    found = {}
    for node in ast.parse(TEXT[name]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines = TEXT[name].splitlines()[first - 1 : node.end_lineno]
            found[node.name] = "\n".join(lines)
        elif isinstance(node, ast.Assign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            source = ast.get_source_segment(TEXT[name], node)
            found[target.id] = found.get(target.id, "") + source
    return found


def changed_lines(a: str, b: str) -> int:
    """Lines added and removed, by the matching that `diff` makes."""
    files = [str(ROOT / f"{name}.py") for name in (a, b)]
    output = subprocess.run(["diff", *files], capture_output=True, text=True).stdout
    return sum(line.startswith(("<", ">")) for line in output.splitlines())


@pytest.mark.parametrize(("one", "other"), [*combinations(NAMES, 2)])
def test_what_has_the_same_name_has_the_same_source(one, other):
    here, there = definitions(one), definitions(other)
    own = (OWN_OF_REINFORCE if "reinforce" in (one, other) else OWN) | {"ALGORITHM"}
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
def test_shared_fields_come_first_and_are_identical(name):
    def shared(script):
        text = definitions(script)["Config"]
        return text[text.index("    env_id") : text.index("    num_envs")]

    assert shared(name) == shared("ppo")
    assert len(shared(name).splitlines()) > 40


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


@pytest.mark.parametrize("name", NAMES)
def test_the_size_stays(name):
    lines = TEXT[name].splitlines()
    assert len(lines) <= LONGEST[name]
    assert max(sum(not combining(c) for c in line) for line in lines) <= 88
    for node in ast.walk(ast.parse(TEXT[name])):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 45, node.name


def test_the_differences_stay_small():
    table = {pair: changed_lines(*pair) for pair in combinations(NAMES, 2)}
    for pair, lines in table.items():
        print(*pair, lines)
    for (one, other), limit in FURTHEST.items():
        assert changed_lines(one, other) <= limit, (one, other)


# ── pseudocode ──────────────────────────────────────────────────────────────────────

QUOTE = re.compile(r"# Algs?\. ([\d–, ]+): (.+)")


def numbers(label: str) -> set[int]:
    """The algorithms that «6», «4–8» or «5, 6, 8» stands for."""
    found = set()
    for part in label.split(","):
        first, _, last = part.strip().partition("–")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def quotes_in_order(name: str, function: str, seen: set[str]) -> list[str]:
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
    docstring = SCRIPTS[name].__doc__
    number = int(re.search(r"Algorithm (\d)", docstring)[1])
    listed = docstring.split("in this order:\n")[1].split("\n\n")[0]
    listed = [line.strip() for line in listed.splitlines()]
    quotes = quotes_in_order(name, "train", set())
    quoted = [text for label, text in quotes if number in numbers(label)]
    assert quoted == listed
    everything = [m.groups() for m in map(QUOTE.search, TEXT[name].splitlines()) if m]
    assert sorted(everything) == sorted(quotes)  # none where the code never comes


@pytest.mark.parametrize("name", [name for name in NAMES if name != "reinforce"])
def test_gae_quotes_algorithm_7(name):
    quotes = quotes_in_order(name, "compute_gae", set())
    assert [text for label, text in quotes if label == "7"] == [
        "δ ← r_i + γ · v_{i+1} · (1 − ω) − v_i",
        "x ← δ + γ · λ · (1 − ω) · x",
        "A_i ← x",
        "R_i ← A_i + v_i",
    ]


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
        *("track", "wandb_project", "capture_video", "render"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_every_flag_with_its_text(name):
    output = subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "400", "PATH": "/usr/bin:/bin"},
    ).stdout
    output = " ".join(output.replace("│", " ").split())
    body = ast.parse(definitions(name)["Config"]).body[0].body[:-1]
    for field, text in zip(body[::2], body[1::2], strict=True):
        flag = "--" + field.target.id.replace("_", "-")
        place = re.search(rf" {flag}[ ,].*?{re.escape(text.value.value)}", output)
        assert place, flag
        assert " --" not in place[0].replace(f"--no-{flag[2:]}", "")[3:].replace(
            "With --evaluate", ""
        ), flag
    assert len(body) == 2 * len(fields(SCRIPTS[name].Config))


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
    for one, other in combinations(NAMES, 2):
        (row,) = re.findall(rf"\n\| `{one}` (.*)", readme)
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[NAMES.index(other)] == str(changed_lines(one, other)), (one, other)
