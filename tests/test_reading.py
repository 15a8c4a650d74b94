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
LONGEST = {"reinforce": 710, "a2c": 783, "trpo": 878, "ppo": 787, "vmpo": 858}
FURTHEST = {
    ("reinforce", "a2c"): 170,  # ten of them torchrun's, which REINFORCE refuses
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
COLLECT = [  # lines 1 to 10 of Algorithms 5, 6 and 8
    "Initialize θ and ϕ at random",
    "t ← 0",
    "while t ≤ T do",
    "for i = 1, …, U do",
    "a ∼ π_θ",
    "β(a|s) ← π_θ(a|s)",
    "s, r ∼ P(s, a)",
    "t ← t + 1",
    "Store (a, s, r, β(a|s)) in D",
    "for all epochs do",
]
# As a reader counts them, from the first after "Require"; no "end …", no bare "else".
PSEUDOCODE = {
    3: [
        "Initialize θ at random",
        "for all episodes do",
        "Generate trajectory s_0, a_0, r_1, s_1, …, s_T under policy π_θ",
        "for t = 1, …, T do",
        "G_t ← Σ_{k=t}^T γ^{k−t} r_k",
        "θ ← θ + α G_t ∇_θ ln π_θ(a_t|s_t)",
    ],
    4: [
        "Initialize θ and ϕ at random",
        "for i = 1, …, n do, in parallel",
        "while T ≤ T_MAX do",
        "dθ ← 0, dϕ ← 0",
        "θ⁽ⁱ⁾ ← θ, ϕ⁽ⁱ⁾ ← ϕ",
        "s_t ∼ p_0",
        "t_start ← t",
        "while s_t not terminal and t − t_start ≤ t_MAX do",
        "a_t ∼ π_θ⁽ⁱ⁾",
        "s_{t+1}, r_{t+1} ∼ P(s_t, a_t)",
        "t ← t + 1, T ← T + 1",
        "R ← 0 if s_t is terminal, V_ϕ⁽ⁱ⁾(s_t) else",
        "for j = t − 1, …, t_start do",
        "R ← r_j + γR",
        "A = R − V_ϕ⁽ⁱ⁾(s_j)",
        "dθ ← dθ + ∇_θ⁽ⁱ⁾ ln π_θ⁽ⁱ⁾(a_j|s_j) A",
        "dϕ ← dϕ + ∇_ϕ⁽ⁱ⁾ (R − V_ϕ⁽ⁱ⁾(s_j))²",
        "update θ and ϕ using dθ and dϕ via gradient ascent / descent",
    ],
    5: [
        *COLLECT,
        "Compute returns R and advantages A",
        "g ← 1/|D| Σ_D ∇_θ π_θ(a|s)/β(a|s) A",
        "Compute Ĥ as the Hessian of the sample average KL-divergence",
        "Compute d ≈ Ĥ⁻¹ g via conjugate gradient algorithm",
        "m ← 0",
        "repeat",
        "θ ← θ_old + b^m √(2δ / dᵀĤd) d",
        "m ← m + 1",
        "until (sample loss improves and KL constraint satisfied) or m > K",
        "dϕ ← 1/|D| Σ_D ∇_ϕ (R − V_ϕ(s))²",
        "Update ϕ using dϕ via gradient descent",
    ],
    6: [
        *COLLECT,
        "R, A ← computeGAE(v, r, λ, γ)",
        "dθ ← ∇_θ 1/|D| Σ_D min(π/β, clip(π/β, 1 − ε, 1 + ε)) A",
        "dϕ ← ∇_ϕ 1/|D| Σ_D (R − V_ϕ(s))²",
        "update θ and ϕ using dθ and dϕ via gradient ascent / descent",
    ],
    7: [
        "A_t, …, A_{t+n} ← 0",
        "x ← 0",
        "for i = t + n, …, t do",
        "if transition was terminal then",
        "ω ← 1",
        "ω ← 0",
        "δ ← r_i + γ · v_{i+1} · (1 − ω) − v_i",
        "x ← δ + γ · λ · (1 − ω) · x",
        "A_i ← x",
        "for i = t, …, t + n do",
        "R_i ← A_i + v_i",
    ],
    8: [
        *COLLECT,
        "Compute returns R and advantages A",
        "Compute D̃",
        "L_ν ← 1/|D| Σ_D ν(ε_ν − sg(KL(π_old‖π_θ))) + sg(ν) KL(π_old‖π_θ)",
        "L_π ← −1/|D̃| Σ_D̃ ln π_θ(a|s) ψ(s, a)",
        "L_η ← η ε_η + η ln(1/|D̃| Σ_D̃ exp(A/η))",
        "dθ ← ∇_θ (L_π + L_ν), dη ← ∂/∂η L_η, dν ← ∂/∂ν L_ν",
        "dϕ ← 1/|D| Σ_D ∇_ϕ (R − V_ϕ(s))²",
        "update θ, η, ν and ϕ using dθ, dη, dν and dϕ via gradient ascent / descent",
    ],
}
LINES = {
    f"{number}.{i}": text
    for number, lines in PSEUDOCODE.items()
    for i, text in enumerate(lines, 1)
}
# They stand in the tables only: no code of theirs has room for them, or there is none.
NOT_QUOTED = {"4.2", "4.5", "4.6", "4.7", "4.11", "4.12", "4.13", "5.15", "5.18"}
NOT_QUOTED |= {f"{number}.{i}" for number in (5, 6, 8) for i in (2, 8)}
NOT_QUOTED |= {"7.1", "7.10"}
OUT_OF_ORDER = {
    "4.4",  # gradients are reset just before they are computed
    *("5.6", "6.6", "8.6"),  # in one pass after the rollout
    *("7.4", "7.5", "7.6", "7.7"),  # for all i at once, before the loop over i
}


def lines_of(name: str) -> dict[str, str]:
    """The lines that the script does: its algorithm's, then GAE's if it calls that."""
    wanted = [NUMBER[name], 7] if name != "reinforce" else [NUMBER[name]]
    return {k: text for n in wanted for k, text in LINES.items() if int(k[0]) == n}


def functions(text: str) -> dict[str, str]:
    """Source of each function, and of each method as Class.method."""
    found = {}
    for node in ast.parse(text).body:
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for part in node.body if prefix else [node]:
            if isinstance(part, ast.FunctionDef):
                lines = text.splitlines()[part.lineno - 1 : part.end_lineno]
                found[prefix + part.name] = "\n".join(lines)
    return found


def table(page: str) -> list[tuple[str, ...]]:
    """The page's rows | line | text | function | code |, without escapes."""
    rows = re.findall(r"^\| (\d\.\d+) \| (.+) \|$", page, re.MULTILINE)
    cells = [(line, *re.split(r"(?<!\\) \| ", rest)) for line, rest in rows]
    return [tuple(cell.replace("\\|", "|").strip("`") for cell in row) for row in cells]


def quotes(comment: str) -> list[tuple[str, str]]:
    """(line, text) of each quote in «# Algs. 5.3, 6.3: text; Alg. 7.1: text»."""
    found = []
    for part in comment.removeprefix("# ").split("; "):
        match = re.fullmatch(r"Algs?\. (\d\.\d+(?:, \d\.\d+)*): (.+)", part)
        found += [(line, match[2]) for line in match[1].split(", ")] if match else []
    return found


def is_quote(quote: str, line: str) -> bool:
    """It may leave out the actor's ⁽ⁱ⁾ and then all indices of time, or end in …"""
    text = LINES.get(line, "")
    actor = text.replace("⁽ⁱ⁾", "")
    forms = text, actor, re.sub(r"_([tj]|\{t\+1\})(?!\w)", "", actor)
    if quote.endswith(" …"):
        return any(form.startswith(quote[:-1]) for form in forms)
    return quote in forms


def quotes_in_order(sources: dict, name: str, seen: set) -> list[tuple[str, ...]]:
    """(line, text, function, code) in the order in which the code comes to them.

    The code is that beside the quote and the next line; of a comment that stands alone,
    all to the next such comment.
    """
    if name in seen:
        return []
    seen.add(name)
    lines = [re.split(r"(?=# Alg)", x.strip()) for x in sources[name].splitlines()]
    alone = [i for i, line in enumerate(lines) if line[0] == "" and len(line) == 2]
    found = []
    for i, (code, *comment) in enumerate(lines):
        end = i + 2 if code else min([k for k in alone if k > i], default=len(lines))
        place = " ".join(" ".join(code for code, *_ in lines[i:end]).split())
        found += [(*quote, name, place) for x in comment for quote in quotes(x)]
        for called in re.findall(r"\b(\w+)\(", code if i else ""):
            if called in sources:
                found += quotes_in_order(sources, called, seen)
    return found


def faults_of_table(name: str, text: str, page: str) -> list[str]:
    rows, lines, sources, wrong = table(page), lines_of(name), functions(text), []
    if [*dict.fromkeys(row[0] for row in rows)] != [*lines]:
        wrong.append("not the paper's lines in its order")
    for line, quote, function, code in rows:
        if quote != lines.get(line):
            wrong.append(f"{line} is not {quote}")
        elif function == "–":
            wrong += [] if " " in code else [f"{line} has neither code nor reason"]
        elif code not in " ".join(sources.get(function, "").split()):
            wrong.append(f"{line} is not in {function}: {code}")
    return wrong


def faults_of_quotes(name: str, text: str, page: str) -> list[str]:
    lines, wrong = lines_of(name), []
    comments = re.findall(r"# .*\bAlgs?\..*", text)
    wrong += [f"no quote: {x}" for x in comments if len(quotes(x)) < x.count("Alg")]
    everything = [quote for comment in comments for quote in quotes(comment)]
    wrong += [f"{line} is not {x}" for line, x in everything if not is_quote(x, line)]
    reached = quotes_in_order(functions(text), "train", set())
    if sorted(everything) != sorted(quote[:2] for quote in reached):
        wrong.append("the code never comes to a quote")
    reached = [quote for quote in reached if quote[0] in lines]
    found = [line for line, *_ in reached]
    for line in lines:
        if found.count(line) != (line not in NOT_QUOTED):
            wrong.append(f"{line} is quoted {found.count(line)} times")
    for line, _, function, place in reached:
        codes = [row[3] for row in table(page) if row[::2] == (line, function)]
        if not any(code in place for code in codes):
            wrong.append(f"{line} is quoted where the table has no code of it")
    for number in {line[0] for line in lines}:
        order = [[*lines].index(line) for line in found if line[0] == number]
        late = {[*lines].index(line) for line in OUT_OF_ORDER & {*found}} & {*order}
        rest = [i for i in order if i not in late]
        if rest != sorted(rest):
            wrong.append(f"Algorithm {number} is quoted in another order")
        for i in late:
            some = [k for k in order if k == i or k not in late]
            wrong += [f"{[*lines][i]} is in order"] if some == sorted(some) else []
    return wrong


PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_paper_quotes_and_tables_have_the_same_lines(name):
    assert faults_of_table(name, TEXT[name], PAGES[name]) == []
    assert faults_of_quotes(name, TEXT[name], PAGES[name]) == []
    assert f"Algorithm {NUMBER[name]}" in SCRIPTS[name].__doc__


GAE_QUOTE = "        # Alg. 6.11: R, A ← computeGAE(v, r, λ, γ)\n"
BETA_QUOTE = "    # Algs. 5.6, 6.6, 8.6: β(a|s) ← π_θ(a|s)\n"
STEP = "        # Algs. 4.10, 5.7, 6.7, 8.7"
BROKEN = [  # what is found, and the changes in ppo.py and its page that make it so
    ("6.13 is not dθ", ("Alg. 6.12: dθ", "Alg. 6.13: dθ")),
    ("6.15 is not update", ("Alg. 6.14: up", "Alg. 6.15: up")),
    ("7.9 is not A_i ← δ", ("Alg. 7.9: A_i ← x", "Alg. 7.9: A_i ← δ")),
    ("7.3 is not while t ≤ T do", ("5.3, 6.3, 8.3: while", "5.3, 7.3, 8.3: while")),
    ("no quote: # Algs. 5, 6", ("Algs. 5.10, 6.10, 8.10:", "Algs. 5, 6, 8:")),
    ("7.2 is quoted 0 times", ("  # Alg. 7.2: x ← 0", "")),
    (
        "6.2 is quoted 1 times",
        ("    start, total", "    # Alg. 6.2: t ← 0\n    start, total"),
    ),
    ("6.11 is quoted 2 times", (GAE_QUOTE, 2 * GAE_QUOTE)),
    ("never comes", (GAE_QUOTE, ""), ("def main", GAE_QUOTE.strip() + "\ndef main")),
    ("6.11 is quoted where", (GAE_QUOTE, ""), ("    means", GAE_QUOTE + "    means")),
    ("6 is quoted in another", (GAE_QUOTE, ""), ("    means", GAE_QUOTE + "    means")),
    ("6.6 is in order", (BETA_QUOTE, ""), (STEP, BETA_QUOTE + STEP)),
    ("not the paper's lines", ("| 6.2 | t ← 0", "| 6.1 | t ← 0")),
    ("not the paper's lines", ("| 6.2 | t ← 0", "| 6.4 | t ← 0")),
    ("6.2 is not t ← 1", ("| 6.2 | t ← 0", "| 6.2 | t ← 1")),
    ("6.14 is not in update", ("`optimizer.step()`", "`optimizer.go()`")),
    ("6.14 is not in rollout", ("descent | `update`", "descent | `rollout`")),
    ("6.4 is not in Rollout.act", ("do | `rollout`", "do | `Rollout.act`")),
    ("6.14 has neither", ("`update` | `optimizer.step()`", "– | `optimizer.step()`")),
    ("7.9 is quoted where", ("`advantages[i] = x`", "`delta = delta.unbind()`")),
]


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_what_is_broken_is_found(case):
    """Or else the test above could not fail."""
    expected, *changes = BROKEN[case]
    text, page = TEXT["ppo"], PAGES["ppo"]
    for old, new in changes:
        assert (old in text) != (old in page)
        text, page = text.replace(old, new, 1), page.replace(old, new, 1)
    faults = faults_of_table("ppo", text, page) + faults_of_quotes("ppo", text, page)
    assert any(expected in fault for fault in faults), faults


@pytest.mark.parametrize("name", NAMES)
def test_a_page_numbers_its_departures_as_the_docstring_does(name):
    listed = re.findall(r"^(\d)\. (.+)$", SCRIPTS[name].__doc__, re.MULTILINE)
    part = re.search(
        r"## Departures from the paper's text\n(.*?)\n## ", PAGES[name], re.S
    )
    items = re.findall(r"^(\d)\. (.+\n(?: .+\n)*)", part[1], re.MULTILINE)
    for i, (one, other) in enumerate(zip(listed, items, strict=True), 1):
        assert one[0] == other[0] == str(i)
        assert " ".join(other[1].split()).startswith(one[1])
    discarded = "Nothing is learned from the first rollout"
    assert sum(text.startswith(discarded) for _, text in listed) == 1


def test_shapes_have_the_papers_u_and_no_t():
    texts = [*TEXT.values(), *(p.read_text() for p in (ROOT / "docs").rglob("*.md"))]
    texts += [path.read_text() for path in (ROOT / "tests").glob("*.py")]
    assert [x for text in texts for x in re.findall(r"[(\[]T(?:,.*|\])", text)] == []
    assert all("[U, N]" in text for text in TEXT.values())


# ── symbols ─────────────────────────────────────────────────────────────────────────

SYMBOLS = "θ ϕ π β D D̃ T U t n R r A δ λ γ ε η ν ψ ω K b α G J ρ d"
MEANINGS = {"β": 3, "δ": 2, "η": 3, "ε": 3, "ρ": 3, "T": 3, "n": 2, "λ": 2, "b": 2}


def test_the_symbols_lead_to_names_that_exist():
    page = (ROOT / "docs" / "notation.md").read_text()
    rows = re.findall(r"^\| (\S.*)\|$", page, re.MULTILINE)[1:]
    rows = [re.split(r"(?<!\\) \| ?", row) for row in rows]
    letters = [re.match(r"\w\u0303?", row[0])[0] for row in rows]
    for letter in SYMBOLS.split():
        assert letters.count(letter) >= MEANINGS.get(letter, 1), letter
    flags = {f.name for script in SCRIPTS.values() for f in fields(script.Config)}
    columns = (ROOT / "docs" / "implementation.md").read_text() + "".join(
        PAGES.values()
    )
    for _, _, names, flag_or_column in rows:
        for known in re.findall(r"`(.+?)`", flag_or_column):
            if known.startswith("--"):
                assert known[2:].replace("-", "_") in flags, known
            else:
                assert f"`{known}`" in columns, known
        for words in re.findall(r"`(.+?)`", names):
            for word in re.findall(r"[^\W\d_]\w+", words.removesuffix(".py")):
                assert any(word in text for text in TEXT.values()), word


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
OFF |= {"top_half": True}


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
