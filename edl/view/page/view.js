// The page of `edl dashboard`. State comes as server-sent events: everything once, then what has
// changed. Whatever is shown came from strangers: it becomes text (textContent), never markup.
"use strict";

const WORDS = {
  en: {
    skip: "Skip to what to do", theme: "Theme: as the system, light or dark", advice: "What to do",
    map: "Who works for whom", curves: "The last hour", students: "Students", teachers: "Teachers",
    filter: "Filter", emptyTitle: "Nothing is registered",
    emptyText: "Teachers and students appear here as soon as they register. To start a teacher:",
    emptyDemo: "To see everything at work on this machine: edl demo cluster",
    keys: "Keys: ↑ ↓ move in a table and mark in the picture, / filters, Esc clears",
    connecting: "connecting", live: "live", lost: "no connection to edl dashboard, last seen {0}",
    registry: "This is of the past: {0}",
    rowsTile: "Soft labels", waitTile: "Students wait", busyTile: "Teachers busy",
    ofTime: "of their time", wanted: "{0} wanted", balancer: "nobody balances", balanced: "balanced",
    canDo: "could be {0}", nobodyT: "No teacher", nobodyS: "No student", noMatch: "Nothing matches",
    more: "and {0} more, not shown", teacher: "teacher", student: "student", device: "device", serves: "serves",
    can: "can do", busy: "busy", queue: "queue", latency: "latency", errors: "errors", users: "students",
    age: "age", waits: "waits", volume: "volume", hits: "store hits", epoch: "epoch", wants: "wants",
    its: "teachers", any: "any", none: "none", ready: "{0} batches are ready; kept between {1} and {2}",
    legendTeacher: "teacher, filled as far as it is busy", legendStudent: "student", legendWait: "waits",
    rowsCurve: "Soft labels, {0} per second", shareCurve: "Students waiting, teachers busy", errorCurve: "Requests that fail", countCurve: "How many are there",
    waiting: "waiting", working: "busy", now: "now", ago: "{0} ago", few: "the curve begins in a few seconds",
    each: "{0}/s", rows: "rows", tokens: "tokens", of: "{0} of {1}", sort: "sort by {0}", off: "not connected",
  },
  zh: {
    skip: "跳到建议", theme: "主题：跟随系统、浅色或深色", advice: "建议",
    map: "谁为谁工作", curves: "最近一小时", students: "学生", teachers: "教师",
    filter: "筛选", emptyTitle: "注册中心为空",
    emptyText: "教师和学生注册后会出现在这里。启动一个教师：",
    emptyDemo: "在本机查看完整演示：edl demo cluster",
    keys: "按键：↑ ↓ 在表格中移动并在图中标出，/ 筛选，Esc 清除",
    connecting: "连接中", live: "实时", lost: "与 edl dashboard 的连接已断开，最后一次：{0}",
    registry: "以下内容不是最新的：{0}",
    rowsTile: "软标签", waitTile: "学生等待", busyTile: "教师忙碌",
    ofTime: "的时间", wanted: "需要 {0} 个", balancer: "没有进程做均衡", balanced: "已均衡",
    canDo: "最多 {0}", nobodyT: "没有教师", nobodyS: "没有学生", noMatch: "没有匹配项",
    more: "另有 {0} 个未显示", teacher: "教师", student: "学生", device: "设备", serves: "提供",
    can: "能力", busy: "忙碌", queue: "排队", latency: "延迟", errors: "错误", users: "学生数",
    age: "已运行", waits: "等待", volume: "存量", hits: "命中", epoch: "轮次", wants: "需求",
    its: "教师", any: "不限", none: "无", ready: "{0} 批已就绪；保持在 {1} 与 {2} 之间",
    legendTeacher: "教师，填充表示忙碌程度", legendStudent: "学生", legendWait: "等待",
    rowsCurve: "软标签，每秒{0}", shareCurve: "学生等待与教师忙碌的时间占比", errorCurve: "失败的请求", countCurve: "数量",
    waiting: "等待", working: "忙碌", now: "现在", ago: "{0} 前", few: "曲线几秒后开始",
    each: "{0}/秒", rows: "行", tokens: "词元", of: "{0} / {1}", sort: "按{0}排序", off: "未连接",
  },
};
const LITTLE_WAITING = 0.05;
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

let language = stored("language", ["en", "zh"]) || (navigator.language.startsWith("zh") ? "zh" : "en");
let theme = stored("theme", ["light", "dark"]) || "";
let state = null; // as edl/view/board.py makes it
let points = {}; // the curves, by service
let meaning = { names: [], step: 10, most: 360 };
let chosen = ""; // the service that is shown
let marked = ""; // "t" or "s" and a name: marked in the picture
let seenAt = 0;
let connected = false;

// --- words, numbers, elements ----------------------------------------------------------------

function word(name, ...values) {
  const text = WORDS[language][name] ?? name;
  return text.replace(/\{(\d)\}/g, (_, index) => values[index] ?? "");
}

function stored(name, allowed) {
  try {
    const value = localStorage.getItem(`edl-${name}`);
    return allowed.includes(value) ? value : "";
  } catch { return ""; } // a browser that keeps nothing
}

function store(name, value) {
  try { localStorage.setItem(`edl-${name}`, value); } catch { /* then it is forgotten */ }
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

function number(value) {
  if (!known(value)) return "";
  if (Math.abs(value) >= 1e15) return value.toExponential(1);
  if (Math.abs(value) >= 1e6) return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  return new Intl.NumberFormat("en", { maximumFractionDigits: Math.abs(value) < 10 ? 1 : 0 }).format(value);
}

function percent(share) {
  if (!known(share)) return "";
  return share > 0 && share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

function duration(seconds) {
  if (!known(seconds)) return "";
  if (seconds < 1) return `${Number((1000 * seconds).toPrecision(2))} ms`;
  return `${Number(seconds.toPrecision(2))} s`;
}

function age(since) {
  return known(since) && state ? span(state.time - since) : "";
}

function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (whole >= size) return `${Math.floor(whole / size)} ${unit}`;
  }
  return `${whole} s`;
}

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.includes("-") || key === "role" || key === "scope") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function meter(share, kind = "") {
  const bar = element("i");
  bar.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  return element("span", { class: `meter ${kind}`, "aria-hidden": "true" }, bar);
}

const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

// --- tables ----------------------------------------------------------------------------------

// A column: its title, what to sort by, and what to show (text, or a list of nodes and texts).
const share = (value, kind) => (known(value) ? [percent(value), meter(value, kind)] : "");

const TEACHERS = [
  { title: "teacher", left: true, by: (_, key) => key, show: (row, key) => [
    key,
    row.hostname ? element("span", { class: "under" }, row.hostname) : "",
    row.problem ? element("span", { class: "under bad" }, row.problem) : "",
    row.errors >= 0.01 && row.words ? element("span", { class: "under bad" }, row.words) : "",
  ] },
  { title: "device", left: true, by: (row) => row.device || "", show: (row) => [
    row.device || "", row.precision ? element("span", { class: "under" }, row.precision) : ""] },
  { title: "serves", left: true, by: (row) => row.serves || row.protocol || "", show: (row) => [
    row.serves || row.protocol || "",
    row.model ? element("span", { class: "under", title: row.model }, row.model.slice(0, 18)) : ""] },
  { title: "unit", by: (row) => row.rows, show: (row) => [
    number(row.rows), known(row.rate) ? element("span", { class: "under" }, word("canDo", number(row.rate))) : ""] },
  { title: "busy", by: (row) => row.busy, show: (row) => share(row.busy) },
  { title: "queue", by: (row) => row.queue, show: (row) => number(row.queue) },
  { title: "latency", by: (row) => row.latency, show: (row) => duration(row.latency) },
  { title: "errors", by: (row) => row.errors, show: (row) => row.errors >= 0.01 ? [element("span", { class: "bad" }, percent(row.errors))] : percent(row.errors) },
  { title: "users", by: (row) => row.students, show: (row) => number(row.students) },
  { title: "age", by: (row) => -(row.since ?? 0), show: (row) => age(row.since), moves: true },
];

function volume(row) {
  if (!known(row.volume)) return "";
  const most = Math.max(row.volume, row.high || 0, 1) * 1.15;
  const bar = meter(row.volume / most, "volume");
  for (const mark of [row.low, row.high]) {
    if (known(mark)) {
      const tick = element("u");
      tick.style.left = `${(100 * mark) / most}%`;
      bar.append(tick);
    }
  }
  bar.title = word("ready", number(row.volume), number(row.low), number(row.high));
  return [number(row.volume), bar];
}

const STUDENTS = [
  { title: "student", left: true, by: (_, key) => key, show: (row, key) => [
    element("span", { title: key }, key.slice(0, 8)),
    row.hostname ? element("span", { class: "under" }, row.pid ? `${row.hostname} (${row.pid})` : row.hostname) : "",
    row.problem ? element("span", { class: "under bad" }, row.problem) : "",
  ] },
  { title: "unit", by: (row) => row.rows, show: (row) => number(row.rows) },
  { title: "waits", by: (row) => row.waits, show: (row) => share(row.waits, "wait") },
  { title: "volume", by: (row) => row.volume, show: volume },
  { title: "hits", by: (row) => row.store_hits, show: (row) => percent(row.store_hits) },
  { title: "epoch", by: (row) => row.epoch, show: (row) => known(row.epoch) ? [
    number(row.epoch),
    element("span", { class: "under" }, row.length ? word("of", number(row.batch || 0), number(row.length)) : number(row.batch || 0)),
  ] : "" },
  { title: "wants", by: (row) => row.want ?? Infinity, show: (row) => (known(row.want) ? number(row.want) : word("any")) },
  { title: "its", by: (row) => row.teachers.length, show: (row) => [
    element("span", { title: row.teachers.slice(0, 50).join("\n") }, row.teachers.length ? number(row.teachers.length) : word("none")),
    row.limit ? element("span", { class: "under" }, `≤ ${number(row.limit)}`) : "",
  ] },
  { title: "age", by: (row) => -(row.since ?? 0), show: (row) => age(row.since), moves: true },
];

class Table {
  constructor(id, side, columns, nobody) {
    this.table = $(id);
    this.side = side; // "t" or "s", as in `marked`
    this.columns = columns;
    this.nobody = nobody;
    this.filter = $(`${id}-filter`);
    this.lines = new Map(); // key -> {tr, row}
    this.sorted = { column: 0, down: false };
    this.body = element("tbody");
    this.filter.addEventListener("input", () => this.arrange());
    this.body.addEventListener("keydown", (event) => this.onKey(event));
    for (const [kind, on] of [["focusin", true], ["focusout", false], ["mouseover", true], ["mouseleave", false]]) {
      this.body.addEventListener(kind, (event) => {
        const tr = event.target.closest("tr");
        mark(on && tr && tr.dataset.key !== undefined ? this.side + tr.dataset.key : "");
      });
    }
  }

  titles(unit) {
    const row = element("tr");
    this.columns.forEach((column, index) => {
      const name = column.title === "unit" ? word("each", word(unit)) : word(column.title);
      const button = element("button", { type: "button", title: word("sort", name) }, name);
      const cell = element("th", { scope: "col", class: column.left ? "left" : "" }, button);
      if (index === this.sorted.column) cell.setAttribute("aria-sort", this.sorted.down ? "descending" : "ascending");
      button.addEventListener("click", () => {
        const again = this.sorted.column === index;
        this.sorted = { column: index, down: again ? !this.sorted.down : !column.left };
        this.titles(unit);
        this.table.tHead.rows[0].cells[index].firstChild.focus();
        this.arrange();
      });
      row.append(cell);
    });
    this.table.replaceChildren(element("thead", {}, row), this.body);
  }

  show(rows, fresh) {
    if (fresh) { this.lines.clear(); this.body.replaceChildren(); }
    for (const key of [...this.lines.keys()]) {
      if (!Object.hasOwn(rows, key)) { this.lines.get(key).tr.remove(); this.lines.delete(key); }
    }
    for (const [key, row] of Object.entries(rows)) {
      let line = this.lines.get(key);
      if (!line) {
        const tr = element("tr", { tabIndex: -1 });
        tr.dataset.key = key;
        this.columns.forEach((column) => tr.append(element("td", { class: column.left ? "left" : "" })));
        this.lines.set(key, (line = { tr, row: null }));
      }
      const changed = line.row !== row;
      line.row = row;
      this.columns.forEach((column, index) => {
        if (!changed && !column.moves) return;
        const shown = column.show(row, key);
        if (typeof shown === "string") setText(line.tr.cells[index], shown);
        else line.tr.cells[index].replaceChildren(...shown.filter((part) => part !== ""));
      });
    }
    this.arrange();
  }

  arrange() {
    const { column, down } = this.sorted;
    const by = this.columns[column].by;
    const needle = this.filter.value.trim().toLowerCase();
    const values = [];
    for (const [key, { tr, row }] of this.lines) {
      if (!needle || `${key} ${Object.values(row).join(" ")}`.toLowerCase().includes(needle)) values.push([by(row, key), key, tr]);
    }
    values.sort(([a, aKey], [b, bKey]) => {
      if (a === b || (a == null && b == null)) return aKey < bKey ? -1 : 1;
      if (a == null || b == null) return a == null ? 1 : -1; // what is not known comes last
      return (a < b ? -1 : 1) * (down ? -1 : 1);
    });
    const order = values.map(([, , tr]) => tr);
    const there = this.body.children;
    if (!order.length || order.length !== there.length || order.some((tr, index) => tr !== there[index])) {
      const focused = document.activeElement;
      if (order.length) this.body.replaceChildren(...order);
      else this.body.replaceChildren(element("tr", { class: "nobody" },
        element("td", { colSpan: this.columns.length }, word(needle ? "noMatch" : this.nobody))));
      if (focused && focused !== document.activeElement && this.body.contains(focused)) focused.focus({ preventScroll: true });
    }
    if (order.length && !order.some((tr) => tr.tabIndex === 0)) order[0].tabIndex = 0;
  }

  onKey(event) {
    const tr = event.target.closest("tr");
    const rows = [...this.body.children];
    const at = rows.indexOf(tr);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1, PageDown: at + 10, PageUp: at - 10 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = rows[Math.min(rows.length - 1, Math.max(0, to))];
    tr.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

// --- who works for whom ----------------------------------------------------------------------

// Teachers left, students right, each as low as those it works with: few lines cross, and the lines
// of one student are a fan, however many there are.
const WIDE = 1240, BOX = 132, LABEL = 196, LOWEST = 64, HIGHEST = 560, ROOMY = 17;

function orders(teachers, students) {
  const place = new Map(Object.keys(students).map((key, index) => [key, index]));
  const sums = new Map(Object.keys(teachers).map((key) => [key, [0, 0]]));
  for (const [key, row] of Object.entries(students)) {
    for (const teacher of row.teachers) {
      const sum = sums.get(teacher);
      if (sum) { sum[0] += place.get(key); sum[1] += 1; }
    }
  }
  const middle = (key) => { const [sum, count] = sums.get(key); return count ? sum / count : Infinity; };
  const order = Object.keys(teachers).map((key) => [middle(key), key]);
  order.sort(([a, aKey], [b, bKey]) => (a === b ? (aKey < bKey ? -1 : 1) : a - b));
  return [order.map(([, key]) => key), Object.keys(students)];
}

function drawMap(service, fresh) {
  const { teachers, students } = service;
  const many = Object.keys(teachers).length + Object.keys(students).length > 200;
  if (many && !fresh && drawMap.at > Date.now() - 5000) return; // a large picture takes a while
  drawMap.at = Date.now();
  const [left, right] = orders(teachers, students);
  $("map-card").hidden = !left.length || !right.length;
  if ($("map-card").hidden) return;
  const tall = Math.min(HIGHEST, Math.max(LOWEST, 30 * Math.max(left.length, right.length)));
  const places = (keys) => new Map(keys.map((key, index) => [key, ((index + 0.5) * tall) / keys.length]));
  const lefts = places(left), rights = places(right);
  const links = shape("g"), nodes = shape("g");
  const from = LABEL + BOX, to = WIDE - LABEL - BOX, bend = (to - from) * 0.45;
  const thick = Math.max(0.7, Math.min(3, (0.5 * tall) / Math.max(left.length, right.length)));
  for (const [student, row] of Object.entries(students)) {
    const on = new Set(row.connected);
    for (const teacher of row.teachers) {
      if (!lefts.has(teacher)) continue;
      const a = lefts.get(teacher), b = rights.get(student);
      const kind = (row.waits >= LITTLE_WAITING ? " waits" : "") + (on.has(teacher) ? "" : " off");
      const path = shape("path", {
        d: `M${from} ${a.toFixed(1)}C${from + bend} ${a.toFixed(1)} ${to - bend} ${b.toFixed(1)} ${to} ${b.toFixed(1)}`,
        class: `link${kind}`, "stroke-width": thick,
      });
      path.ends = ["t" + teacher, "s" + student];
      links.append(path);
    }
  }
  const node = (key, side, y, many, row) => {
    const teacher = side === "t";
    const step = tall / many;
    const height = Math.max(0.8, Math.min(20, step * (step < 6 ? 0.8 : 0.66)));
    const x = teacher ? LABEL : WIDE - LABEL - BOX;
    const trouble = row.problem || row.errors >= 0.01 ? (step < 6 ? " trouble thin" : " trouble") : "";
    const group = shape("g", { class: `node ${teacher ? "teacher" : "student"}${trouble}` });
    const box = (className, start, length) => shape("rect", { class: className, x: x + start * BOX, y: y - height / 2, width: length * BOX, height, rx: Math.min(4, height / 3) });
    group.append(box("box", 0, 1));
    if (teacher) group.append(box("bar", 0, Math.min(1, row.busy || 0)));
    else if (known(row.waits)) group.append(box("bar", 0, 1 - row.waits), box("wait", 1 - row.waits, row.waits));
    else group.append(box("bar", 0, 1));
    if (step >= ROOMY) {
      const label = shape("text", { x: teacher ? x - 10 : x + BOX + 10, y: y + 4, "text-anchor": teacher ? "end" : "start" }, short(teacher ? key : key.slice(0, 8), 26));
      if (!teacher && known(row.rows)) label.append(shape("tspan", { class: "soft", dx: 8, fill: "currentColor" }, `${number(row.rows)}/s`));
      group.append(label);
    }
    const about = teacher ? [key, row.device, percent(row.busy) && `${word("busy")} ${percent(row.busy)}`, row.problem]
      : [key, row.hostname, percent(row.waits) && `${word("waits")} ${percent(row.waits)}`, row.problem];
    group.append(shape("title", {}, about.filter(Boolean).join("\n")));
    group.key = side + key;
    nodes.append(group);
  };
  for (const [key, y] of lefts) node(key, "t", y, left.length, teachers[key]);
  for (const [key, y] of rights) node(key, "s", y, right.length, students[key]);
  const label = `${left.length} ${word("teachers")}, ${right.length} ${word("students")}, ${links.childElementCount} —`;
  const picture = shape("svg", { viewBox: `0 0 ${WIDE} ${tall}`, role: "img", "aria-label": label }, links, nodes);
  picture.addEventListener("mouseover", (event) => { const at = event.target.closest(".node"); mark(at ? at.key : ""); });
  picture.addEventListener("mouseleave", () => mark(""));
  $("map").replaceChildren(picture);
  showMark();
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function mark(key) {
  if (key === marked) return;
  marked = key;
  showMark();
}

function showMark() {
  const picture = $("map").firstChild;
  if (!picture) return;
  const partners = new Set([marked]);
  const [links, nodes] = picture.children;
  for (const link of links.children) {
    const on = marked && link.ends.includes(marked);
    link.classList.toggle("on", Boolean(on));
    if (on) link.ends.forEach((end) => partners.add(end));
  }
  let there = false;
  for (const node of nodes.children) {
    there ||= node.key === marked;
    node.classList.toggle("on", partners.has(node.key));
  }
  picture.classList.toggle("marking", there);
}

// --- curves ----------------------------------------------------------------------------------

const CHARTS = [
  { title: (info) => word("rowsCurve", word(info.unit)), lines: [["rows", "student-ink"]], format: number },
  { title: () => word("shareCurve"), lines: [["waits", "wait-ink", "waiting"], ["busy", "teacher-ink", "working"]], format: percent, most: 1 },
  { title: () => word("errorCurve"), lines: [["errors", "act-ink"]], format: percent, least: 0.02 },
  { title: () => word("countCurve"), lines: [["teachers", "teacher-ink", "teachers"], ["students", "student-ink", "students"]], format: number },
];
const CHART = { wide: 400, tall: 118, left: 2, right: 398, top: 14, bottom: 98 };

function nice(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => step * size >= value * 0.999) * size;
}

function drawCurves(service) {
  const past = points[chosen] || [];
  const counts = { teachers: Object.keys(service.teachers).length, students: Object.keys(service.students).length };
  const latest = meaning.names.map((name) => service.info[name] ?? counts[name] ?? null);
  const until = state.time / meaning.step;
  const all = [...past, [until, latest]].filter(([step]) => step > until - meaning.most);
  const since = Math.min(all[0][0], until - 12);
  $("curves").replaceChildren(...CHARTS.map((chart) => drawChart(chart, all, since, until, service.info)));
}

function drawChart(chart, all, since, until, info) {
  const series = chart.lines.map(([name, ink, called]) => {
    const index = meaning.names.indexOf(name);
    return { ink, called, values: all.map(([step, values]) => [step, values[index]]) };
  });
  const largest = Math.max(...series.flatMap(({ values }) => values.map(([, value]) => value ?? 0)), chart.least ?? 0);
  const most = chart.most ?? (largest > 0 ? nice(largest * 1.05) : 1);
  const x = (step) => CHART.left + ((CHART.right - CHART.left) * (step - since)) / (until - since);
  const y = (value) => CHART.bottom - ((CHART.bottom - CHART.top) * Math.min(value, most)) / most;
  const picture = shape("svg", { viewBox: `0 0 ${CHART.wide} ${CHART.tall}`, preserveAspectRatio: "none", role: "img" });
  for (const part of [0, 0.5, 1]) picture.append(shape("line", { class: "grid", x1: 0, x2: CHART.wide, y1: y(part * most), y2: y(part * most) }));
  for (const { ink, values } of series) {
    for (const piece of pieces(values)) {
      const line = piece.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
      const ends = [piece[0][0], piece[piece.length - 1][0]].map((step) => x(step).toFixed(1));
      if (series.length === 1) picture.append(shape("path", { class: `area ${ink}`, d: `M${ends[0]} ${CHART.bottom}L${line}L${ends[1]} ${CHART.bottom}Z` }));
      picture.append(shape("path", { class: `line ${ink}`, d: `M${line}${piece.length > 1 ? "" : "h.1"}` }));
    }
  }
  const said = element("span", { class: "said" });
  const tell = (at) => said.replaceChildren(...series.flatMap(({ ink, called, values }) => {
    const value = values[at][1];
    return [element("b", { class: ink }, `${called ? word(called) + " " : ""}${known(value) ? chart.format(value) : "–"}`)];
  }), at === all.length - 1 ? "" : `· ${word("ago", span((until - all[at][0]) * meaning.step))}`);
  tell(all.length - 1);
  picture.setAttribute("aria-label", `${chart.title(info)}: ${said.textContent}`);
  const cross = shape("line", { class: "cross", y1: CHART.top, y2: CHART.bottom, visibility: "hidden" });
  picture.append(cross);
  picture.addEventListener("mousemove", (event) => {
    const bounds = picture.getBoundingClientRect();
    const step = since + ((event.clientX - bounds.left) / bounds.width) * (until - since);
    let at = 0;
    all.forEach(([candidate], index) => { if (Math.abs(candidate - step) < Math.abs(all[at][0] - step)) at = index; });
    for (const end of ["x1", "x2"]) cross.setAttribute(end, x(all[at][0]));
    cross.setAttribute("visibility", "visible");
    tell(at);
  });
  picture.addEventListener("mouseleave", () => { cross.setAttribute("visibility", "hidden"); tell(all.length - 1); });
  const scale = element("div", { class: "scale" },
    element("span", {}, word("ago", span((until - since) * meaning.step))), element("span", {}, word("now")));
  return element("figure", { class: "curve" },
    element("figcaption", {}, element("span", {}, chart.title(info)), said),
    element("span", { class: "most" }, chart.format(most)), picture, scale);
}

// What is not known is a gap.
function pieces(values) {
  const found = [[]];
  values.forEach(([step, value], index) => {
    const after = index && step - values[index - 1][0] > 3;
    if (value === null || value === undefined || after) found.push([]);
    if (value !== null && value !== undefined) found[found.length - 1].push([step, value]);
  });
  return found.filter((piece) => piece.length);
}

// --- the page --------------------------------------------------------------------------------

const tables = [
  new Table("students", "s", STUDENTS, "nobodyS"),
  new Table("teachers", "t", TEACHERS, "nobodyT"),
];

function worst(service) {
  return ["act", "note"].find((level) => service.advice.some(([is]) => is === level)) || "good";
}

function drawServices(names) {
  const buttons = names.map((name) => {
    const dot = element("span", { class: "dot", "aria-hidden": "true" });
    const button = element("button", { type: "button", title: name, class: worst(state.services[name]), "aria-current": String(name === chosen) }, dot, name);
    button.dataset.name = name;
    button.addEventListener("click", () => { chosen = name; draw(true); });
    return button;
  });
  const said = buttons.map((button) => button.outerHTML).join();
  if (drawServices.said === said) return; // what has the focus keeps it
  drawServices.said = said;
  const focused = document.activeElement?.dataset?.name;
  $("services").replaceChildren(...buttons);
  if (state.more) $("services").append(element("span", {}, word("more", state.more)));
  buttons.find((button) => button.dataset.name === focused)?.focus();
}

function drawAdvice(service) {
  const items = service.advice.map(([level, english, chinese]) =>
    element("li", { class: level }, language === "zh" ? chinese : english));
  const said = items.map((item) => item.className + item.textContent).join("\n");
  if (drawAdvice.said === said) return; // a screen reader is told what is new
  drawAdvice.said = said;
  $("advice-list").replaceChildren(...items);
}

function drawTiles(service) {
  const { info } = service;
  const teachers = Object.keys(service.teachers).length + (info.moreTeachers || 0);
  const students = Object.keys(service.students).length + (info.moreStudents || 0);
  const tiles = [
    ["rowsTile", number(info.rows), word("each", word(info.unit)), false],
    ["waitTile", percent(info.waits), word("ofTime"), info.waits >= LITTLE_WAITING],
    ["busyTile", percent(info.busy), word("ofTime"), false],
    ["teachers", number(teachers), known(info.wanted) ? word("wanted", number(info.wanted)) : "", false],
    ["students", number(students), students ? word(info.balanced ? "balanced" : "balancer") : "", false],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value, more, bad]) =>
    element("div", { class: bad ? "tile bad" : "tile" },
      element("div", { class: "name" }, word(name)), element("div", { class: "value" }, value || "–"), element("div", { class: "more" }, more))));
}

function draw(fresh) {
  if (!state) return;
  const names = Object.keys(state.services);
  if (!Object.hasOwn(state.services, chosen)) {
    chosen = names.find((name) => worst(state.services[name]) === "act") ?? names[0] ?? "";
    fresh = true;
  }
  const service = state.services[chosen];
  $("problem").hidden = !state.problem;
  setText($("problem"), state.problem ? word("registry", state.problem) : "");
  $("empty").hidden = Boolean(service) || Boolean(state.problem);
  $("view").hidden = !service;
  drawServices(names);
  if (!service) { document.title = "EDL"; return; }
  const { info } = service;
  document.title = known(info.waits) ? `${percent(info.waits)} ${word("waits")} · ${chosen} · EDL` : `${chosen} · EDL`;
  drawAdvice(service);
  drawTiles(service);
  drawMap(service, fresh);
  drawCurves(service);
  const [students, teachers] = tables;
  if (fresh) tables.forEach((table) => table.titles(info.unit));
  students.show(service.students, fresh);
  teachers.show(service.teachers, fresh);
  for (const [id, rows, more] of [["students", service.students, info.moreStudents], ["teachers", service.teachers, info.moreTeachers]]) {
    setText($(`${id}-count`), `${Object.keys(rows).length}${more ? `, ${word("more", more)}` : ""}`);
  }
}

function drawStatus() {
  const late = connected && Date.now() - seenAt > 10000;
  $("status").className = !seenAt ? "" : connected && !late ? "good" : "act";
  setText($("status-text"), !seenAt ? word("connecting")
    : connected && !late ? word("live") : word("lost", word("ago", span((Date.now() - seenAt) / 1000))));
}

function translate() {
  document.documentElement.lang = language;
  document.querySelectorAll("[data-word]").forEach((node) => setText(node, word(node.dataset.word)));
  document.querySelectorAll("[data-placeholder]").forEach((node) => {
    node.placeholder = word(node.dataset.placeholder);
    node.setAttribute("aria-label", node.placeholder);
  });
  document.querySelectorAll("[data-title]").forEach((node) => { node.title = word(node.dataset.title); });
  setText($("language"), language === "zh" ? "English" : "中文");
  $("language").lang = language === "zh" ? "en" : "zh";
  $("legend").replaceChildren(...[["is-teacher", "legendTeacher"], ["is-student", "legendStudent"], ["is-wait", "legendWait"]]
    .map(([kind, name]) => element("span", {}, element("i", { class: kind }), word(name))));
  drawStatus();
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function paint() {
  document.documentElement.dataset.theme = theme || (dark.matches ? "dark" : "light");
}

// --- what has changed ------------------------------------------------------------------------

// A key may be "__proto__": only an object without a prototype takes it for one.
const dictionary = (entries) => Object.assign(Object.create(null), entries);

function received(service) {
  return { ...service, teachers: dictionary(service.teachers), students: dictionary(service.students) };
}

function merge(old, changed) {
  const merged = dictionary(old);
  for (const [key, value] of Object.entries(changed)) {
    if (value === null) delete merged[key]; else merged[key] = value;
  }
  return merged;
}

function apply(change) {
  const services = dictionary(state.services);
  for (const [name, changed] of Object.entries(change.services)) {
    const old = services[name];
    if (changed === null) delete services[name];
    else if (!old) services[name] = received(changed);
    else {
      services[name] = { ...old, ...changed };
      for (const part of ["teachers", "students"]) services[name][part] = changed[part] ? merge(old[part], changed[part]) : old[part];
    }
  }
  for (const [name, point] of Object.entries(change.points)) {
    points[name] = [...(points[name] || []), point].slice(-meaning.most);
  }
  for (const name of Object.keys(points)) if (!Object.hasOwn(services, name)) delete points[name];
  state = { ...change, services };
}

function listen() {
  const events = new EventSource("events");
  events.addEventListener("full", (event) => {
    state = JSON.parse(event.data);
    const services = Object.entries(state.services).map(([name, service]) => [name, received(service)]);
    state.services = dictionary(Object.fromEntries(services));
    points = dictionary(state.points);
    meaning = state.curves;
    arrived(true);
  });
  events.addEventListener("change", (event) => { apply(JSON.parse(event.data)); arrived(false); });
  events.addEventListener("error", () => {
    connected = false;
    drawStatus();
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000); // refused: by a proxy, say
  });
}

let waiting = false;

function arrived(fresh) {
  seenAt = Date.now();
  connected = true;
  drawStatus();
  arrived.fresh ||= fresh;
  if (waiting) return;
  waiting = true; // a page in the background draws when it is looked at, and then once
  requestAnimationFrame(() => {
    waiting = false;
    const all = arrived.fresh;
    arrived.fresh = false;
    draw(all);
    document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn || 0) + 1);
  });
}

$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  store("language", language);
  translate();
  draw(true);
});
$("theme").addEventListener("click", () => {
  const shown = document.documentElement.dataset.theme;
  const system = dark.matches ? "dark" : "light";
  theme = theme && shown !== system ? "" : shown === "dark" ? "light" : "dark";
  store("theme", theme);
  paint();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input");
  if (event.key === "/" && !typing && !$("view").hidden) {
    event.preventDefault();
    const within = event.target.closest("#students") ? "students-filter" : "teachers-filter";
    $(within).focus();
  } else if (event.key === "Escape") {
    mark("");
    if (typing) { event.target.value = ""; event.target.dispatchEvent(new Event("input")); }
    event.target.blur();
  }
});
dark.addEventListener("change", paint);
paint();
translate();
setInterval(drawStatus, 1000);
listen();
