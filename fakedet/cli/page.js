'use strict';
// The page of `fakedet serve`: files are sent one by one to v1/predict, and every file gets a row.
const ORDER = ['fake', 'undecided', 'real', 'not looked at'];
const LANES = 2; // files under way at a time: one travels while the other is judged
const QUIET = 5000; // ms between two announcements to a screen reader
const $ = id => document.getElementById(id);
const { columns, maxMb, note, detector, version } = document.body.dataset;
let rows = [], queue = [], lanes = 0, total = 0, done = 0, began = 0, held = false, token = '', announced = 0, asked = 0, stopping = new AbortController();

const make = (tag, name, text = '') => Object.assign(document.createElement(tag), { className: name, textContent: text });
const pause = seconds => new Promise(resolve => {
  const timer = setTimeout(resolve, 1000 * seconds);
  stopping.signal.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
});

function add(files) { // [{name, file or error}]
  if (!files.length) return;
  if (done === total) { began = performance.now(); total = done = 0; stopping = new AbortController(); }
  total += files.length;
  $('answers').hidden = false;
  for (const one of files) {
    one.item = make('li', '');
    const line = make('div', 'waiting');
    line.append(make('span', 'verdict', 'waiting'), make('span', 'file', one.name));
    one.item.append(line);
    $('rows').append(one.item);
    queue.push(one);
  }
  show();
  start();
}

function start() {
  while (!held && lanes < LANES && queue.length) work();
}

async function work() {
  lanes += 1;
  for (let one; !held && (one = queue.shift());) {
    const state = one.item.querySelector('.verdict');
    state.textContent = 'looking';
    const answer = await ask(one);
    if (!one.item.isConnected) continue; // cleared away meanwhile
    if (answer) settle(one, answer);
    else { queue.unshift(one); state.textContent = 'waiting'; } // until the token is given
    show();
  }
  lanes -= 1;
  show();
}

async function ask({ name, file, error }) {
  const refused = why => ({ name, verdict: null, error: why, suspicion: [3, 0, 0] });
  if (error) return refused(error);
  if (file.size > maxMb * 2 ** 20) return refused(`the file is larger than ${maxMb} MB, and was not sent`);
  while (!stopping.signal.aborted) {
    const form = new FormData();
    form.append('files', file, name);
    try {
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      const response = await fetch('v1/predict?card=true', { method: 'POST', body: form, headers, signal: stopping.signal });
      if (response.ok) return (await response.json()).files[0];
      if (response.status === 401) { unlock(); return null; }
      const wait = Number(response.headers.get('Retry-After'));
      if (!wait) return refused((await response.json().catch(() => ({}))).detail ?? `the server answered ${response.status}`);
      asked = wait;
      show();
      await pause(wait);
      asked = 0;
    } catch (problem) {
      if (stopping.signal.aborted) break;
      return refused(`the file could not be read, or the server does not answer (${problem.message})`);
    }
  }
  return refused('stopped before it was looked at');
}

function unlock() {
  held = true;
  $('unlock').hidden = false;
  $('token').focus();
}

function go() { // on, after unlock
  held = false;
  $('unlock').hidden = true;
  start();
}

function settle(one, answer) {
  done += 1;
  one.file = null; // its memory
  const verdict = answer.verdict ?? ORDER[3];
  const [details, summary, body] = [make('details', ''), make('summary', ''), make('div', 'body')];
  const file = make('span', 'file', one.name);
  const why = answer.error ?? answer.reason;
  if (note && answer.verdict) file.append(' ', make('span', 'tag', note));
  const says = { generated: 'says it was generated', edited: 'says it was edited with AI' }[answer.declares];
  if (says) file.append(' ', make('span', 'tag', says));
  if (why) file.append(' ', make('span', 'why', why));
  const number = answer.p_value ?? answer.score;
  const shown = number == null ? '' : `${answer.p_value == null ? 'score' : 'p'} ${number.toFixed(3)}`;
  summary.append(make('span', 'verdict', verdict), file, make('span', 'number', shown));
  const { card } = answer;
  delete answer.card;
  const unseen = `This file was not looked at: ${why}.`;
  details.addEventListener('toggle', () => { // pictures of closed rows are not drawn
    if (card) body.innerHTML = card; // the server's template escapes all that it shows
    else body.append(make('p', '', unseen));
  }, { once: true });
  details.append(summary, body);
  details.open = total <= 3;
  const item = make('li', answer.verdict ?? 'none');
  item.append(details);
  one.item.remove();
  const row = { item, verdict, card, unseen, suspicion: answer.suspicion, answer: { ...answer, path: one.name } };
  const before = rows.findIndex(other => compare(row.suspicion, other.suspicion) < 0);
  const place = before < 0 ? rows.length : before;
  $('rows').insertBefore(item, $('rows').children[place] ?? null);
  rows.splice(place, 0, row);
}

function compare(a, b) {
  const place = a.findIndex((value, index) => value !== b[index]);
  return place < 0 ? 0 : a[place] - b[place];
}

function show() {
  const working = done < total, now = performance.now();
  const counts = ORDER.map(verdict => [rows.filter(row => row.verdict === verdict).length, verdict]);
  const listed = counts.filter(([count]) => count).map(one => one.join(' ')).join(', ');
  const text = `${rows.length} ${rows.length === 1 ? 'file' : 'files'}${listed && ': '}${listed}`;
  $('summary').textContent = text;
  if (rows.length && (!working || now - announced > QUIET)) { $('said').textContent = text; announced = now; }
  const rate = done / ((now - began) / 1000), left = (total - done) / rate;
  const time = left < 90 ? `${Math.ceil(left)} seconds` : `${Math.round(left / 60)} minutes`;
  $('bar').max = total;
  $('bar').value = done;
  $('rate').textContent = `${done} of ${total} looked at` + (working && done ? `, ${rate.toFixed(1)} a second, about ${time} left` : '')
    + (asked ? `; the server asks to wait ${asked} seconds` : '');
  $('state').hidden = !working;
  $('stop').disabled = !working;
  $('save').disabled = $('report').disabled = !rows.length;
}

function save() {
  // A spreadsheet would run a text that begins like a formula.
  const cell = value => typeof value === 'number' ? String(Number.isInteger(value) ? value : Number(value.toPrecision(6)))
    : value == null ? '' : `"${String(typeof value === 'object' ? JSON.stringify(value) : value).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const names = columns.split(',');
  const lines = [columns, ...rows.map(({ answer }) => names.map(name => cell(answer[name])).join(','))];
  keep('predictions.csv', 'text/csv', lines.join('\r\n') + '\r\n');
}

async function report() { // a page of its own, with a card on each printed page
  const title = `${rows.length} ${rows.length === 1 ? 'file' : 'files'}, judged by fakedet`, sheet = await (await fetch('page.css')).text();
  const print = 'main { max-width: 60rem; } @media print { .fakedet-cards { break-before: page; } .fakedet-card { break-inside: avoid; } }';
  const main = make('main', ''), knows = $('knows').cloneNode(true);
  knows.open = true;
  const made = `${new Date().toISOString().slice(0, 16).replace('T', ' ')} UTC, fakedet ${version}; detector: ${detector}`;
  main.append(make('h1', '', title), make('p', 'soft', made), make('p', '', $('summary').textContent));
  if (note) main.append(document.querySelector('main > .note').cloneNode(true));
  main.append(knows);
  for (const { card, unseen, answer } of rows) {
    const part = make('div', '');
    if (card) part.innerHTML = card;
    else part.append(make('h2', '', answer.path), make('p', '', unseen));
    main.append(part);
  }
  const head = `<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${title}</title>`;
  keep('report.html', 'text/html', `<!doctype html>\n<html lang="en"><head>${head}<style>${sheet}${print}</style></head><body>${main.outerHTML}</body></html>\n`);
}

function keep(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  Object.assign(make('a', ''), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function below(entry) { // the files of a dropped folder, to all depths
  const name = entry.fullPath.replace(/^\//, '');
  const call = (object, method) => new Promise((resolve, reject) => object[method](resolve, reject));
  try {
    if (entry.isFile) return [{ name, file: await call(entry, 'file') }];
    const reader = entry.createReader(), found = [];
    for (let part; (part = await call(reader, 'readEntries')).length;) for (const one of part) found.push(...await below(one));
    return found;
  } catch (problem) {
    return [{ name, error: `it cannot be read (${problem.message})` }];
  }
}

const named = files => [...files].map(file => ({ name: file.webkitRelativePath || file.name, file }));
for (const id of ['files', 'folder']) {
  $(id).addEventListener('change', event => { add(named(event.target.files)); event.target.value = ''; });
  $(id).addEventListener('keydown', event => { // browsers open the dialog by the space bar alone
    if (event.key !== 'Enter') return;
    event.preventDefault();
    event.target.click();
  });
}
document.addEventListener('paste', event => add(named(event.clipboardData.files)));
for (const [kind, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  document.addEventListener(kind, event => { event.preventDefault(); $('zone').classList.toggle('over', over); });
}
document.addEventListener('drop', async event => {
  const plain = named(event.dataTransfer.files); // both are read now: the browser forgets them after this call
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? (await Promise.all(entries.map(below))).flat() : plain;
  $('alert').textContent = files.length ? '' : 'There was no file in what you dropped. Save the picture as a file first, then drop that.';
  add(files);
});
$('unlock').addEventListener('submit', event => {
  event.preventDefault();
  token = $('token').value;
  go();
});
$('stop').addEventListener('click', () => { stopping.abort(); go(); });
$('save').addEventListener('click', save);
$('report').addEventListener('click', report);
$('clear').addEventListener('click', () => {
  stopping.abort();
  stopping = new AbortController();
  queue = []; rows = []; total = done = 0;
  $('rows').replaceChildren();
  $('said').textContent = '';
  $('answers').hidden = true;
  $('files').focus();
});
