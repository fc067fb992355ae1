// Looking through samples and pairs. Texts of models and data sets are only ever put in as text, never as markup.
(() => {
  const source = document.getElementById("index");
  if (!source) return;
  const index = JSON.parse(source.textContent);
  const at = (id) => document.getElementById(id);
  const AT_ONCE = 20;
  const REASONS = {
    used: "used", unused: "fit, others were taken", duplicate: "duplicate", truncated: "cut off", abstain: "judge abstained",
    error: "judge failed", over_cap: "over a cap", tied: "tied", prompt_all_wrong: "prompt all wrong",
    prompt_all_correct: "prompt all right",
  };
  const named = (reason) => REASONS[reason] || reason.replaceAll("_", " ");

  // Symbols for what would be unseen or turn the direction of text, as on the terminal (loop/format.py).
  const visible = (text) => String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421")
    .replace(/[\u0080-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
      (one) => `<U+${one.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}>`);

  const make = (tag, classes, text) => {
    const node = document.createElement(tag);
    if (classes) node.className = classes;
    if (text !== undefined) node.textContent = visible(text);
    return node;
  };

  // ---- pages: inside this file, or scripts in a folder next to it ----
  const loaded = new Map(), waiting = new Map(), KEPT = 16; // pages in memory; the oldest goes first
  window.prefloopPage = (name, page) => {
    loaded.set(name, page);
    if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
    if (waiting.has(name)) waiting.get(name)(page);
    waiting.delete(name);
  };
  const load = (name) => {
    if (loaded.has(name)) return Promise.resolve(loaded.get(name));
    const inside = at(`page-${name}`);
    if (inside) {
      loaded.set(name, JSON.parse(inside.textContent));
      return Promise.resolve(loaded.get(name));
    }
    return new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `${index.folder}/data-${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => reject(new Error(`${index.folder}/data-${name}.js is missing; it belongs next to the report`));
      document.body.append(script);
    });
  };

  // ---- what a response counts as ----
  const outcome = (one) => {
    if (one.k === undefined) return "not judged";
    if (one.k !== "score") return one.k;
    return one.s >= index.correct_at ? "right" : "wrong";
  };
  const roles = (prompt, place) => {
    const found = [];
    if (prompt.pairs.some(([chosen]) => chosen === place)) found.push("chosen");
    if (prompt.pairs.some(([, rejected]) => rejected === place)) found.push("rejected");
    return found;
  };

  // ---- filters ----
  const books = (set) => index.books.filter((book) => book.set === set);
  const fill = (select, options, chosen) => {
    select.replaceChildren(...options.map(([value, text]) => Object.assign(make("option", "", text), { value })));
    if (options.some(([value]) => value === chosen)) select.value = chosen;
  };
  const sets = ["test", "gate", "train"].filter((set) => books(set).length);
  fill(at("f-set"), sets.map((set) => [set, set]), "test");
  const fillIterations = () => {
    const known = books(at("f-set").value);
    const last = String(known[known.length - 1].iteration);
    fill(at("f-iteration"), known.map((b) => [String(b.iteration), b.iteration ? String(b.iteration) : "0 (base model)"]),
      at("f-iteration").value || last);
    at("f-reason").disabled = at("f-set").value !== "train";
  };
  const fillReasons = (page) => {
    const known = new Set([...at("f-reason").options].map((option) => option.value));
    for (const prompt of page.prompts) for (const one of prompt.r) {
      if (one.u && !known.has(one.u)) {
        known.add(one.u);
        at("f-reason").append(Object.assign(make("option", "", named(one.u)), { value: one.u }));
      }
    }
  };
  const wanted = () => ({
    set: at("f-set").value, iteration: Number(at("f-iteration").value), outcome: at("f-outcome").value,
    reason: at("f-reason").disabled ? "" : at("f-reason").value, text: at("f-text").value.trim().toLowerCase(),
    shortest: Number(at("f-shortest").value || 0), longest: Number(at("f-longest").value || Infinity),
  });
  const fits = (want, prompt, one, place) => {
    if (want.outcome && outcome(one) !== want.outcome) return false;
    if (want.reason && one.u !== want.reason && !roles(prompt, place).includes(want.reason)) return false;
    if (one.p.length < want.shortest || one.p.length > want.longest) return false;
    return !want.text || prompt.q.toLowerCase().includes(want.text) || `${one.h || ""}${one.x}`.toLowerCase().includes(want.text);
  };

  // ---- one response ----
  const tokenView = (one, page) => {
    const box = make("p", "text tokens");
    one.p.forEach((token, place) => {
      const nats = one.l === undefined || one.l[place] == null ? null : one.l[place] / 100;
      const span = make("span", "", page.tokens[token]);
      span.title = nats === null ? `token ${token}` : `token ${token}: log-prob ${(-nats).toFixed(2)}, p ${Math.exp(-nats).toFixed(3)}`;
      if (nats !== null) span.style.backgroundColor = `color-mix(in srgb, var(--t4) ${Math.min(70, Math.round(nats * 18))}%, transparent)`;
      box.append(span);
    });
    return box;
  };
  const says = (one) => {
    const line = make("p", "who"), label = outcome(one);
    line.append(make("span", `chip ${label === "right" ? "yes" : label === "wrong" || label === "error" ? "no" : "open"}`, label));
    const parts = [one.k === "score" ? `score ${one.s}` : "", one.g ? "greedy" : "", `${one.p.length} tokens`, one.c ? "cut off" : "",
      one.e !== undefined ? `answer ${one.e}` : "", one.f === false ? "not well formed" : "", one.u ? named(one.u) : "", one.w || ""];
    line.append(visible(` ${parts.filter(Boolean).join(" · ")}`));
    return line;
  };
  const responseView = (prompt, one, place, page) => {
    const box = make("div", "response");
    const line = says(one);
    line.prepend(`${place} `);
    for (const role of roles(prompt, place)) line.append(" ", make("span", `chip ${role === "chosen" ? "yes" : "no"}`, role));
    const text = make("p", "text", one.x), button = make("button", "tokens-button", "tokens");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    if (one.h) text.prepend(make("span", "thought", one.h));
    let shown = text;
    button.addEventListener("click", () => {
      const next = shown === text ? tokenView(one, page) : text;
      shown.replaceWith(next);
      shown = next;
      button.setAttribute("aria-pressed", String(shown !== text));
    });
    line.append(" ", button);
    box.append(line, text);
    return box;
  };
  const promptView = (prompt, places, page, want, pageNumber) => {
    const card = make("article", "card");
    card.append(make("p", "prompt", prompt.q));
    const facts = [`id ${prompt.id}`, prompt.t === null ? "" : `target ${prompt.t}`];
    if (prompt.pairs.length) facts.push(`pairs (chosen > rejected): ${prompt.pairs.map(([c, r]) => `${c < 0 ? "gold" : c} > ${r < 0 ? "bad" : r}`).join(", ")}`);
    card.append(make("p", "who", facts.filter(Boolean).join(" · ")));
    for (const place of places) card.append(responseView(prompt, prompt.r[place], place, page));
    const button = make("button", "compare-button", "compare iterations");
    button.type = "button";
    button.addEventListener("click", () => sideBySide(prompt, want.set, pageNumber));
    if (books(want.set).length > 1) card.append(button);
    return card;
  };

  // ---- paging ----
  let cursor = null;
  const search = () => {
    const want = wanted();
    const book = books(want.set).find((one) => one.iteration === want.iteration);
    cursor = { want, book, page: 0, prompt: 0, shown: 0, responses: 0 };
    at("results").replaceChildren();
    return proceed(cursor);
  };
  const proceed = async (state) => {
    const { want, book } = state, until = state.shown + AT_ONCE;
    at("more").hidden = true;
    try {
      for (; state.page < book.pages.length && state.shown < until; state.page += 1, state.prompt = 0) {
        at("found").textContent = `looking at page ${state.page + 1} of ${book.pages.length} …`;
        const page = await load(book.pages[state.page]);
        if (cursor !== state) return;
        fillReasons(page);
        for (; state.prompt < page.prompts.length && state.shown < until; state.prompt += 1) show(state, page, want);
        if (state.prompt < page.prompts.length) break;
      }
    } catch (error) {
      at("found").textContent = error.message;
      return;
    }
    const all = state.page >= book.pages.length;
    at("more").hidden = all;
    const count = `${state.responses} responses to ${state.shown} prompts fit`;
    at("found").textContent = all ? `${count}, of ${book.responses} to ${book.prompts}.` : `${count} so far.`;
  };
  const show = (state, page, want) => {
    const prompt = page.prompts[state.prompt];
    const places = [...prompt.r.keys()].filter((place) => fits(want, prompt, prompt.r[place], place));
    if (!places.length) return;
    state.shown += 1;
    state.responses += places.length;
    at("results").append(promptView(prompt, places, page, want, state.page));
  };

  // ---- the same prompt across iterations ----
  const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s]/gu) || [];
  const same = (a, b) => { // which words of b are in a longest common subsequence with a
    if (a.length * b.length > 1e6) return null;
    const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) {
      table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
    const kept = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { kept.add(j); i += 1; j += 1; } else if (table[i + 1][j] >= table[i][j + 1]) i += 1; else j += 1;
    }
    return kept;
  };
  const marked = (before, text) => {
    const box = make("p", "text"), now = words(text), kept = before === null ? null : same(words(before), now);
    now.forEach((word, place) => box.append(kept && !kept.has(place) ? make("ins", "", word) : visible(word)));
    return box;
  };
  const sideBySide = async (prompt, set, number) => {
    const columns = make("div", "columns");
    at("side-title").textContent = visible(prompt.q);
    at("side-body").replaceChildren(make("p", "who", prompt.t === null ? "" : `target ${prompt.t}`), columns);
    at("side").showModal();
    let before = [];
    for (const book of books(set)) {
      if (number >= book.pages.length) continue;
      const page = await load(book.pages[number]);
      const found = page.prompts.find((one) => one.id === prompt.id);
      if (!found) continue;
      const box = make("div");
      box.append(make("h3", "", book.iteration ? `iteration ${book.iteration}` : "base model"));
      found.r.forEach((one, place) => box.append(says(one), marked(before[place] === undefined ? null : before[place], one.x)));
      before = found.r.map((one) => one.x);
      columns.append(box);
    }
    if (columns.childElementCount < 2) columns.append(make("p", "fine", "No other iteration answered this prompt."));
  };

  at("f-set").addEventListener("change", fillIterations);
  at("filters").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  for (const id of ["f-set", "f-iteration", "f-outcome", "f-reason"]) at(id).addEventListener("change", search);
  at("more").addEventListener("click", () => proceed(cursor));
  fillIterations();
  search();
})();
