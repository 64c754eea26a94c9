"use strict";
// Runs a page's script on a document that is just large enough for it, and prints what the page shows as JSON: how much
// is drawn in each section, and how many samples each filter leaves. `node page.js page.html`; used by tests/run.rs.
const html = require("fs").readFileSync(process.argv[2], "utf8");

class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, hidden: false, textContent: "", className: "" });
  }
  append(child) {
    this.children.push(child);
  }
  replaceChildren() {
    this.children = [];
    this.given = undefined;
  }
  setAttribute(name, value) {
    if (/NaN|undefined|null/.test(`${value}`)) throw new Error(`${this.tag}: ${name} is ${value}`);
    this.attributes[name] = value;
  }
  addEventListener(name, heard) {
    this.listeners[name] = heard;
  }
  // As a browser has it: a list shows its first option until another is chosen.
  get value() {
    return this.given ?? (this.children.length ? this.children[0].value : "");
  }
  set value(value) {
    this.given = value;
  }
  all(fits) {
    return this.children.flatMap((child) => [...(fits(child) ? [child] : []), ...child.all(fits)]);
  }
}

const nodes = {};
global.document = {
  getElementById: (id) => (nodes[id] ??= new Node(id)),
  createElement: (tag) => new Node(tag),
  createElementNS: (_, tag) => new Node(tag),
};
const byId = document.getElementById;
const [data, script] = [...html.matchAll(/<script[^>]*>([\s\S]*?)<\/script>/g)].map((found) => found[1]);
byId("data").textContent = data;
byId("show").value = "all";
byId("find").value = "";
new Function(script)();

const count = (id, tag) => byId(id).all((node) => node.tag === tag).length;
const left = (id, value) => {
  byId(id).value = value;
  byId(id).listeners.input();
  return Number(byId("place").textContent.match(/of (\d+)/)?.[1] ?? 0);
};
const shows = [...html.matchAll(/<option value="([a-z-]+)"/g)].map((found) => found[1]);
const shown = Object.fromEntries(shows.map((show) => [show, left("show", show)]));
left("show", "all");
console.log(JSON.stringify({
  title: byId("title").textContent,
  rows: count("table", "tr"),
  frontier: [count("frontier", "svg"), count("frontier", "circle")],
  curves: [count("curves", "svg"), count("curves", "circle")],
  shown,
  beside: byId("samples").all((node) => node.className === "sides two").length,
  alone: left("right", "none") && byId("samples").all((node) => node.className === "sides").length,
  found: left("find", "BOOM"),
}));
