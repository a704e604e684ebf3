// The page of `counterfactory review`: shows one row at a time and sends verdicts.
(() => {
  "use strict";
  const $ = id => document.getElementById(id);
  const KEYS = { v: "valid", s: "spurious", u: "unrealistic" };
  const NEAR = 7; // rows on each side in the strip
  const SHOWN = 4000; // milliseconds for which a message stands
  const LARGE = 300; // pixels from which a picture is smoothed
  let state = null, reviewer = "", order = [], place = 0, row = null, busy = false;
  let blind = false, asked = 0, fading = 0;
  const known = new Map(); // rows by their place in the run

  // ---- talking to the server
  async function ask(path, body) {
    const options = body
      ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }
      : {};
    let reply;
    try {
      reply = await fetch(path, options);
    } catch {
      throw new Error("the server does not answer: start `counterfactory review` again");
    }
    if (!reply.ok) throw new Error(await reply.text());
    return reply.json();
  }

  const key = () => [...crypto.getRandomValues(new Uint8Array(12))].map(b => b.toString(16).padStart(2, "0")).join("");

  function say(text, bad = false) {
    $("status").textContent = text;
    $("status").classList.toggle("bad", bad);
    clearTimeout(fading);
    if (text && !bad) fading = setTimeout(() => say(""), SHOWN);
  }

  // ---- making elements; text is always text
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function options(select, entries) {
    $("filters").elements[select].replaceChildren(
      ...entries.map(([value, name]) => new Option(name, value)));
  }

  // ---- filters
  function fill() {
    options("verdict", [["", "all rows"], ["none", "not yet by me"], ["any", "reviewed by me"],
      ["valid", "valid, by me"], ["spurious", "spurious, by me"],
      ["unrealistic", "unrealistic, by me"], ["differ", "reviewers differ"]]);
    options("direction", [["", "all"], ...state.directions.map(d => [d.value, `${d.name} (${d.n})`])]);
    options("flipped", [["", "all"], ["yes", "flipped"], ["no", "not flipped"]]);
    options("label", [["", "all"], ...state.labels.map(l => [l.value, l.name])]);
    options("changed", [["", "any or none"], ...state.attributes.map(a => [a.value, `${a.name} (${a.changed})`])]);
    options("group", [["", "all"], ...state.attributes.flatMap(a =>
      [[`has:${a.value}`, `with ${a.name}`], [`lacks:${a.value}`, `without ${a.name}`]])]);
    options("judge", [["", "any answer or none"], ["target", "says target"], ["source", "says source"],
      ["unsure", "not sure"], ...(state.oracle ? [["oracle", "disagrees with the oracle"]] : []),
      ["mine", "disagrees with me"]]);
    options("sort", state.sorts.map(s => [s.value, s.name]));
    const there = { labels: state.labels.length > 0, attributes: state.attributes.length > 0,
      judge: state.judge, core: state.core };
    for (const part of document.querySelectorAll("[data-needs]")) part.hidden = !there[part.dataset.needs];
  }

  function filters() {
    const found = new URLSearchParams();
    for (const [name, value] of new FormData($("filters"))) {
      if (value && !(name === "sort" && value === "stored" && !$("descending").checked)) found.set(name, value);
    }
    if ($("descending").checked) found.set("sort", `-${found.get("sort") || "stored"}`);
    return found;
  }

  function restore() {
    const given = new URLSearchParams(location.search);
    for (const field of $("filters").elements) if (field.name) field.value = field.name === "sort" ? "stored" : "";
    $("descending").checked = (given.get("sort") || "").startsWith("-");
    for (const [name, value] of given) {
      const field = $("filters").elements[name];
      if (field) field.value = name === "sort" ? value.replace(/^-/, "") : value;
    }
    return given.get("row") || "";
  }

  function remember(push = false) {
    const query = filters();
    const count = [...query.keys()].filter(name => name !== "sort").length;
    $("active").textContent = count ? `${count} on` : "";
    if (row) query.set("row", row.cf_id);
    history[push ? "pushState" : "replaceState"](null, "", query.size ? `/?${query}` : "/");
  }

  async function search(wanted = "") {
    const query = filters();
    query.set("reviewer", reviewer);
    if (wanted) query.set("row", wanted);
    const mine = ++asked;
    const found = await ask(`/api/list?${query}`);
    if (mine !== asked) return; // a later choice is on its way
    order = found.rows;
    known.clear();
    progress(found);
    place = 0;
    if (found.row !== null) {
      place = order.indexOf(found.row);
      if (place < 0) { // a link leads to a row that the filters leave out
        order = [found.row, ...order];
        place = 0;
      }
    }
    await show();
  }

  function progress(counts) {
    if (counts.total === undefined) return;
    $("progress").max = counts.total || 1;
    $("progress").value = counts.mine;
    $("progress-text").textContent = `${counts.mine.toLocaleString("en")} of ${counts.total.toLocaleString("en")} by you`;
  }

  // ---- one row
  async function load(places) {
    const missing = places.filter(at => at !== undefined && !known.has(at));
    if (!missing.length) return;
    const query = new URLSearchParams({ at: missing.join(","), reviewer });
    for (const one of (await ask(`/api/rows?${query}`)).rows) known.set(one.at, one);
  }

  const near = () => order.slice(Math.max(0, place - NEAR), place + NEAR + 1);
  const source = (one, name) => `/view/${name}/${encodeURIComponent(one.cf_id)}?v=${state.version}`;

  async function show() {
    const none = !order.length;
    $("row").hidden = $("decide").hidden = $("strip").hidden = none;
    $("nothing").hidden = !none;
    if (none) {
      row = null;
      $("nothing").textContent = "No row passes these filters.";
      $("place").textContent = "";
      remember();
      return;
    }
    const at = order[place];
    await load(near());
    if (at !== order[place]) return;
    row = known.get(at);
    remember();
    draw();
    for (const ahead of order.slice(place + 1, place + 3)) {
      const one = known.get(ahead);
      if (one?.flipped) for (const view of state.views) new Image().src = source(one, view.name);
    }
  }

  function draw() {
    const arrow = make("span", { "aria-label": "to" }, " → ");
    $("direction").replaceChildren(row.source, arrow, row.target);
    $("where").textContent = `row ${row.id}${row.k ? `, answer ${row.k}` : ""}`;
    $("place").textContent = `${(place + 1).toLocaleString("en")} of ${order.length.toLocaleString("en")}`;
    $("previous").disabled = place === 0;
    $("next").disabled = place === order.length - 1;
    $("views").replaceChildren(...state.views.map(figure));
    $("facts").replaceChildren(...facts());
    $("means-valid").textContent = `it shows “${row.target}”`;
    $("means-spurious").textContent = `it does not show “${row.target}”`;
    for (const button of document.querySelectorAll("[data-verdict]")) {
      button.setAttribute("aria-pressed", String(row.mine?.verdict === button.dataset.verdict));
    }
    if (document.activeElement !== $("note")) $("note").value = row.mine?.note || "";
    if ($("closer").open) pair();
    strip();
  }

  function pair() {
    const both = state.views.filter(view => view.name === "original" || view.name === "counterfactual");
    $("pair").replaceChildren(...both.map(figure));
    if (!$("closer").open) $("closer").showModal();
  }

  function figure(view) {
    const image = make("img", { alt: `${view.caption}, ${view.name === "original" ? row.source : row.target} asked for`, draggable: "false" });
    if (state.size) [image.width, image.height] = state.size; // keeps the place until it is loaded
    if (view.name === "original") image.alt = `original, classified as ${row.source}`;
    const box = make("figure", { "data-view": view.name }, image, make("figcaption", {}, view.caption));
    image.addEventListener("load", () => image.classList.toggle("large", image.naturalWidth >= LARGE));
    image.addEventListener("error", () => image.replaceWith(make("div", { class: "lacking" }, lacking(view.name))));
    if (!row.flipped && (view.name === "core" || view.name === "where")) {
      image.replaceWith(make("div", { class: "lacking" }, lacking(view.name)));
    } else {
      image.src = source(row, view.name);
    }
    return box;
  }

  function lacking(name) {
    if (!row.flipped && (name === "core" || name === "where")) return "none: it did not flip";
    return name === "core" ? "no core" : "none";
  }

  function facts() {
    const found = [];
    const add = (name, ...parts) => found.push(make("div", {}, make("dt", {}, name), make("dd", {}, ...parts)));
    add("Probability of the target", row.p_before, " → ", make("b", {}, row.p_after),
      row.flipped ? "" : make("span", { class: "bad" }, ` not flipped: ${row.reason || "no reason given"}`));
    if (row.label !== null) add("True class of the original", row.label,
      row.label === row.source ? "" : make("span", { class: "bad" }, ` (classified as ${row.source})`));
    if (row.core) {
      add("Core", row.core.kept, row.core.share ? `, ${row.core.share} of the change` : "", `, p\u00a0${row.core.p}`,
        row.core.doubted ? "; the second classifier believes the whole answer alone" : "");
    }
    if (row.second !== null && row.flipped) add("Second classifier", row.second ? "agrees" : "disagrees");
    const hidden = blind && !row.mine;
    const shield = () => make("span", { class: "hiding" }, "hidden until you decide");
    if (row.attributes !== null) {
      if (hidden) add("Attributes that the oracle sees changed", shield());
      else add("Attributes that the oracle sees changed", row.attributes.length ? chips(row.attributes) : "none",
        row.oracle ? make("span", { class: "quiet small" }, `it sees ${row.oracle}`) : "");
    }
    if (row.judge) {
      if (hidden) add("Judge", shield());
      else add(`Judge${state.judges.length ? `: ${state.judges.join(", ")}` : ""}`,
        row.judge.scores.map(s => `${s.name} ${s.score}`).join(", "),
        make("span", { class: "quiet small" }, row.judge.says ? ` by validity: ${row.judge.says}` : " by validity: not sure"));
    }
    const others = Object.entries(row.others);
    if (others.length) add("Other reviewers", others.map(([who, verdict]) => `${who}: ${verdict}`).join(", "));
    return found;
  }

  function chips(attributes) {
    return make("ul", { class: "chips" }, ...attributes.map(one =>
      make("li", { class: one.causal ? "causal" : "spurious" },
        make("span", { "aria-hidden": "true" }, one.gained ? "+ " : "− "),
        make("span", { class: "sr" }, one.gained ? "gained " : "lost "), one.name)));
  }

  function strip() {
    $("strip").replaceChildren(...near().map((at, i) => {
      const one = known.get(at);
      const where = Math.max(0, place - NEAR) + i;
      const image = make("img", { src: source(one, "counterfactual"), alt: "", loading: "lazy" });
      const button = make("button", { type: "button", "aria-current": String(where === place),
        "aria-label": `row ${where + 1}: ${one.source} to ${one.target}${one.mine ? `, ${one.mine.verdict}` : ""}` }, image);
      if (one.mine) button.append(make("i", { class: one.mine.verdict }));
      button.addEventListener("click", () => go(where - place));
      return make("li", {}, button);
    }));
    const now = $("strip").querySelector('[aria-current="true"]');
    if (now) $("strip").scrollLeft = now.offsetLeft - $("strip").offsetLeft - $("strip").clientWidth / 2 + 28;
  }

  async function go(step) {
    const there = Math.min(Math.max(place + step, 0), order.length - 1);
    if (there === place || !order.length) return;
    place = there;
    say("");
    await attempt(show);
  }

  async function attempt(action) {
    try {
      await action();
    } catch (error) {
      say(error.message, true);
    }
  }

  // ---- verdicts: the next row is shown when this one is stored
  async function decide(verdict) {
    if (busy || !row) return;
    if (!reviewer) return name();
    busy = true;
    const one = row, last = place === order.length - 1;
    const note = $("note").value;
    // the same key if the same must be sent again: its answer may have been lost
    const again = one.sent && one.sent.verdict === verdict && one.sent.note === note;
    if (!again) one.sent = { reviewer, cf_id: one.cf_id, verdict, note, key: key() };
    say("saving …");
    try {
      const reply = await ask("/api/verdict", one.sent);
      known.set(one.at, reply.row);
      progress(reply);
      $("note").blur();
      say(last ? `${verdict}: stored. This was the last row of the list.` : `${verdict}: stored`);
      if (last) {
        row = reply.row;
        draw();
      } else {
        place += 1;
        await show();
      }
    } catch (error) {
      say(error.message, true);
    } finally {
      busy = false;
    }
  }

  async function undo() {
    if (busy || !reviewer) return;
    busy = true;
    try {
      const reply = await ask("/api/undo", { reviewer, key: key() });
      if (!reply.row) return say("nothing to undo");
      known.set(reply.row.at, reply.row);
      progress(reply);
      const there = order.indexOf(reply.row.at);
      if (there < 0) order.splice(place, 0, reply.row.at);
      else place = there;
      say(reply.row.mine ? `undone: it is ${reply.row.mine.verdict} again` : "undone: the row has no verdict");
      await show();
    } catch (error) {
      say(error.message, true);
    } finally {
      busy = false;
    }
  }

  // ---- who reviews
  function name() {
    if (state.fixed) return;
    $("name").value = reviewer || state.suggested;
    $("ask-error").textContent = "";
    if (!$("ask").open) $("ask").showModal();
    $("name").select();
  }

  function called(who) {
    reviewer = who;
    $("who").textContent = who;
    $("who").disabled = state.fixed;
  }

  $("ask-form").addEventListener("submit", async event => {
    event.preventDefault();
    try {
      const reply = await ask("/api/reviewer", { reviewer: $("name").value });
      called(reply.reviewer);
      $("ask").close();
      await search(row ? row.cf_id : restore());
    } catch (error) {
      $("ask-error").textContent = error.message;
    }
  });

  async function summary() {
    $("summary-lines").replaceChildren(make("li", {}, "…"));
    $("summary").showModal();
    try {
      const lines = (await ask("/api/summary")).lines;
      $("summary-lines").replaceChildren(...lines.map(line => make("li", {}, line.trim().replace(/^review: /, ""))));
    } catch (error) {
      $("summary-lines").replaceChildren(make("li", { class: "bad" }, error.message));
    }
  }

  function hide(on) {
    blind = on;
    $("blind").setAttribute("aria-pressed", String(on));
    try { localStorage.setItem("blind", on ? "1" : ""); } catch { /* a browser without storage */ }
    if (row) draw();
  }

  function swap(on) {
    const box = document.querySelector('figure[data-view="counterfactual"]');
    const image = box && box.querySelector("img");
    if (!image || box.classList.contains("swapped") === on) return;
    box.classList.toggle("swapped", on);
    image.src = source(row, on ? "original" : "counterfactual");
    box.querySelector("figcaption").textContent = on ? "original" : "counterfactual";
  }

  // ---- events
  $("filters").addEventListener("change", () => attempt(async () => { say(""); row = null; remember(true); await search(); }));
  $("filters").addEventListener("submit", event => event.preventDefault());
  $("clear").addEventListener("click", () => attempt(async () => {
    $("filters").reset();
    row = null;
    remember(true);
    await search();
  }));
  addEventListener("popstate", () => attempt(async () => { row = null; await search(restore()); }));
  $("previous").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  $("enlarge").addEventListener("click", pair);
  $("views").addEventListener("click", event => { if (event.target.closest("img")) pair(); });
  $("undo").addEventListener("click", undo);
  $("blind").addEventListener("click", () => hide(!blind));
  $("who").addEventListener("click", name);
  $("open-summary").addEventListener("click", summary);
  $("open-help").addEventListener("click", () => $("help").showModal());
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.addEventListener("click", () => decide(button.dataset.verdict));
  }
  for (const box of document.querySelectorAll("dialog")) {
    box.addEventListener("click", event => { if (event.target === box && box.id !== "ask") box.close(); });
  }
  $("ask").addEventListener("cancel", event => { if (!reviewer) event.preventDefault(); });
  $("note").addEventListener("keydown", event => {
    if (event.key === "Enter") {
      event.preventDefault();
      $("note").blur();
      if (row?.mine && $("note").value !== (row.mine.note || "")) decide(row.mine.verdict);
    } else if (event.key === "Escape") {
      $("note").value = row?.mine?.note || "";
      $("note").blur();
    }
  });
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const open = document.querySelector("dialog[open]");
    if (open && open.id !== "closer") return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur(); // back to the keys
      return;
    }
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (name === " ") {
      if (event.target.closest("button, summary, a")) return;
      event.preventDefault();
      return swap(true);
    }
    if (event.repeat && !name.startsWith("Arrow")) return;
    const actions = {
      ArrowLeft: () => go(-1), ArrowRight: () => go(1), z: undo, b: () => hide(!blind),
      l: () => (open ? open.close() : row && pair()),
    };
    const under = { // what an open dialog would hide
      n: () => $("note").focus(), "?": () => $("help").showModal(),
      f: () => { $("box").open = true; $("filters").elements.verdict.focus(); },
    };
    if (!open) Object.assign(actions, under);
    const action = KEYS[name] ? () => decide(KEYS[name]) : actions[name];
    if (!action) return;
    event.preventDefault();
    action();
  });
  addEventListener("keyup", event => { if (event.key === " ") swap(false); });
  addEventListener("blur", () => swap(false));

  attempt(async () => {
    try { blind = localStorage.getItem("blind") === "1"; } catch { /* a browser without storage */ }
    $("blind").setAttribute("aria-pressed", String(blind));
    $("box").open = matchMedia("(min-width: 901px)").matches;
    state = await ask("/api/state");
    fill();
    const wanted = restore();
    called(state.reviewer || "");
    await search(wanted);
    if (!reviewer) name();
  });
})();
