// The status page. Every text is set as text, never as HTML: names, ids and notes may hold anything.
"use strict";

const EVERY = 2000, EVERY_HIDDEN = 30000, PATIENCE = 6000;  // milliseconds
const FRESH = 10;       // seconds for which a reading is current
const FEW = 12;         // rows shown until more are asked for
const LANES = 8;        // most beats with a lane of their own
const COLOURS = 6;
const SPANS = [["1 hour", 3600], ["1 day", 86400], ["1 week", 604800], ["all", Infinity]];

const $ = (id) => document.getElementById(id);
let answer = null;      // the last /page.json
let answeredAt = 0;     // performance.now() then
let failed = null;      // why there was none since
let span = null;        // seconds that the timeline shows; null until there is one to choose for
const colours = new Map();
const expanded = new Set();

// Small things ------------------------------------------------------------------------------------

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(node, attributes);
  return node;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
}

// Characters that do not show, or change the direction of others, are shown as escapes.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const plain = (text) => String(text).replace(UNSEEN,
  (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

/** Changes the one text of a node, and nothing where it is that already: a selection stays. */
function put(node, text) {
  const wanted = plain(text);
  if (!node.firstChild) node.append(wanted);
  else if (node.firstChild.data !== wanted) node.firstChild.data = wanted;
}

const show = (node, shown) => { if (node.hidden === shown) node.hidden = !shown; };
const style = (node, className) => { if (node.className !== className) node.className = className; };

/** Gives `parent` a child for each item, in order, and keeps those that it has. */
function sync(parent, items, key, make, update) {
  const known = new Map(Array.from(parent.children, (child) => [child.key, child]));
  const keys = new Map();
  for (const item of items) {
    let k = key(item);
    while (keys.has(k)) k += "+";
    keys.set(k, item);
  }
  for (const [k, child] of known) if (!keys.has(k)) child.remove();
  let place = parent.firstElementChild;
  for (const [k, item] of keys) {
    let node = known.get(k);
    if (!node) {
      node = make(item);
      node.key = k;
    }
    update(node, item);
    // One that went to a later place is taken out, rather than all after it moved.
    if (place && node !== place && node === place.nextElementSibling) {
      place.remove();
      place = node;
    }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
}

// Time --------------------------------------------------------------------------------------------

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const minuteFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const dayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const yearFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

/** Now, in milliseconds, by the clock of the beat; it stands still while nothing is known. */
function now() {
  const stands = document.body.classList.contains("stale") && answer.status;
  if (stands) return Date.parse(answer.status.read_at);
  return Date.parse(answer.now) + performance.now() - answeredAt;
}

function clock(at) {
  const date = new Date(at), today = new Date(now());
  if (date.toDateString() === today.toDateString()) return clockFormat.format(date);
  if (Math.abs(at - today) > 300 * 86400e3) return yearFormat.format(date);
  return `${dayFormat.format(date)} ${minuteFormat.format(date)}`;
}

function length(seconds) {
  const s = Math.abs(seconds);
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  return roughly(s);
}

function roughly(seconds) {
  const s = Math.round(Math.abs(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  const rest = (n, unit) => (n ? ` ${n} ${unit}` : "");
  if (s < 86400) return `${Math.floor(s / 3600)} h${rest(Math.floor(s / 60) % 60, "min")}`;
  return `${Math.floor(s / 86400)} d${rest(Math.floor(s / 3600) % 24, "h")}`;
}

const TIMES = {
  clock: (at) => clock(at),
  since: (at) => `${clock(at)}, for ${roughly((now() - at) / 1000)}`,
  for: (at) => roughly((now() - at) / 1000),
  until: (at) => {
    const left = (at - now()) / 1000;
    // What is shown is some seconds old, and a run takes a moment to be seen.
    if (left <= 0.5) return left > -5 ? "now" : `${roughly(left)} late`;
    return `in ${roughly(left)}`;
  },
};

/** Has a <time> show an instant, in one of the ways above, and go on doing so. */
function at(node, iso, way) {
  node.way = iso ? way : null;
  node.at = Date.parse(iso);
  if (!iso) return put(node, "–");
  if (node.dateTime !== iso) {
    node.dateTime = iso;
    node.title = iso.replace("T", " ").replace(/(\.\d{3})\d*/, "$1").replace("+00:00", " UTC");
  }
  return put(node, TIMES[way](node.at));
}

function tick() {
  if (!answer) return;
  for (const node of document.querySelectorAll("time")) {
    if (node.way && node.way !== "clock") put(node, TIMES[node.way](node.at));
  }
}

// What is shown -----------------------------------------------------------------------------------

function colour(id) {
  if (!colours.has(id)) colours.set(id, `c${colours.size % COLOURS}`);
  return colours.get(id);
}

function facts(parent, items) {
  sync(parent, items.filter(Boolean), ([name]) => name, ([, , time]) => {
    const node = el("span", "", el("span", ""));
    if (time) node.append(el("time", ""));
    return node;
  }, (node, [, text, time, way]) => {
    put(node.firstChild, text);
    if (time) at(node.lastChild, time, way);
  });
}

function showSummary(status) {
  const { master, members, paused, counts, upcoming } = status;
  let state = "", verdict;
  if (!master) [state, verdict] = ["bad", "There is no master"];
  else if (!master.ticking) [state, verdict] = ["bad", `${master.id} is master, but makes no progress`];
  else if (paused) [state, verdict] = ["warn", "Everything is paused"];
  else if (master.successor) verdict = `${master.id} hands over to ${master.successor}`;
  else verdict = `${master.id} is master`;
  put($("verdict"), verdict);
  style($("summary"), state || (status.warnings.length ? "warn" : ""));
  const standbys = members.filter((m) => m.state !== "master").length;
  facts($("facts"), [
    master && ["since", "since ", master.since, "since"],
    ["standbys", standbys === 1 ? "1 standby" : standbys ? `${standbys} standbys` : "no standby"],
    ["entries", counts.entries === 1 ? "1 entry" : `${counts.entries.toLocaleString()} entries`],
    counts.paused && ["paused", `${counts.paused} paused`],
    counts.open && ["open", `${counts.open} with open runs`],
    upcoming.length && ["next", "next run ", upcoming[0].next_run_at, "until"],
  ]);
  document.title = `${verdict} – celery-zk-beat`;

  // What there is to say of the master comes first in the list.
  const grave = state === "bad" ? 1 : 0;
  sync($("warnings"), status.warnings, (text) => text, () => el("li", ""), (node, text) => {
    put(node, text);
    style(node, status.warnings.indexOf(text) < grave ? "bad" : "");
  });
}

function showBeats(status, here) {
  const row = (name) => [el("dt", "", name), el("dd", "")];
  sync($("beats"), status.members, (m) => m.id, (m) => {
    const card = el("li", `box ${colour(m.id)}`,
      el("h3", "", el("bdi", ""), el("span", "tag")), el("dl", ""));
    const rows = ["Host", "Running", "Clock", "Guard", "Schedule", "Release"].map(row);
    card.querySelector("dl").append(...rows.flat());
    card.values = rows.map(([, dd]) => dd);
    card.values[1].append(el("time", ""));
    return card;
  }, (card, m) => {
    const [host, running, clock, guard, schedule, release] = card.values;
    put(card.querySelector("bdi"), m.id);
    const leads = m.state === "master";
    put(card.querySelector(".tag"), leads ? `master, epoch ${status.master?.epoch ?? "?"}` : m.state);
    style(card.querySelector(".tag"), leads ? "tag good" : "tag");
    put(host, `${m.host}, pid ${m.pid}`);
    at(running.firstChild, m.since, "since");
    const off = m.clock_offset;
    put(clock, off === null ? "unknown" : Math.abs(off) < 0.1 ? "right, within 0.1 s"
      : `${length(off)} ${off > 0 ? "ahead" : "behind"}`);
    style(clock, Math.abs(off ?? 0) > 1 ? "warn-text" : "");
    // Why there is none is among the warnings.
    put(guard, m.guard === null ? "–" : m.guard === "on" ? "on" : "none");
    style(guard, m.guard === null || m.guard === "on" ? "" : "warn-text");
    const same = m.schedule === status.schedule;
    const digest = m.schedule?.slice(0, 8);
    put(schedule, !digest ? "unknown" : `${same ? "same as here" : "different from here"} (${digest})`);
    style(schedule, digest && !same ? "warn-text" : "");
    put(release, `${m.version ?? "unknown"}${m.id === here ? "; serves this page" : ""}`);
  });
  show($("no-beats"), !status.members.length);
}

/** A row of a table: an entry with what there is to say of it, and two times. */
function makeRow() {
  const name = el("bdi", "entry"), tag = el("span", "tag"), more = el("div", "more"), note = el("div", "note");
  const due = el("time", ""), last = el("td", "time");
  const row = el("tr", "", el("td", "", el("div", "title", name), more, note), el("td", "time", due), last);
  row.parts = { name, tag, more, note, due, last };
  return row;
}

function fillRow(row, entry, more) {
  const { name, more: line } = row.parts;
  put(name, entry);
  if (name.title !== entry) name.title = entry;
  facts(line, more);
}

function tag(row, text, kind) {
  const { name, tag: node } = row.parts;
  put(node, text);
  style(node, `tag ${kind}`);
  if (!text) node.remove();
  else if (!node.parentNode) name.after(node);
}

function rows(id, items, key, update, of = items.length) {
  const shown = expanded.has(id) ? items : items.slice(0, FEW);
  sync($(id), shown, key, makeRow, update);
  const button = $(`${id}-all`);
  if (!button) return;
  show(button, items.length > FEW);
  const all = of > items.length ? `${items.length} of ${of.toLocaleString()}` : `all ${items.length}`;
  put(button, expanded.has(id) ? "Show fewer" : `Show ${all}`);
  button.setAttribute("aria-expanded", expanded.has(id));
}

function lastTime(row, iso, way) {
  const { last } = row.parts;
  if (!last.firstChild) last.append(el("time", ""));
  at(last.firstChild, iso, way);
}

/** Adds the runs of an entry on the next day, which are asked for when they are wanted. */
function addDay(row) {
  const list = el("ul", "quiet"), box = el("details", "day", el("summary", "", "Next day"), list);
  box.addEventListener("toggle", () => { if (box.open) showDay(box, list); });
  row.parts.note.after(box);
  return box;
}

async function showDay(box, list) {
  let runs = null;
  try {
    const got = await fetch(`day.json?entry=${encodeURIComponent(box.entry)}`,
      { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (got.ok) runs = (await got.json()).runs;
  } catch { /* said below */ }
  const texts = !runs ? ["not available right now"] : !runs.length ? ["nothing"] : runs.map((run) => [
    clock(Date.parse(run.at)),
    run.local && `${run.local.slice(0, 16).replace("T", " ")} there`,
    run.clocks_change && `clocks change, ${run.clocks_change}`,
    run.skipped && `skipped: ${run.skipped}`,
  ].filter(Boolean).join(", "));
  sync(list, texts, (text) => text, () => el("li", ""), put);
}

const FAILED = ["failure", "lost"];

/** What is remembered of an entry's tracked runs, as facts. */
function howTheyEnded(tracked) {
  if (!tracked) return [];
  const { last, outcomes, runtime_median, runtime_longest } = tracked;
  const ended = Object.values(outcomes).reduce((sum, n) => sum + n, 0);
  return [
    last && ["last", `last: ${words(last)}, `, last.at, "clock"],
    ended > 0 && ["rate", `${outcomes.success ?? 0} of ${ended} succeeded`],
    runtime_median !== null && ["runtime", `${length(runtime_median)} each, at most ${length(runtime_longest)}`],
  ];
}

const words = (outcome) => (outcome.error ? `${outcome.state}, ${outcome.error}` : outcome.state);

function showEntries(status) {
  rows("upcoming", status.upcoming, (e) => e.name, (row, e) => {
    (row.day ??= addDay(row)).entry = e.name;
    fillRow(row, e.name, [["schedule", e.schedule ?? ""], e.task && e.task !== e.name && ["task", e.task],
      e.changed_at && ["version", `version ${e.version} by ${e.changed_by}, `, e.changed_at, "clock"],
      ...howTheyEnded(e.tracked)]);
    const last = e.tracked?.last;
    if (FAILED.includes(last?.state)) tag(row, last.state, "bad");
    else tag(row, e.source === "live" ? "live" : "", "");
    at(row.parts.due, e.next_run_at, "clock");
    lastTime(row, e.next_run_at, "until");
  }, status.counts.entries - status.counts.paused);
  show($("no-upcoming"), !status.upcoming.length);
  put($("no-upcoming"), !status.counts.entries ? "The schedule is empty."
    : status.paused ? "Everything is paused." : "Nothing is planned.");

  const opened = status.open_entries ?? [];
  rows("open", opened, (e) => e.name, (row, e) => {
    const { open, open_since, late } = e.tracked;
    fillRow(row, e.name, [open > 1 && ["open", `${open} runs, the oldest`], ...howTheyEnded(e.tracked)]);
    tag(row, late ? `late to ${late}` : "", "warn");
    at(row.parts.due, open_since, "clock");
    lastTime(row, open_since, "for");
  });
  show($("open-part"), opened.length > 0);
  const others = (status.counts.open ?? 0) - Math.min(FEW, opened.length);
  show($("open-more"), others > 0);
  put($("open-more"), `and ${others} more`);

  rows("paused", status.paused_entries, (e) => e.name, (row, e) => {
    fillRow(row, e.name, [["schedule", e.schedule ?? "not in this schedule"], e.paused_by && ["by", `by ${e.paused_by}`]]);
    at(row.parts.due, e.paused, "clock");
    lastTime(row, e.paused, "for");
  });
  show($("paused-part"), status.paused_entries.length > 0);
  const rest = status.counts.paused - Math.min(FEW, status.paused_entries.length);
  show($("paused-more"), rest > 0);
  put($("paused-more"), `and ${rest} more`);

  const read = Date.parse(status.read_at);
  const stuck = status.outbox.filter((run) => read - Date.parse(run.claimed) > 5000);
  rows("waiting", stuck, (run) => run.entry, (row, run) => {
    fillRow(row, run.entry, [["run", `run ${run.run}`], ["for", `for ${run.waits_for}`], ["epoch", `epoch ${run.epoch}`], run.extra && ["extra", "asked for"], run.error && ["error", run.error]]);
    at(row.parts.due, run.due, "clock");
    lastTime(row, run.claimed, "for");
  });
  show($("waiting-part"), stuck.length > 0);
}

function showRecent(status) {
  rows("recent", status.recent, (run) => `${run.run} ${run.due} ${run.entry}`, (row, run) => {
    const dropped = run.run !== null && run.note?.startsWith("dropped");
    const skipped = run.run === null;
    const outcome = run.outcome;
    fillRow(row, run.entry, [
      run.run !== null && ["run", `run ${run.run}`],
      ["by", run.by ?? "a master before those below"],
      ["epoch", `epoch ${run.epoch}`],
      outcome?.worker && ["worker", `on ${outcome.worker}`],
      outcome?.running_since && ["running", "running since ", outcome.running_since, "clock"],
      outcome?.runtime != null && ["runtime", `took ${length(outcome.runtime)}`],
      outcome?.error && ["error", outcome.error],
    ]);
    const idTitle = run.task_id ? `task ${run.task_id}` : "";
    if (row.parts.more.title !== idTitle) row.parts.more.title = idTitle;
    if (outcome && !dropped) {
      const late = outcome.late ? `, late to ${outcome.late}` : "";
      tag(row, outcome.state + late, FAILED.includes(outcome.state) ? "bad" : late ? "warn" : "");
    } else {
      tag(row, skipped ? "skipped" : dropped ? "dropped" : run.note === "asked for" ? run.note : "",
        dropped ? "bad" : skipped ? "warn" : "");
    }
    put(row.parts.note, run.note && run.note !== "asked for" ? run.note.replace(/^(skipped|dropped): /, "") : "");
    style(row, skipped || dropped ? "struck" : "");
    at(row.parts.due, run.due, "clock");
    const late = (Date.parse(run.at) - Date.parse(run.due)) / 1000;
    put(row.parts.last, skipped || dropped ? "–" : late < -0.0005 ? `−${length(late)}` : length(late));
    style(row.parts.last, skipped || dropped || late < 1 ? "time" : late < 10 ? "time warn-text" : "time bad-text");
  });
  show($("no-recent"), !status.recent.length);
}

// Who was master ----------------------------------------------------------------------------------

/** The terms, oldest first, in milliseconds; `gap`: how long there was no master after it. */
function termsOf(status) {
  const terms = status.masters.filter((t) => t.since).reverse().map((t) => ({
    ...t, from: Date.parse(t.since), to: t.until ? Date.parse(t.until) : null, gap: 0,
  }));
  const current = status.master?.epoch;
  terms.forEach((term, n) => {
    const next = terms[n + 1]?.from ?? null;
    if (term.to === null && (next !== null || term.epoch !== current)) {
      term.to = next ?? Date.parse(status.read_at);
      term.why ??= "its session ended";
    }
    if (next !== null) term.gap = Math.max(0, next - term.to);
    else if (term.to !== null) term.gap = now() - term.to;
  });
  return terms;
}

const crashed = (term) => term.to !== null && !/^(stopped|resigned)/.test(term.why ?? "");

function showMasters(status) {
  const terms = termsOf(status);
  const end = now();
  const oldest = terms.length ? terms[0].from : end;
  showSpans((end - oldest) / 1000, terms);
  const start = Math.max(end - span * 1000, oldest - Math.max(1000, (end - oldest) * 0.01));
  const shown = terms.filter((t) => (t.to ?? end) > start);
  const changes = Math.max(0, shown.filter((t) => t.from >= start).length - (shown[0] === terms[0] ? 1 : 0));
  const without = shown.reduce((sum, t) => sum + t.gap, 0) / 1000;
  const ended = shown.filter(crashed).length;
  put($("masters-text"), !terms.length ? "No master is remembered." : [
    changes === 1 ? "1 change of master" : `${changes} changes of master`,
    ` in ${roughly((end - start) / 1000)}`,
    without >= 0.001 ? `; ${length(without)} without one` : "",
    ended ? `; ${ended} did not hand over, and a standby waits for the session time-out` : "",
    ".",
  ].join(""));
  show($("chart"), shown.length > 0);
  chart(shown, start, end);

  put($("masters-list").querySelector("summary"), terms.length === 1 ? "As a list: the only one" : `As a list: the last ${terms.length}`);
  show($("masters-list"), terms.length > 0);
  sync($("masters"), terms.reverse(), (t) => t.epoch, () => {
    const row = el("tr", "", el("td", ""), el("td", "", el("bdi", "entry"), el("div", "more")),
      el("td", "time", el("time", "")), el("td", "time", el("time", "")));
    return row;
  }, (row, t) => {
    const [epoch, who, from, lasted] = row.children;
    put(epoch, t.epoch);
    put(who.firstChild, t.id);
    facts(who.lastChild, [
      ["host", `${t.host}, pid ${t.pid}`],
      t.to !== null && ["why", t.why ?? "ended"],
      t.gap >= 1 && ["gap", `then ${length(t.gap / 1000)} without a master`],
    ]);
    at(from.firstChild, t.since, "clock");
    if (t.to === null) at(lasted.firstChild, t.since, "for");
    else {
      lasted.firstChild.way = null;
      put(lasted.firstChild, length((t.to - t.from) / 1000));
    }
  });
}

function showSpans(known, terms) {
  const offered = SPANS.filter(([, s], n) => s === Infinity || s < known || (n && SPANS[n - 1][1] < known && s < known));
  if (span === null && terms.length) {
    const end = now();
    const enough = offered.find(([, s]) => terms.filter((t) => t.from > end - s * 1000).length >= 3);
    span = (enough ?? offered[offered.length - 1])[1];
  }
  show($("spans"), offered.length > 1);
  if (!offered.some(([, s]) => s === span)) span = Infinity;
  const box = $("spans");
  for (const [text, s] of offered) {
    if (Array.from(box.querySelectorAll("input")).some((input) => input.span === s)) continue;
    const input = el("input", "");
    Object.assign(input, { type: "radio", name: "span", span: s, checked: s === span });
    input.addEventListener("change", () => { span = s; showMasters(answer.status); });
    const label = el("label", "", input, text);
    const after = Array.from(box.querySelectorAll("label")).find((l) => l.firstChild.span > s);
    box.insertBefore(label, after ?? null);
  }
  for (const input of box.querySelectorAll("input")) {
    if ((input.span === span) !== input.checked) input.checked = input.span === span;
  }
}

function chart(terms, start, end) {
  const place = (t) => (100 * (Math.max(start, Math.min(t, end)) - start)) / (end - start);
  const bar = (from, to) => {
    const x = place(from), width = Math.max(0.35, place(to) - x);
    return { x: `${Math.min(x, 100 - width).toFixed(2)}%`, width: `${width.toFixed(2)}%` };
  };
  const ids = Array.from(new Set(terms.map((t) => t.id).reverse()));
  const own = ids.length > LANES ? ids.slice(0, LANES - 1) : ids;
  const lanes = own.sort().map((id) => ({ key: `beat ${id}`, name: id, className: colour(id), terms: terms.filter((t) => t.id === id) }));
  if (own.length < ids.length) {
    const others = terms.filter((t) => !own.includes(t.id));
    lanes.push({ key: "others", name: `${ids.length - own.length} others`, className: "", terms: others });
  }
  const gaps = terms.filter((t) => t.gap > 0 || crashed(t));
  if (gaps.length) lanes.push({ key: "none", name: "no master", className: "none", terms: [], gaps });
  lanes.push({ key: "axis", name: "", className: "axis", terms: [], ticks: ticks(start, end) });

  sync($("chart"), lanes, (lane) => lane.key,
    () => el("div", "", el("bdi", "name"), svg("svg")),
    (node, lane) => {
      style(node, `lane ${lane.className}`);
      put(node.firstChild, lane.name);
      if (node.firstChild.title !== lane.name) node.firstChild.title = lane.name;
      const bars = [
        ...lane.terms.map((t) => ({
          key: t.epoch, tag: "rect", className: lane.className || colour(t.id), ...bar(t.from, t.to ?? end),
          title: `epoch ${t.epoch}: ${t.id}, ${clock(t.from)} to ${t.to === null ? "now" : `${clock(t.to)}, ${t.why}`}`,
        })),
        ...(lane.gaps ?? []).map((t) => ({
          key: t.epoch, tag: "rect", className: "", ...bar(t.to, t.to + t.gap),
          title: `after epoch ${t.epoch}, ${clock(t.to)}: ${t.why}${t.gap ? `; ${length(t.gap / 1000)} without a master` : ""}`,
        })),
        ...(lane.ticks ?? []).map((tick) => ({ key: tick.at, tag: "text", x: `${place(tick.at).toFixed(2)}%`, text: tick.text })),
      ];
      sync(node.lastChild, bars, (b) => String(b.key), (b) => {
        const shape = svg(b.tag, b.tag === "rect" ? { y: "0", height: "100%" } : { y: "14", "text-anchor": "middle" });
        if (b.tag === "rect") shape.append(svg("title"));
        return shape;
      }, (shape, b) => {
        set(shape, b.tag === "rect" ? { x: b.x, width: b.width, class: b.className } : { x: b.x });
        put(b.tag === "rect" ? shape.firstChild : shape, b.title ?? b.text);
      });
    });
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
  86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];

/** Four or so round instants between two, in local time. */
function ticks(start, end) {
  const zone = new Date(end).getTimezoneOffset() * 60e3;
  const step = 1000 * (STEPS.find((s) => (end - start) / 1000 / s <= 5) ?? STEPS[STEPS.length - 1]);
  const format = step < 60e3 ? clockFormat : step < 86400e3 ? minuteFormat : step < 7776000e3 ? dayFormat : yearFormat;
  const found = [];
  for (let t = Math.ceil((start - zone) / step) * step + zone; t <= end; t += step) {
    const x = (t - start) / (end - start);
    if (x > 0.05 && x < 0.95) found.push({ at: t, text: format.format(new Date(t)) });
  }
  return found;
}

// Asking ------------------------------------------------------------------------------------------

/** What keeps this page from being of these seconds, or null. */
function trouble() {
  if (failed) return answer ? `The beat ${answer.beat.id} does not answer.` : "This beat does not answer.";
  const { error, age, beat, status } = answer;
  if (!beat.answers) return `${beat.id} hangs, or is stopped.`;
  if (!beat.connected) return `${beat.id} has no connection to ZooKeeper.`;
  if (error && !(status && age < FRESH)) return error[0].toUpperCase() + error.slice(1);
  return null;
}

function showTrouble() {
  const what = answer || failed ? trouble() : null;
  document.body.classList.toggle("stale", what !== null);
  if (what) put($("trouble-what"), what);
  show($("trouble"), what !== null);
  const old = answer?.status ? answer.age + (performance.now() - answeredAt) / 1000 : null;
  put($("trouble-age"), old === null ? "Nothing is known yet." : `What is shown is as of ${roughly(old)} ago.`);
  put($("live"), what ? (failed ? "no answer" : "out of date") : answer ? "live" : "");
  if (what) document.title = `? – ${what}`;
}

function render() {
  if (answer) {
    const { status, beat } = answer;
    put($("served"), `Served by ${beat.id}, celery-zk-beat ${beat.version}.`);
    show($("main"), status !== null);
    if (status) {
      put($("where"), `${status.app ? `${status.app} at ` : ""}${status.hosts}, root ${status.root}`);
      status.members.map((m) => m.id).sort().forEach(colour);
      showSummary(status);
      showBeats(status, beat.id);
      showMasters(status);
      showEntries(status);
      showRecent(status);
    }
  }
  showTrouble();
}

let timer = 0, asking = false;

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const response = await fetch("page.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    answer = await response.json();
    answeredAt = performance.now();
    failed = null;
    document.body.classList.toggle("stale", trouble() !== null);
  } catch (error) {
    failed = error;
  }
  try {
    render();
  } finally {
    asking = false;
    timer = setTimeout(ask, document.hidden ? EVERY_HIDDEN : EVERY);
  }
}

for (const id of ["upcoming", "recent"]) {
  $(`${id}-all`).addEventListener("click", () => {
    if (!expanded.delete(id)) expanded.add(id);
    render();
  });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
setInterval(() => { tick(); showTrouble(); }, 1000);
ask();
