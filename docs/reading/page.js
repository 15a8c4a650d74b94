"use strict";
// The state is the address: #ppo, #ppo/6.12 (a line), #ppo/6.12/2 (its second place),
// #ppo/eq18, #ppo/L120 (a line of code), #diff/a2c/ppo, #diff/a2c/ppo/3, #choices.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const key = (element) => element.id.split("/")[1];
const views = $$(".view");
const pairs = new Map();

// ── an algorithm: the paper's lines on one side, the code's on the other ───────────
class Pair {
  constructor(view) {
    this.view = view;
    this.paper = $(".paper", view);
    this.code = $(".code", view);
    this.lines = new Map(); // number → {element, places}, a place being code lines
    this.rows = new Map(); // code line → numbers
    this.unfolded = []; // by a line that was only pointed at
    this.folds = $$("details:not([open])", view);
    for (const element of $$(".line", view)) {
      const places = JSON.parse(element.dataset.at);
      this.lines.set(key(element), { element, places });
      for (const row of places.flat()) {
        const numbers = this.rows.get(row) ?? [];
        this.rows.set(row, [...new Set([...numbers, key(element)])]);
      }
    }
    for (const element of $$(".equation", view)) {
      const numbers = element.dataset.lines.split(" ");
      const places = numbers.flatMap((number) => this.lines.get(number).places);
      this.lines.set(key(element), { element, places, numbers });
    }
    this.roving($$(".line .go, .equation .go", view));
    this.roving($$(".r > a", view));
    this.listen();
  }

  // One stop of the Tab key; arrow keys go on from there
  roving(links) {
    if (links.length) links[0].tabIndex = 0;
    links.forEach((link, i) => {
      link.addEventListener("keydown", (event) => {
        const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: links.length - 1 };
        const next = links[to[event.key]];
        if (!(event.key in to)) return;
        event.preventDefault();
        if (!next) return;
        go(next.hash, true);
        next.focus({ preventScroll: true });
      });
      link.addEventListener("focus", () => {
        for (const other of links) other.tabIndex = other === link ? 0 : -1;
        if (link.matches(":focus-visible")) this.point(link);
      });
      link.addEventListener("blur", () => this.point(null));
    });
  }

  listen() {
    let timer;
    const wait = (event, element) => {
      clearTimeout(timer);
      if (event.pointerType !== "mouse") return;
      timer = setTimeout(() => this.point(element), element ? 120 : 300);
    };
    this.view.addEventListener("pointermove", (event) => {
      const at = `${event.screenX} ${event.screenY}`;
      if (at === this.hand) return; // the page moved, not the hand
      this.hand = at;
      const found = event.target.closest(".line .go, .equation .go, .r.k");
      if (found !== this.under) wait(event, (this.under = found));
    });
    this.view.addEventListener("pointerleave", (event) => wait(event, (this.under = null)));
    this.view.addEventListener("pointerdown", () => clearTimeout(timer));
    this.view.addEventListener("click", (event) => {
      const link = event.target.closest(".line .go, .equation .go");
      const row = event.target.closest(".r.k");
      const quote = event.target.closest("i.q");
      const quoted = quote?.textContent.match(/\d+\.\d+/g)?.find((n) => this.lines.has(n));
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      if (link) {
        event.preventDefault();
        const entry = this.lines.get(key(link.parentElement));
        if (this.chosen?.entry === entry && entry.places.length > 1) this.step(1);
        else go(link.hash);
      } else if (quoted && !String(getSelection())) {
        go(`#${this.view.id}/${quoted}`);
      } else if (row && (event.target.closest("a") || !String(getSelection()))) {
        event.preventDefault();
        go(`#${this.view.id}/L${row.dataset.n}`);
      }
    });
    this.view.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") go(`#${this.view.id}`);
      else if (step && event.target.closest(".line, .equation")) {
        event.preventDefault();
        this.step(step);
      }
    });
    $(".before", this.view).addEventListener("click", () => this.step(-1));
    $(".after", this.view).addEventListener("click", () => this.step(1));
    const unfold = $(".unfold", this.view);
    unfold.addEventListener("click", () => {
      const open = unfold.getAttribute("aria-pressed") === "false";
      unfold.setAttribute("aria-pressed", open);
      unfold.textContent = open ? "Fold plumbing" : "Unfold all";
      for (const fold of this.folds) fold.open = open;
    });
  }

  // The next place of the chosen line
  step(by) {
    if (!this.chosen) return;
    const { name, place, entry } = this.chosen;
    const count = entry.places.length;
    if (count) go(`#${this.view.id}/${name}/${((place + by + count) % count) + 1}`, true);
  }

  // What the address says
  choose(name, place) {
    this.chosen = null;
    this.unfolded = [];
    if (this.lines.has(name)) {
      const entry = this.lines.get(name);
      const index = Math.min(Math.max(place || 1, 1), entry.places.length) - 1;
      this.chosen = { name, entry, place: Math.max(index, 0) };
    } else if (/^L\d+$/.test(name ?? "") && byId(`${this.view.id}/${name}`)) {
      this.chosen = { name, row: +name.slice(1) };
    }
    this.show(this.chosen);
    this.say();
  }

  // What the mouse or the keyboard points at, for as long as it does
  point(element) {
    if (element) {
      const owner = element.closest(".line, .equation, .r");
      const name = key(owner);
      if (this.chosen?.name === name) return this.show(this.chosen);
      const entry = this.lines.get(name);
      this.show(entry ? { name, entry, place: 0 } : { name, row: +owner.dataset.n }, true);
    } else if (this.pointed) this.show(this.chosen, false, false);
  }

  show(what, pointed = false, move = true) {
    this.pointed = pointed;
    if (!pointed) {
      for (const fold of this.unfolded) fold.open = false;
      this.unfolded = [];
    }
    for (const lit of $$(".on, .near", this.view)) lit.classList.remove("on", "near");
    for (const current of $$("[aria-current]", this.view)) current.removeAttribute("aria-current");
    if (!what) return;
    const { entry, row } = what;
    const mark = (element, strong) => element.classList.add(strong ? "on" : "near");
    if (entry) {
      const rows = entry.places[what.place] ?? [];
      for (const n of entry.places.flat()) this.light(n, rows.includes(n), pointed);
      for (const n of entry.numbers ?? []) mark(this.lines.get(n).element, false);
      mark(entry.element, !pointed);
      $(".go", entry.element).setAttribute("aria-current", "true");
      $$(".places a", entry.element)[what.place]?.setAttribute("aria-current", "true");
      if (move && rows.length) {
        const others = entry.places.flat();
        reveal(this.code, rows.map((n) => this.row(n)), others.map((n) => this.row(n)));
      }
      if (move && !pointed) reveal(this.paper, [entry.element]);
    } else {
      const numbers = this.rows.get(row) ?? [];
      const lines = numbers.map((n) => this.lines.get(n));
      for (const n of lines.flatMap((line) => line.places.flat())) {
        if (n !== row && !pointed) this.light(n, false, true);
      }
      this.light(row, true, pointed);
      for (const line of lines) mark(line.element, !pointed && lines.length === 1);
      for (const line of lines) $(".go", line.element).setAttribute("aria-current", "true");
      if (move && lines.length) reveal(this.paper, lines.map((line) => line.element));
      if (move && !pointed) reveal(this.code, [this.row(row)]);
    }
  }

  row(number) {
    return byId(`${this.view.id}/L${number}`);
  }

  light(number, strong, pointed) {
    const row = this.row(number);
    row.classList.add(strong ? "on" : "near");
    const fold = row.closest("details");
    if (fold && !fold.open && row.localName !== "summary" && (strong || !pointed)) {
      fold.open = true;
      if (pointed) this.unfolded.push(fold);
    }
  }

  // The bar above the code, and the live region
  say() {
    const at = $(".at", this.view), step = $(".step", this.view), what = this.chosen;
    const count = what?.entry?.places.length ?? 0;
    step.hidden = count < 2;
    let text = "";
    if (what?.entry) {
      const label = $(".go", what.entry.element).getAttribute("aria-label") ?? what.name;
      const place = what.entry.places[what.place];
      const short = /^\d/.test(what.name) ? what.name : $("small", what.entry.element).textContent;
      text = place ? `${short}: line ${place[0]}` : `${short}: no code`;
      if (count > 1) text += `, place ${what.place + 1} of ${count}`;
      speak(place ? `${label.split(";")[0]}. ${text}` : label);
    } else if (what) {
      const numbers = this.rows.get(what.row) ?? [];
      text = `line ${what.row}` + (numbers.length ? `: ${numbers.join(", ")} in the paper` : "");
      speak(`${text}. ${$("code", this.row(what.row))?.textContent.trim() ?? ""}`);
    }
    at.textContent = text;
  }
}

// Scroll a pane, and nothing else, until what counts is in view
function reveal(pane, elements, all = elements) {
  const head = pane.classList.contains("code") ? 34 : 8;
  const frame = pane.getBoundingClientRect();
  const span = (list) => {
    const boxes = list.map((element) => element.getBoundingClientRect());
    const top = Math.min(...boxes.map((box) => box.top));
    return [top, Math.max(...boxes.map((box) => box.bottom))];
  };
  const inside = ([top, bottom]) => top >= frame.top + head && bottom <= frame.bottom - 4;
  const wanted = span(elements), room = frame.height - head;
  if (inside(wanted)) return;
  let [top, bottom] = span(all);
  if (bottom - top > room * 0.8) [top, bottom] = wanted;
  if (bottom - top > room * 0.8) [top, bottom] = span(elements.slice(0, 1));
  const above = Math.max(head, Math.min(room / 3, (room - (bottom - top)) / 2));
  pane.scrollTop += top - frame.top - above;
  pane.scrollLeft = 0;
}

function speak(text) {
  byId("spoken").textContent = text;
}

// ── differences ────────────────────────────────────────────────────────────────────
const differences = JSON.parse(byId("differences").textContent);

function hunksOf(one, other) {
  const known = differences[`${one}/${other}`];
  if (known) return known;
  const swapped = differences[`${other}/${one}`] ?? [];
  return swapped.map(([a1, a2, b1, b2, ...rest]) => [b1, b2, a1, a2, ...rest]);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function copies(name, first, last, kind) {
  const out = [];
  for (let n = first; n <= last; n++) {
    const row = byId(`${name}/L${n}`);
    const code = row.localName === "summary" ? null : $("code", row).cloneNode(true);
    const text = code ?? make("code", { textContent: `# ── ${$("span", row).textContent} ──` });
    const copy = make("div", { className: `r ${kind}` }, text);
    copy.dataset.n = n;
    out.push(copy);
  }
  return out;
}

function title(name) {
  return byId(name).dataset.title;
}

function equalPart(name, first, last) {
  const count = last - first + 1;
  const text = `▸ ${count} equal line${count === 1 ? "" : "s"}, ${first}–${last} of ${name}.py`;
  const button = make("button", { type: "button", className: "equal", textContent: text });
  button.addEventListener("click", () => {
    const rows = make("div", { className: "same", tabIndex: 0 }, ...copies(name, first, last, ""));
    button.replaceWith(rows);
    rows.focus({ preventScroll: true });
  });
  return button;
}

// Hunks with few lines between them stand in one box
function groupsOf(hunks) {
  const groups = [];
  for (const hunk of hunks) {
    const last = groups.at(-1);
    if (last && hunk[0] - last.at(-1)[1] - 1 <= 2 * context + 4) last.push(hunk);
    else groups.push([hunk]);
  }
  return groups;
}

const context = 3; // equal lines before and after
const words = globalThis.Highlight && CSS.highlights ? new Highlight() : null;
if (words) CSS.highlights.set("changed", words);

// What differs between two lines that took each other's place
function markWords(old, now) {
  const [a, b] = [old, now].map((row) => $("code", row).textContent);
  const tokens = (text) => text.match(/\w+|\s+|[^\w\s]/g) ?? [];
  const [x, y] = [tokens(a), tokens(b)];
  let start = 0, end = 0;
  while (start < Math.min(x.length, y.length) && x[start] === y[start]) start++;
  while (end < Math.min(x.length, y.length) - start && x.at(-1 - end) === y.at(-1 - end)) end++;
  const equal = [...x.slice(0, start), ...x.slice(x.length - end)].join("").trim().length;
  if (equal < 0.4 * Math.max(a.trim().length, b.trim().length)) return;
  for (const [row, list] of [[old, x], [now, y]]) {
    const size = (part) => part.join("").length;
    const range = rangeOf($("code", row), size(list.slice(0, start)), size(list.slice(0, list.length - end)));
    if (range) words.add(range);
  }
}

function rangeOf(element, from, to) {
  if (from >= to) return null;
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  let at = 0, begun = false;
  while (walker.nextNode()) {
    const { data } = walker.currentNode;
    if (!begun && from < at + data.length) {
      range.setStart(walker.currentNode, from - at);
      begun = true;
    }
    if (begun && to <= at + data.length) {
      range.setEnd(walker.currentNode, to - at);
      return range;
    }
    at += data.length;
  }
  return null;
}

// The hunks of one box, side by side, with equal lines at the same height
function boxOf(one, other, group, before, after) {
  const sides = [[], []];
  const add = (i, rows) => sides[i].push(...rows);
  const level = () => {
    const most = Math.max(sides[0].length, sides[1].length);
    for (const side of sides) {
      while (side.length < most) side.push(make("div", { className: "r fill", textContent: " " }));
    }
  };
  let [a, b] = [group[0][0] - before, group[0][2] - before];
  for (const [a1, a2, b1, b2] of group) {
    add(0, copies(one, a, a1 - 1, ""));
    add(1, copies(other, b, b1 - 1, ""));
    const removed = copies(one, a1, a2, "changed"), added = copies(other, b1, b2, "changed new");
    if (words && removed.length === added.length) removed.forEach((row, i) => markWords(row, added[i]));
    add(0, removed);
    add(1, added);
    level();
    [a, b] = [a2 + 1, b2 + 1];
  }
  add(0, copies(one, a, a + after - 1, ""));
  add(1, copies(other, b, b + after - 1, ""));
  const names = [one, other];
  const panes = sides.map((rows, i) => {
    const label = `${names[i]}.py`;
    return make("div", { className: "side", tabIndex: 0, role: "group", ariaLabel: label }, ...rows);
  });
  return make("div", { className: "sides" }, ...panes);
}

function showDifference(one, other, chosen) {
  const hunks = hunksOf(one, other), groups = groupsOf(hunks), box = byId("hunks");
  byId("one").value = one;
  byId("other").value = other;
  for (const link of $$(".matrix a")) {
    const current = [`#diff/${one}/${other}`, `#diff/${other}/${one}`].includes(link.hash);
    if (current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const sum = hunks.reduce((n, [a1, a2, b1, b2]) => n + a2 - a1 + b2 - b1 + 2, 0);
  byId("count").textContent = `${sum} lines in ${groups.length} places`;
  if (box.dataset.pair !== `${one}/${other}`) {
    box.dataset.pair = `${one}/${other}`;
    box.replaceChildren();
    words?.clear();
    const last = $$(`[id^="${one}/L"]`).length;
    let done = 0; // lines of `one` shown so far
    groups.forEach((group, i) => {
      const [first, end] = [group[0][0], group.at(-1)[1]];
      const before = Math.min(context, first - 1 - done);
      const after = Math.min(context, (groups[i + 1]?.[0][0] ?? last + 1) - 1 - end);
      if (first - before - 1 > done) box.append(equalPart(one, done + 1, first - before - 1));
      const where = [...new Set(group.flatMap((hunk) => hunk[4].split(", ")))].join(", ");
      const marks = make("span");
      const labels = [one, other].flatMap((name) =>
        group.flatMap((hunk) => hunk[5].filter((label) => label.startsWith(`${name}/`))));
      for (const label of new Set(labels)) {
        const [name, number] = label.split("/");
        marks.append(make("a", { href: `#${label}`, textContent: `${title(name)} ${number}` }));
      }
      const self = make("a", { href: `#diff/${one}/${other}/${i + 1}`, textContent: i + 1 });
      const head = make("h3", {}, self, make("code", { textContent: where }), marks);
      const sides = boxOf(one, other, group, before, after);
      box.append(make("div", { className: "hunk", id: `hunk${i + 1}` }, head, sides));
      done = end + after;
    });
    if (done < last) box.append(equalPart(one, done + 1, last));
  }
  speak(`${title(one)} and ${title(other)}: ${byId("count").textContent}`);
  if (chosen) byId(`hunk${chosen}`)?.scrollIntoView();
}

// ── the address ────────────────────────────────────────────────────────────────────
function go(hash, replace = false) {
  if (hash !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", hash);
  route();
}

function route() {
  const [name, first, second, third] = decodeURIComponent(location.hash.slice(1)).split("/");
  const view = views.find((view) => view.id === name) ?? views[0];
  for (const other of views) other.classList.toggle("shown", other === view);
  for (const link of $$("nav a")) {
    if (link.hash === `#${view.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view.dataset.title}${first ? ` ${first}` : ""} · Policy gradients beside the paper`;
  if (view.id === "diff") {
    const known = (name) => pairNames.includes(name);
    const both = known(first) && known(second) && first !== second;
    showDifference(...(both ? [first, second] : ["a2c", "ppo"]), +third || 0);
  } else if (view.classList.contains("pair")) {
    if (!pairs.has(view)) pairs.set(view, new Pair(view));
    pairs.get(view).choose(first, +second);
  } else if (first) byId(`${name}/${first}`)?.scrollIntoView();
  scrollTo(0, 0);
}

const pairNames = views.filter((view) => view.classList.contains("pair")).map((view) => view.id);
for (const image of $$("img[data-copy]")) image.src = byId(image.dataset.copy).src;
for (const id of ["one", "other"]) {
  byId(id).addEventListener("change", () => {
    let [one, other] = [byId("one").value, byId("other").value];
    if (one === other) {
      const [was] = (byId("hunks").dataset.pair ?? "").split("/").filter((x) => x !== one);
      if (id === "one") other = was;
      else one = was;
    }
    go(`#diff/${one}/${other}`);
  });
}
byId("swap").addEventListener("click", () => go(`#diff/${byId("other").value}/${byId("one").value}`));

// ── light and dark ─────────────────────────────────────────────────────────────────
const root = document.documentElement, themes = ["auto", "light", "dark"];
function showTheme() {
  byId("theme").textContent = `Theme: ${root.dataset.theme || "auto"}`;
}
byId("theme").addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
  root.dataset.theme = next;
  try { localStorage.theme = next; } catch { /* some browsers keep nothing for a file */ }
  showTheme();
});

addEventListener("hashchange", route);
addEventListener("popstate", route);
addEventListener("load", route); // after the browser's own scrolling to the address
showTheme();
route();
