"""Writes index.html, the page that sets the paper's pseudocode beside the scripts.

    python docs/reading/build.py           # after any change of a script or a table
    python docs/reading/build.py --check   # exit status 1 if the page is stale

It reads the five scripts, the tables "Pseudocode and code" of docs/<algorithm>.md, the
figures of docs/experiments, and from this folder paper.toml (what the paper prints),
page.html, page.css and page.js. The page is one file that loads nothing else.
"""

import argparse
import ast
import html
import json
import re
import sys
import tomllib
import unicodedata
from base64 import b64encode
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from latex2mathml.converter import convert
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Literal, Name, String

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = HERE / "index.html"
NAMES = "reinforce", "a2c", "trpo", "ppo", "vmpo"
# What a reader of the paper came for; the other parts are folded
OPEN = {"networks", "advantage", "loss", "update", "rollout"}
KEYWORDS = r"\b(for all|for|while|do|if|then|else|repeat|until)\b"


class Mismatch(Exception):
    """Scripts, tables and paper.toml do not fit together."""


# ── scripts ─────────────────────────────────────────────────────────────────────────
@dataclass
class Part:
    """What stands under one banner."""

    name: str
    first: int  # line, from 1
    last: int


class Script:
    """The source of one algorithm, its definitions and its parts."""

    def __init__(self, name: str):
        self.name, self.text = name, (ROOT / f"{name}.py").read_text("utf-8")
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)
        self.definitions = dict(self._define(self.tree, ""))
        docstring = self.tree.body[0]
        banners = {"docstring": 1, "imports and constants": docstring.end_lineno + 1}
        for number, line in enumerate(self.lines, 1):
            if match := re.fullmatch(r"# ── (.+?) ─+", line):
                banners[match[1]] = number
        starts = [*banners.values(), len(self.lines) + 1]
        spans = zip(banners, starts, starts[1:], strict=False)
        self.parts = [Part(name, first, after - 1) for name, first, after in spans]
        self.departures = self._departures(docstring.end_lineno)

    def _define(self, node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield prefix + child.name, child
                yield from self._define(child, f"{prefix}{child.name}.")

    def _departures(self, end: int) -> list[tuple[int, str, int]]:
        """Number, text and line of each departure that the docstring lists."""
        found = [re.match(r"(\d+)\. (.+)", line) for line in self.lines[:end]]
        return [(int(m[1]), m[2], i) for i, m in enumerate(found, 1) if m]

    def locate(self, function: str, code: str) -> list[list[int]]:
        """The lines of `function` that, joined by spaces, have `code` in them."""
        if function not in self.definitions:
            raise Mismatch(f"{self.name}.py has no {function}")
        node, found = self.definitions[function], []
        numbers = range(node.lineno, node.end_lineno + 1)
        for length in range(1, 6):
            for first in numbers[: len(numbers) - length + 1]:
                span = range(first, first + length)
                if code in " ".join(self.lines[i - 1].strip() for i in span):
                    found.append(list(span))
            if found:
                break
        if not found:
            raise Mismatch(f"{self.name}.py has no {code!r} in {function}")
        return found

    def flag(self, name: str) -> tuple[int, str, str]:
        """Line, default and flag of a field of Config."""
        for node in self.definitions["Config"].body:
            if isinstance(node, ast.AnnAssign) and node.target.id == name:
                default = ast.get_source_segment(self.text, node.value)
                flag = f"--{name.replace('_', '-')}"
                if default == "True":  # what one would type is the other form
                    return node.lineno, "on", flag.replace("--", "--no-", 1)
                return node.lineno, "off" if default == "False" else default, flag
        raise Mismatch(f"{self.name}.py has no flag {name}")

    def quotes(self, first: int, last: int) -> set[str]:
        """The paper's lines that comments quote: # Algs. 5.10, 6.10: for all epochs."""
        comments = [line.partition("# ")[2] for line in self.lines[first - 1 : last]]
        lists = re.findall(r"\bAlgs?\. ([\d., ]+):", "\n".join(comments))
        return {number for numbers in lists for number in numbers.split(", ")}

    def where(self, number: int) -> str:
        """The innermost definition, or else the part, that a line is in."""
        inside = ""
        for name, node in self.definitions.items():
            first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
            if first <= number <= node.end_lineno:
                inside = name
        part = next(x.name for x in self.parts if x.first <= number <= x.last)
        return inside or part


# ── the paper's lines ───────────────────────────────────────────────────────────────
@dataclass
class Line:
    """A line of the paper's pseudocode in one script."""

    number: str
    text: str
    places: list[tuple[str, list[int]]] = field(default_factory=list)  # function, lines
    why: str = ""  # there are none


def read_page(name: str) -> list[str]:
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8").splitlines()


def read_tables(script: Script) -> dict[int, dict[str, Line]]:
    """The tables "Pseudocode and code" of the script's page, by algorithm, number."""
    page, tables, table = f"docs/{script.name}.md", {}, None
    for row in read_page(script.name):
        cells = [x.strip() for x in re.split(r"(?<!\\)\|", row)[1:-1]]
        cells = [x.replace(r"\|", "|") for x in cells]
        if len(cells) == 4 and cells[0] == "line":
            table = tables.setdefault(int(cells[1].removeprefix("Algorithm ")), {})
        elif len(cells) != 4 or table is None:
            table = None
        elif not cells[0].startswith("-"):
            number, text, function, code = cells
            line = table.setdefault(number, Line(number, text))
            if line.text != text:
                raise Mismatch(f"{page}: {number} has two texts")
            if function == "–":
                line.why = code.strip("`")
            else:
                function, code = function.strip("`"), code[1:-1]
                found = script.locate(function, code)
                line.places += [(function, numbers) for numbers in found]
    if not tables:
        raise Mismatch(f"{page} has no table | line | Algorithm … |")
    return tables


def characters(text: str) -> str:
    """What two ways to write a line have in common: no brackets, accents, spaces."""
    text = unicodedata.normalize("NFKD", text).replace("(a|s)", "")
    text = text.translate({ord("Σ"): "∑", ord("ϕ"): "φ", ord("⋅"): "·"})
    dropped = "(){}[]|‖∥/_^~,.√\N{COMBINING CIRCUMFLEX ACCENT}\N{COMBINING TILDE}"
    return "".join(x for x in text if x not in dropped and not x.isspace())


def mathml(latex: str, display: str = "inline") -> str:
    """MathML without what HTML does not need."""
    math = convert(latex, display=display)
    entity = r"&#x0*(?!26;|3C;)([0-9A-F]+);"
    math = re.sub(entity, lambda match: chr(int(match[1], 16)), math)
    # What the converter does not know: relations, brackets of a given size, and the
    # space between a function and what it is applied to
    space = '<mspace width="0.167em" />'
    for pattern, better in (
        ("<mi>~</mi>", "<mo>∼</mo>"),
        (r"<mo ([^>]*minsize[^>]*)>([\[(])", r'<mo form="prefix" \1>\2'),
        (r"<mo ([^>]*minsize[^>]*)>([])])", r'<mo form="postfix" \1>\2'),
        (r"<mo>min</mo>", "<mi>min</mi>"),
        (r"(<mi>(ln|exp)</mi>)(?!<(mrow><)?mo[^>]*>[\[(])", rf"\1{space}"),
        (r"(</(msub|mi|mfrac)>)(<mi>(ln|exp|min)</mi>)", rf"\1{space}\3"),
    ):
        math = re.sub(pattern, better, math)
    if "\\" in math or "&" in math:
        raise Mismatch(f"paper.toml: {latex} has what the converter does not know")
    return math.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


def typeset(text: str, keywords: bool = False) -> str:
    """Text with LaTeX between dollars, as HTML."""
    parts = text.split("$")
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = mathml(part)
        else:
            parts[i] = html.escape(part, quote=False)
            if keywords:
                parts[i] = re.sub(KEYWORDS, r"<b>\1</b>", parts[i])
    return "".join(parts)


def plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).replace("\xa0", " ")


# ── code as HTML ────────────────────────────────────────────────────────────────────
CLASSES = [  # the first that holds; what has none needs no colour
    (Literal.String.Doc, "d"),
    (Comment, "c"),
    (String, "s"),
    (Keyword, "k"),
    (Literal.Number, "m"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Decorator, "a"),
]


def highlight(script: Script) -> list[str]:
    """The lines of the script as HTML."""
    spans = [[]]  # of each line, as [class, text]
    for kind, value in PythonLexer(stripnl=False).get_tokens(script.text):
        name = next((x for token, x in CLASSES if kind in token), "")
        if re.match(r"# Algs?\. ", value):
            name = "q"
        for i, piece in enumerate(value.split("\n")):
            if i:
                spans.append([])
            if not piece:
                continue
            if spans[-1] and (spans[-1][-1][0] == name or piece.isspace()):
                spans[-1][-1][1] += piece
            else:
                spans[-1].append([name, piece])
    lines = ["".join(text for _, text in line) for line in spans]
    if lines[: len(script.lines)] != script.lines:
        raise Mismatch(f"{script.name}.py: the highlighter changed the source")
    marked = []
    for line in spans[: len(script.lines)]:
        pieces = [(name, html.escape(text, quote=False)) for name, text in line]
        marked.append("".join(f"<i class={n}>{t}</i>" if n else t for n, t in pieces))
    return marked


def short(numbers: list[str]) -> str:
    """7.4, 7.5, 7.6 as 7.4–6."""
    groups = []
    for algorithm, line in (map(int, number.split(".")) for number in numbers):
        if groups and groups[-1][0] == algorithm and groups[-1][2] == line - 1:
            groups[-1][2] = line
        else:
            groups.append([algorithm, line, line])
    return ", ".join(f"{x}.{a}" + (f"–{b}" if b > a else "") for x, a, b in groups)


def code_pane(script: Script, done: dict[int, list[str]]) -> str:
    """The script, a row for each line; its parts but those in OPEN are folded."""
    marked, name, out = highlight(script), script.name, []

    def row(number: int) -> str:
        paper = done.get(number)
        chip = kind = ""
        if paper:
            label = f"line {number}: {short(paper)} in the paper"
            link = f'<a href="#{name}/L{number}" aria-label="{label}" tabindex=-1>'
            chip, kind = f"{link}{short(paper)}</a>", " k"
        start = f'<div class="r{kind}" id="{name}/L{number}" data-n={number}>'
        return f"{start}{chip}<code>{marked[number - 1]}</code></div>"

    for part in script.parts:
        numbers = range(part.first, part.last + 1)
        if part.name == "docstring":
            out += map(row, numbers)
            continue
        size = part.last - part.first + 1
        banner = script.lines[part.first - 1].startswith("# ──")
        if banner:  # the banner is the summary
            numbers = numbers[1:]
        where = f' id="{name}/L{part.first}"' if banner else ""
        state = " open" if part.name in OPEN else ""
        out.append(
            f"<details{state}><summary{where}><span>{html.escape(part.name)}</span>"
            f"<small>lines {part.first}–{part.last}, {size}</small></summary>"
        )
        out += map(row, numbers)
        out.append("</details>")
    return "\n".join(out)


# ── the paper as HTML ───────────────────────────────────────────────────────────────
def pseudocode(script, number: int, paper: dict, table: dict, departures) -> str:
    """Algorithm `number`, each line a link to its code."""
    algorithm = paper["algorithms"][str(number)]
    out, seen = [], []
    for row in algorithm["text"].splitlines():
        match = re.fullmatch(r"(\d+\.\d+)?( +)(.+)", row)
        label, text = match[1] or "", typeset(match[3], keywords=True)
        depth = (len(row) - len(match[3]) - 5) // 2
        if not label:
            out.append(f'<li style="--d:{depth}"><span>{text}</span></li>')
            continue
        seen.append(label)
        if label not in table:
            raise Mismatch(f"docs/{script.name}.md has no line {label}")
        line = table[label]
        if characters(plain(text)) != characters(line.text):
            raise Mismatch(f"{label}: {plain(text)!r} is not docs' {line.text!r}")
        about = departures.get(label, [])
        out.append(pseudocode_line(script, line, text, depth, about))
    if seen != list(table):
        raise Mismatch(f"docs/{script.name}.md: lines {list(table)}, not {seen}")
    section = f"<h3>Algorithm {number} <span>{algorithm['name']}</span></h3>"
    require = f"<p class=require><b>Require:</b> {typeset(algorithm['require'])}</p>"
    items = "\n".join(out)
    return f"{section}\n{require}\n<ol class=lines>\n{items}\n</ol>"


def pseudocode_line(script, line: Line, text: str, depth: int, departures) -> str:
    here = f"{script.name}/{line.number}"
    count = len(line.places)
    spoken = f"{line.number}: {line.text}; "
    spoken += f"{count} place{'s' * (count != 1)} in the code" if count else "no code"
    mark, more = "", []
    for i, (function, numbers) in enumerate(line.places, 1):
        first = numbers[0]
        more.append(f'<a href="#{here}/{i}"><code>{function}</code> {first}</a>')
    more = [f"<p class=places>{' '.join(more)}</p>"] if more else []
    if line.why:
        more.append(f"<p class=why>No code: {html.escape(line.why)}.</p>")
    for number, departure, at in departures:
        mark = '<i title="departs from the text">≠</i>'
        link = f'<a href="#{script.name}/L{at}">Departure {number}</a>'
        more.append(f"<p class=departure>{link}: {html.escape(departure)}</p>")
        spoken += f"; departure {number}"
    places = json.dumps([numbers for _, numbers in line.places], separators=(",", ":"))
    return (
        f'<li class=line id="{here}" style="--d:{depth}" data-at="{places}">'
        f'<a class=go href="#{here}" aria-label="{html.escape(spoken)}" tabindex=-1>'
        f"<b class=n>{line.number}</b><span>{text}</span>{mark}</a>{''.join(more)}</li>"
    )


def equations(script: Script, paper: dict, lines: dict[str, Line]) -> str:
    """The paper's equations, each a link to the code of its lines."""
    out = []
    for i, equation in enumerate(paper["equations"], 1):
        if script.name not in equation["scripts"]:
            continue
        place = equation["place"]
        numbers = [x for x in equation["lines"] if x in lines]
        if not numbers:
            raise Mismatch(f"paper.toml: {place} has no line in {script.name}")
        numbered = re.fullmatch(r"Eq\. (\d+)", place)
        here = f"eq{numbered[1]}" if numbered else f"formula{i}"
        here = f"{script.name}/{here}"
        math = "".join(mathml(latex, display="block") for latex in equation["latex"])
        out.append(
            f'<li class=equation id="{here}" data-lines="{" ".join(numbers)}">'
            f'<a class=go href="#{here}" tabindex=-1><span>{math}</span>'
            f"<small>{place} · {', '.join(numbers)}</small></a></li>"
        )
    return f"<h3>Equations</h3>\n<ol class=equations>\n{chr(10).join(out)}\n</ol>"


def figure(data: dict, copy: bool, script: str = "") -> str:
    """A figure, or a copy of it that the page's script fills in beside an algorithm."""
    numbers = data.get("lines", []) if script else []
    links = [f'<a href="#{script}/{number}">{number}</a>' for number in numbers]
    caption = " ".join([html.escape(data["caption"]), *links])
    alt = html.escape(data["alt"])
    if copy:
        image = f'<a href="#curves"><img data-copy={data["file"]} alt="{alt}"></a>'
    else:
        path = ROOT / "docs" / "experiments" / "figures" / f"{data['file']}.svg"
        svg = path.read_text("utf-8")
        # Hundredths of a point, and no metadata: half the size and the same picture
        svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg, flags=re.S)
        numbers = re.compile(r"(\d\.\d\d)\d+")
        svg = re.sub(r' d="[^"]*"', lambda x: numbers.sub(r"\1", x[0]), svg)
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
        source = "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()
        size = f"width={float(width):.0f} height={float(height):.0f}"
        image = f'<img id={data["file"]} {size} alt="{alt}" src="{source}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def find_departures(script: Script, paper: dict) -> dict[str, list]:
    """By line of the paper: the docstring's departures that are about it."""
    found, known = {}, paper["departures"][script.name]
    if len(known) != len(script.departures):
        raise Mismatch(f"paper.toml places {len(known)} departures of {script.name}.py")
    for beginning, numbers in known.items():
        fits = [x for x in script.departures if x[1].startswith(beginning)]
        if len(fits) != 1:
            raise Mismatch(f"{script.name}.py: {len(fits)} departures: {beginning!r}")
        for number in numbers:
            found.setdefault(number, []).append(fits[0])
    return {number: sorted(departures) for number, departures in found.items()}


def flat(tables: dict[int, dict[str, Line]]) -> dict[str, Line]:
    return {number: line for table in tables.values() for number, line in table.items()}


def view(script: Script, paper: dict, tables) -> str:
    """An algorithm's pseudocode and equations beside its script."""
    name, lines, done = script.name, flat(tables), {}
    for number, line in lines.items():
        for _, numbers in line.places:
            for i in numbers:
                if number not in done.setdefault(i, []):
                    done[i].append(number)
    departures = find_departures(script, paper)
    page = read_page(name)
    title, section = page[0].removeprefix("# "), page[2].split(" Script:")[0]
    texts = [pseudocode(script, n, paper, t, departures) for n, t in tables.items()]
    if unknown := departures.keys() - lines.keys():
        raise Mismatch(f"paper.toml: {name} has no lines {unknown}")
    texts.insert(1, equations(script, paper, lines))
    for data in paper["figures"]:
        if name in data["scripts"]:
            texts.append(figure(data, True, name))
    body = "\n".join(texts)
    return f"""\
<section class="view pair" id="{name}" aria-label="{title}" data-title="{title}">
<div class=paper role=region aria-label="{title} in the paper" tabindex=-1>
<h2>{title}</h2>
<p class=about>{html.escape(section)} · <a href="../{name}.md">docs/{name}.md</a>
· <a href="../notation.md">symbols</a> · <i>≠</i> departs from the text</p>
{body}
</div>
<div class=script>
<div class=bar>
<a href="../../{name}.py">{name}.py</a>
<span class=at></span>
<span class=step hidden>
<button type=button class=before aria-label="place before">‹</button>
<button type=button class=after aria-label="next place">›</button>
</span>
<button type=button class=unfold aria-pressed=false>Unfold all</button>
</div>
<div class=code role=region aria-label="{name}.py" tabindex=0>
{code_pane(script, done)}
</div>
</div>
</section>"""


# ── differences ─────────────────────────────────────────────────────────────────────
def changes(a: list[str], b: list[str]) -> list[list[int]]:
    """Where two texts differ, [a1, a2, b1, b2] with ends excluded, in the fewest lines.

    The greedy algorithm of Myers (1986).
    """
    furthest, trace = {1: 0}, []
    for d in range(len(a) + len(b) + 1):
        trace.append(dict(furthest))
        for k in range(-d, d + 1, 2):
            down = k == -d or k != d and furthest[k - 1] < furthest[k + 1]
            x = furthest[k + 1] if down else furthest[k - 1] + 1
            while x < len(a) and x - k < len(b) and a[x] == b[x - k]:
                x += 1
            furthest[k] = x
            if x >= len(a) and x - k >= len(b):
                return slide(join(trace, len(a), len(b)), a, b)
    raise AssertionError


def join(trace: list[dict], x: int, y: int) -> list[list[int]]:
    """The single steps of Myers' path, joined where they touch."""
    found = []
    for d in range(len(trace) - 1, 0, -1):
        furthest, k = trace[d], x - y
        down = k == -d or k != d and furthest[k - 1] < furthest[k + 1]
        k += 1 if down else -1
        x, y = furthest[k], furthest[k] - k
        step = [x, x, y, y + 1] if down else [x, x + 1, y, y]
        if found and [step[1], step[3]] == [found[-1][0], found[-1][2]]:
            found[-1][0], found[-1][2] = x, y
        else:
            found.append(step)
    return found[::-1]


def slide(found: list[list[int]], a: list[str], b: list[str]) -> list[list[int]]:
    """Move what is only added or removed to begin where a reader would say it does."""
    for i, (a1, a2, b1, b2) in enumerate(found):
        if a1 < a2 and b1 < b2:
            continue
        lines, first, last = (a, a1, a2) if a1 < a2 else (b, b1, b2)
        low = max(found[i - 1][1] - a1, found[i - 1][3] - b1) if i else -min(a1, b1)
        after = found[i + 1] if i + 1 < len(found) else [len(a), 0, len(b), 0]
        high = min(after[0] - a2, after[2] - b2)
        shifts, shift = [0], 0
        while shift > low and lines[first + shift - 1] == lines[last + shift - 1]:
            shift -= 1
            shifts.append(shift)
        shift = 0
        while shift < high and lines[first + shift] == lines[last + shift]:
            shift += 1
            shifts.append(shift)

        def begins(shift: int, lines=lines, first=first) -> tuple:
            line = lines[first + shift]
            before = lines[first + shift - 1] if first + shift else ""
            depth = len(line) - len(line.lstrip()) if line.strip() else 99
            return depth, bool(before.strip()), -shift

        shift = min(shifts, key=begins)
        found[i] = [a1 + shift, a2 + shift, b1 + shift, b2 + shift]
    return found


def difference(one: Script, other: Script, lines: dict) -> list:
    """The hunks: their lines in both scripts, where they are, and the paper's lines."""
    out = []
    for a1, a2, b1, b2 in changes(one.lines, other.lines):
        spans, labels, where = {one: (a1 + 1, a2), other: (b1 + 1, b2)}, [], []
        for script, (first, last) in spans.items():
            quoted = script.quotes(first, last)
            for number, line in lines[script.name].items():
                places = {i for _, numbers in line.places for i in numbers}
                if number in quoted or places & set(range(first, last + 1)):
                    labels.append(f"{script.name}/{number}")
            if first <= last:
                while first < last and not script.lines[first - 1].strip():
                    first += 1
                name = script.where(first)
                if name not in where:
                    where.append(name)
        out.append([a1 + 1, a2, b1 + 1, b2, ", ".join(where), labels])
    return out


def differences(scripts: list[Script], lines: dict) -> dict[str, list]:
    pairs = combinations(scripts, 2)
    return {f"{x.name}/{y.name}": difference(x, y, lines) for x, y in pairs}


def changed(hunks: list) -> int:
    return sum(a2 - a1 + b2 - b1 + 2 for a1, a2, b1, b2, *_ in hunks)


def matrix(found: dict[str, list], titles: dict[str, str]) -> str:
    """How many lines any two scripts differ in, each number a link."""
    head = "".join(f"<th scope=col>{title}</th>" for title in titles.values())
    rows = []
    for one, title in titles.items():
        cells = []
        for other in titles:
            hunks = found.get(f"{one}/{other}") or found.get(f"{other}/{one}")
            text = "–"
            if hunks:
                text = f'<a href="#diff/{one}/{other}">{changed(hunks)}</a>'
            cells.append(f"<td>{text}</td>")
        rows.append(f"<tr><th scope=row>{title}</th>{''.join(cells)}</tr>")
    caption = "<caption>Lines that differ, added and removed</caption>"
    return f"<table>{caption}<tr><td></td>{head}</tr>\n{chr(10).join(rows)}\n</table>"


# ── Section 4.6 ─────────────────────────────────────────────────────────────────────
def choices(scripts: list[Script], paper: dict, lines: dict, titles: dict) -> str:
    """What the algorithms differ in, each cell with its lines and its flags."""
    rows = []
    for choice in paper["choices"]:
        cells = [f"<th scope=row>{typeset(choice['name'])}</th>"]
        for script in scripts:
            cell, name, links = choice[script.name], script.name, []
            for number in cell.get("lines", []):
                if number not in lines[name]:
                    raise Mismatch(f"paper.toml: {name} has no line {number}")
                links.append(f'<a href="#{name}/{number}">{number}</a>')
            if "code" in cell:
                at = script.locate(*cell["code"])[0][0]
                links.append(f'<a href="#{name}/L{at}">code {at}</a>')
            for flag in cell.get("flags", []):
                at, default, flag = script.flag(flag)
                text = f"<code>{flag}</code> <small>{html.escape(default)}</small>"
                links.append(f'<a class=flag href="#{name}/L{at}">{text}</a>')
            text = f"<p>{typeset(cell['text'])}</p><p class=links>{' '.join(links)}</p>"
            cells.append(f'<td data-name="{titles[name]}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    links = [f'<a href="#{name}">{title}</a>' for name, title in titles.items()]
    head = "".join(f"<th scope=col>{link}</th>" for link in links)
    body = "\n".join(rows)
    return f"<table><thead><tr><td></td>{head}</tr></thead>\n{body}\n</table>"


# ── the page ────────────────────────────────────────────────────────────────────────
def build() -> str:
    """The page, the same for the same files."""
    paper = tomllib.loads((HERE / "paper.toml").read_text("utf-8"))
    scripts = [Script(name) for name in NAMES]
    tables = {script.name: read_tables(script) for script in scripts}
    known = {str(number) for table in tables.values() for number in table}
    if known != paper["algorithms"].keys():
        raise Mismatch(f"tables of Algorithms {known}, not {set(paper['algorithms'])}")
    lines = {name: flat(found) for name, found in tables.items()}
    titles = {name: read_page(name)[0].removeprefix("# ") for name in NAMES}
    found = differences(scripts, lines)
    options = "".join(f"<option value={n}>{t}</option>" for n, t in titles.items())
    pieces = {
        "style": (HERE / "page.css").read_text("utf-8"),
        "script": (HERE / "page.js").read_text("utf-8"),
        "tabs": "\n".join(f'<a href="#{n}">{t}</a>' for n, t in titles.items()),
        "views": "\n".join(view(s, paper, tables[s.name]) for s in scripts),
        "matrix": matrix(found, titles),
        "options": options,
        "choices": choices(scripts, paper, lines, titles),
        "figures": "\n".join(figure(data, False) for data in paper["figures"]),
        "differences": json.dumps(found, ensure_ascii=False, separators=(",", ":")),
    }
    page = (HERE / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: pieces[match[1]].rstrip("\n"), page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    try:
        page = build()
    except Mismatch as error:
        sys.exit(f"{error}")
    if not check:
        PAGE.write_text(page, "utf-8", newline="\n")
        print(f"{PAGE.relative_to(ROOT)}: {len(page.encode()) / 1e6:.2f} MB")
    elif not PAGE.exists() or PAGE.read_bytes() != page.encode():
        sys.exit(f"{PAGE.relative_to(ROOT)} is stale: python docs/reading/build.py")


if __name__ == "__main__":
    main()
