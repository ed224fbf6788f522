// The page: state <-> controls <-> address, and a request per search. No framework, no other host.
'use strict';

const $ = (id) => document.getElementById(id);
const narrow = window.matchMedia('(max-width: 760px)');
const COUNTS = [10, 20, 50, 100, 200, 500];
const COLORS = new Set(['black', 'white', 'red', 'purple', 'yellow', 'gray', 'grey', 'blue', 'green',
  'pink', 'brown', 'orange']);
const MANY = 12; // attributes, from which on a box to find them helps

let schema = null;
let info = null;
let running = null; // the AbortController of the search in flight
let shown = null; // the state whose answer is shown

// An element with properties and children. Texts become text nodes, so nothing of the data is markup.
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter(present));
  return element;
}

const present = (child) => child !== null && child !== undefined;

// Other children instead of those there are; a browser would write "null" for those that are none.
const fill = (element, ...children) => element.replaceChildren(...children.filter(present));

const title = (name) => name.replaceAll('_', ' ');
const number = (value) => value.toLocaleString('en');

function swatch(value) {
  return COLORS.has(value) ? make('i', { 'data-color': value, 'aria-hidden': 'true' }) : null;
}

// What the data name is looked up in a Map: an object has a 'constructor' that nobody put there.
const mapOf = (object) => new Map(Object.entries(object));

// The state: {settings (a Map of attribute to value), words, where, must, mustNot, minScore, count, like, upload}.

function read() {
  const settings = new Map();
  for (const attribute of schema.attributes) {
    const chosen = document.querySelector(`input[name="${CSS.escape(`a:${attribute.name}`)}"]:checked`);
    if (!chosen || !chosen.value) continue;
    const negate = chosen.closest('fieldset').querySelector('.negate input');
    const isNot = negate && negate.checked && !negate.disabled;
    settings.set(attribute.name, (isNot ? '!' : '') + chosen.value);
  }
  return {
    settings,
    words: $('words').value.trim(),
    where: $('where').value.trim(),
    must: $('must').value.trim(),
    mustNot: $('must-not').value.trim(),
    minScore: $('min-score').value.trim(),
    count: Number($('count').value),
    like: '',
    upload: false,
  };
}

function write(state) {
  for (const attribute of schema.attributes) {
    const said = state.settings.get(attribute.name) || '';
    const value = said.replace(/^!/, '');
    const name = CSS.escape(`a:${attribute.name}`);
    let found = false;
    for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
      let wanted = value;
      // Of two values, not the one is the other.
      if (attribute.binary && said.startsWith('!')) {
        wanted = attribute.values[1 - attribute.values.indexOf(value)];
      }
      input.checked = input.value === wanted;
      found = found || input.checked;
      if (input.checked) {
        const negate = input.closest('fieldset').querySelector('.negate input');
        if (negate) negate.checked = said.startsWith('!');
      }
    }
    if (!found) document.querySelector(`input[name="${name}"][value=""]`).checked = true;
  }
  $('words').value = state.words;
  $('where').value = state.where;
  $('must').value = state.must;
  $('must-not').value = state.mustNot;
  $('min-score').value = state.minScore;
  setCount(state.count);
  refreshPickers();
}

// The number of results may be one that the list does not have: from a link, or the policy's.
function setCount(count) {
  const most = info.policy.max_results;
  const wanted = Math.max(1, Math.min(count || 20, most));
  const counts = [...new Set([...COUNTS.filter((n) => n <= most), most, wanted])];
  counts.sort((a, b) => a - b);
  $('count').replaceChildren(
    ...counts.filter((n) => n <= 500).map((n) => make('option', { value: n, textContent: n })),
  );
  $('count').value = wanted;
}

// The address: in the fragment, which browsers send to nobody.

const FILTERS = { where: 'where', must: 'must', mustNot: 'not', minScore: 'min' };

function toAddress(state) {
  const found = new URLSearchParams();
  if (state.like) found.set('like', state.like);
  if (state.upload) found.set('upload', '1');
  if (!state.like && !state.upload) {
    if (state.words) found.set('q', state.words);
    for (const [name, value] of state.settings) found.set(`a.${name}`, value);
  }
  for (const [name, short] of Object.entries(FILTERS)) if (state[name]) found.set(short, state[name]);
  if (state.count !== 20) found.set('k', state.count);
  return `#${found}`;
}

function fromAddress(address) {
  const found = new URLSearchParams(address.replace(/^#/, ''));
  const state = { settings: new Map(), words: (found.get('q') || '').slice(0, 1000) };
  for (const [name, value] of found) {
    if (name.startsWith('a.')) state.settings.set(name.slice(2), value);
  }
  for (const [name, short] of Object.entries(FILTERS)) state[name] = found.get(short) || '';
  state.count = Number.parseInt(found.get('k'), 10) || 20;
  state.like = found.get('like') || '';
  state.upload = found.has('upload');
  return state;
}

const isEmpty = (state) =>
  !state.like && !state.upload && !state.words && !state.settings.size;

// Requests.

class Refusal extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: 'same-origin', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal('The server does not answer. Is it still running? Then search again.', 0, 'network');
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
  }
  if (!response.ok || body === null) {
    throw new Refusal(
      (body && body.error) || `The server answered ${response.status}.`, response.status,
      body && body.code,
    );
  }
  return body;
}

const post = (path, data, signal) => ask(path, {
  method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(data), signal,
});

// What a search and a "more like this" have in common.
function narrowing(state) {
  const found = { top_k: state.count };
  if (state.where) found.where = state.where;
  if (state.must) found.must = state.must;
  if (state.mustNot) found.must_not = state.mustNot;
  if (state.minScore) {
    const least = Number(state.minScore.replace(',', '.'));
    if (!Number.isFinite(least)) {
      throw new Refusal(`The least score is a number such as 0.4, not "${state.minScore}".`, 400, 'form');
    }
    found.min_score = least;
  }
  const purpose = $('purpose');
  if (purpose) {
    if (!purpose.value.trim()) {
      purpose.focus();
      throw new Refusal('This site demands that the purpose of a search is stated. Say it, then search.',
        403, 'purpose');
    }
    found.purpose = purpose.value.trim();
    sessionStorage.setItem('purpose', found.purpose);
  }
  return found;
}

// What can be asked. The info first: if the model changes in between, the next answer is of another
// source than that, and all of it is asked for again.
async function load() {
  const found = await ask('/api/v1/info');
  if (info && info.name === found.name) return;
  const state = schema && read();
  schema = await ask('/api/v1/schema');
  info = found;
  build();
  if (state) write(state);
}

async function search(state, { keep = false, file = null } = {}) {
  if (running) running.abort();
  const mine = new AbortController();
  running = mine;
  const address = toAddress(state);
  if (!keep && address !== location.hash) history.pushState({ begun: true }, '', address);
  else history.replaceState({ begun: true }, '');
  document.title = isEmpty(state) ? 'Find a person by description' : `${summary(state)} - results`;
  if (isEmpty(state)) {
    running = null;
    showEmpty();
    return;
  }
  try {
    const common = narrowing(state);
    wait(state.count);
    let answer;
    if (state.like) {
      answer = await post('/api/v1/like', { ...common, id: state.like }, mine.signal);
    } else if (state.upload) {
      const form = new FormData();
      form.append('options', JSON.stringify(common));
      form.append('image', file);
      answer = await ask('/api/v1/like', { method: 'POST', body: form, signal: mine.signal });
    } else {
      answer = await post('/api/v1/search', {
        ...common, query: Object.fromEntries(state.settings), words: state.words, explain: true, suggest: true,
      }, mine.signal);
    }
    // A model on a server may be followed by a version with other attributes.
    if (answer.source !== info.name) await load();
    if (running === mine) show(answer, state, file);
  } catch (error) {
    if (error.name === 'AbortError') return;
    // What is not understood may be of the version before.
    if (error.code === 'query') await load().catch(() => {});
    if (running === mine) showError(error);
  } finally {
    if (running === mine) {
      running = null;
      $('results').setAttribute('aria-busy', 'false');
    }
  }
}

function summary(state) {
  if (state.like) return `Like ${state.like}`;
  if (state.upload) return 'Like a picture';
  const said = [...state.settings].map(([name, value]) => phrase(name, value));
  return [state.words, ...said].filter(Boolean).join(', ');
}

const phrase = (name, value) =>
  (value.startsWith('!') ? `${title(name)}: not ${title(value.slice(1))}` : `${title(name)}: ${title(value)}`);

// What is shown.

function clearResults() {
  for (const id of ['grid', 'said', 'next', 'empty', 'error']) $(id).replaceChildren();
  for (const id of ['said', 'next', 'empty', 'more', 'legend', 'link', 'login']) $(id).hidden = true;
  $('results-title').classList.remove('sr');
}

function wait(count) {
  clearResults();
  $('grid').classList.remove('bare');
  $('results').setAttribute('aria-busy', 'true');
  $('status').textContent = 'Searching…';
  const line = () => make('div', { className: 'line' });
  $('grid').replaceChildren(...Array.from({ length: Math.min(count, 12) }, () =>
    make('li', { className: 'hit wait', 'aria-hidden': 'true' },
      make('div', { className: 'plate' }), make('div', { className: 'body' }, line(), line()))));
}

function showEmpty() {
  clearResults();
  shown = null;
  $('results').setAttribute('aria-busy', 'false');
  $('status').textContent = '';
  const steps = [
    'Say what you know: in words, or with the attributes. What you leave out is not said; it is neither yes nor no.',
    'Search. The crops that fit best come first, each with what spoke for and against it.',
    info.can.suggest
      ? 'Too many look alike? The page names the attribute that is best asked for next.'
      : 'Too many look alike? Say more.',
  ];
  if (info.can.like) steps.push('A crop looks right? Ask for more like it.');
  const examples = exampleButtons();
  $('results-title').classList.add('sr');
  fill($('empty'),
    make('h3', { textContent: 'Whom are you looking for?' }),
    make('p', { className: 'soft' },
      info.crops === null || info.crops === undefined
        ? 'Describe a person.' : `${number(info.crops)} crops can be searched.`),
    make('ol', {}, ...steps.map((text) => make('li', { textContent: text }))),
    examples.length ? make('p', { className: 'soft', textContent: 'For example:' }) : null,
    make('div', { className: 'answers' }, ...examples),
  );
  $('empty').hidden = false;
}

function exampleButtons() {
  return schema.examples.map((text) => make('button', {
    type: 'button', textContent: text,
    onclick: () => { $('words').value = text; search(read()); },
  }));
}

const HEADINGS = mapOf({
  policy: 'Not allowed here', purpose: 'A purpose is needed', busy: 'Too busy', slow: 'Too slow',
  audit: 'Nothing can be logged', network: 'No connection', internal: 'Something went wrong',
  source: 'Cannot be searched now',
});

function showError(error) {
  clearResults();
  shown = null;
  $('results').setAttribute('aria-busy', 'false');
  $('status').textContent = 'No results.';
  if (error.status === 401) {
    $('status').textContent = '';
    $('login').hidden = false;
    $('token').focus();
    return;
  }
  const heading = HEADINGS.get(error.code) || 'This was not understood';
  $('error').replaceChildren(
    make('b', { textContent: heading }), error instanceof Refusal ? error.message : String(error));
  if (error.code === 'query' && schema) {
    $('error').append(make('div', { className: 'answers' }, 'This would be: ', ...exampleButtons()));
  }
}

function show(answer, state, file) {
  clearResults();
  shown = state;
  const count = answer.hits.length;
  const found = count ? `Best ${number(count)} of ${number(answer.gallery_size)} crops` : 'No crop fits';
  $('status').textContent = `${found}, ${Math.max(1, Math.round(answer.seconds * 1000))} ms.`;
  if (!count) {
    $('error').textContent = '';
    $('empty').replaceChildren(make('h3', { textContent: 'No crop fits the filters' }),
      make('p', { textContent: 'Loosen or clear the filters; the description itself only ranks, and excludes nobody.' }));
    $('empty').hidden = false;
  }
  const said = Object.entries(answer.query).map(([name, value]) =>
    make('li', {}, swatch(value), make('span', {}, `${title(name)}: `,
      make('b', { textContent: value.startsWith('!') ? `not ${title(value.slice(1))}` : title(value) }))));
  const example = state.like || (state.upload ? file.name : '');
  if (example) {
    said.push(make('li', {}, make('span', {}, 'crops like ', make('b', { textContent: example }))));
  }
  $('said').replaceChildren(...said);
  $('said').hidden = !said.length;
  $('link').hidden = state.upload;
  showNext(answer.suggestions);
  const scale = Math.max(1e-9, ...answer.hits.flatMap((hit) => Object.values(hit.reasons).map(Math.abs)));
  const cards = answer.hits.map((hit) => card(hit, answer.query, scale));
  if (state.upload) cards.unshift(reference(file));
  // Of a model on a server only ids are known, unless its gallery file was given.
  $('grid').classList.toggle('bare', !answer.hits.some((hit) => hit.thumbnail));
  $('grid').replaceChildren(...cards);
  const most = Math.min(info.policy.max_results, answer.gallery_size);
  $('more').hidden = !(count >= answer.top_k && count < most) || state.upload;
  $('legend').hidden = !answer.hits.some((hit) => Object.keys(hit.reasons).length);
  if (narrow.matches) {
    $('attributes').open = false;
    $('results').scrollIntoView({ block: 'start' });
  }
}

function showNext(suggestions) {
  const useful = suggestions.filter((s) => s.gain > 0.005).slice(0, 3);
  if (!useful.length) return;
  const [best, ...others] = useful;
  const attribute = schema.attributes.find((a) => a.name === best.attribute);
  if (!attribute) return;
  fill($('next'),
    make('h3', { id: 'next-title', title: `${best.gain.toFixed(2)} bits` },
      `Best to know next: ${title(best.attribute)}`),
    make('span', { className: 'answers' }, ...attribute.values.map((value) => make('button', {
      type: 'button', 'aria-label': phrase(best.attribute, value),
      onclick: () => answerNext(best.attribute, value),
    }, swatch(value), title(value)))),
    others.length ? make('span', { className: 'others' }, 'then ', ...others.flatMap((s, i) => [
      i ? ', ' : '', make('button', {
        type: 'button', textContent: title(s.attribute), onclick: () => goTo(s.attribute),
      })])) : null,
  );
  $('next').hidden = false;
}

function answerNext(name, value) {
  const state = { ...(shown || read()) };
  state.settings = new Map(state.settings).set(name, value);
  write(state);
  search(state);
  $('results').focus({ preventScroll: true });
}

function goTo(name) {
  $('attributes').open = true;
  $('find').value = '';
  filterPickers();
  const input = document.querySelector(`input[name="${CSS.escape(`a:${name}`)}"]:checked`);
  input.closest('fieldset').scrollIntoView({ block: 'center' });
  input.focus();
}

function plate(source, alternative) {
  const box = make('div', { className: 'plate' });
  const none = () => {
    box.classList.add('none');
    return make('span', { className: 'missing', textContent: 'no picture' });
  };
  if (!source) {
    box.append(none());
    return box;
  }
  const image = make('img', {
    loading: 'lazy', decoding: 'async', width: 128, height: 256, alt: alternative, src: source,
  });
  image.addEventListener('error', () => image.replaceWith(none()));
  box.append(image);
  return box;
}

function card(hit, query, scale) {
  const box = plate(hit.thumbnail, `Crop ${hit.id}`);
  box.append(make('span', { className: 'rank', 'aria-hidden': 'true', textContent: hit.rank }));
  const facts = Object.entries(hit.metadata).map(([name, value]) => `${name === 'time' ? '' : `${title(name)} `}${value}`);
  const like = info.can.like ? make('button', {
    type: 'button', textContent: 'More like this', 'aria-label': `More like ${hit.id}`,
    onclick: () => {
      search({ ...(shown || read()), like: hit.id, upload: false, words: '', settings: new Map() });
      $('results').focus({ preventScroll: true });
    },
  }) : null;
  return make('li', { className: 'hit', 'aria-label': `Rank ${hit.rank}, score ${hit.score.toFixed(3)}` },
    box,
    make('div', { className: 'body' },
      make('p', { className: 'score' }, 'score ', make('b', { textContent: hit.score.toFixed(3) })),
      make('ul', { className: 'reasons' },
        ...Object.keys(query).map((name) => reason(hit, name, scale))),
      facts.length ? make('p', { className: 'meta' }, ...facts.map((fact) => make('span', { textContent: fact }))) : null,
      make('p', { className: 'id', title: hit.id, textContent: hit.id }),
      like));
}

function reason(hit, name, scale) {
  const match = mapOf(hit.matches).get(name);
  const annotated = mapOf(hit.attributes).get(name);
  const [mark, words, kind] = match === true ? ['✓', 'annotated as asked', 'yes']
    : match === false ? ['✗', 'annotated otherwise', 'no'] : ['·', 'not annotated', ''];
  const change = mapOf(hit.reasons).get(name);
  const text = annotated === undefined ? title(name) : `${title(name)}: ${title(annotated)}`;
  const item = make('li', {},
    make('span', { className: kind, role: 'img', 'aria-label': words, textContent: mark }),
    make('span', { className: 'name', title: text, textContent: text }));
  if (change !== undefined) {
    item.append(make('span', {
      className: 'value', textContent: `${change < 0 ? '−' : '+'}${Math.abs(change).toFixed(2)}`,
    }));
    const bar = make('i', { className: change < 0 ? 'against' : 'for' });
    bar.style.width = `${(50 * Math.abs(change)) / scale}%`;
    item.append(make('span', { className: 'track', 'aria-hidden': 'true' }, bar));
  }
  return item;
}

function reference(file) {
  const address = URL.createObjectURL(file);
  const box = plate(address, `The picture ${file.name}`);
  const image = box.querySelector('img');
  image.loading = 'eager';
  image.addEventListener('load', () => URL.revokeObjectURL(address));
  return make('li', { className: 'hit reference' }, box,
    make('div', { className: 'body' }, make('p', { className: 'score' }, make('b', { textContent: 'Your picture' })),
      make('p', { className: 'id', title: file.name, textContent: file.name })));
}

// The pickers.

function picker(attribute) {
  const group = `a:${attribute.name}`;
  const option = (value, text) => make('label', {},
    make('input', { type: 'radio', name: group, value, checked: !value, defaultChecked: !value }),
    make('span', {}, swatch(value), text));
  const options = [option('', 'not said'), ...attribute.values.map((value) => option(value, title(value)))];
  const few = attribute.binary;
  const box = make('fieldset', { className: few ? 'pick' : 'pick many', 'data-name': attribute.name },
    make('legend', { textContent: title(attribute.name) }));
  if (!few) {
    box.append(make('label', { className: 'negate' },
      make('input', { type: 'checkbox', disabled: true, 'aria-label': `${title(attribute.name)} is not this value` }),
      'is not'));
  }
  box.append(make('div', { className: few ? 'options' : 'swatches' }, ...options));
  box.addEventListener('change', refreshPickers);
  return box;
}

function refreshPickers() {
  let count = 0;
  for (const box of document.querySelectorAll('.pick')) {
    const value = box.querySelector('input[type=radio]:checked').value;
    const negate = box.querySelector('.negate input');
    if (negate) {
      // "Not none" says that there is something, but not what: nothing a description can say.
      negate.disabled = !value || value === 'none';
      if (negate.disabled) negate.checked = false;
    }
    box.classList.toggle('set', Boolean(value));
    box.classList.toggle('negated', Boolean(negate && negate.checked));
    count += value ? 1 : 0;
  }
  $('said-count').textContent = count ? `${count} said` : '';
  const filters = ['where', 'must', 'must-not', 'min-score'].filter((id) => $(id).value.trim());
  $('filter-count').textContent = filters.length ? `${filters.length} set` : '';
}

function filterPickers() {
  const wanted = $('find').value.trim().toLowerCase();
  let visible = 0;
  for (const box of document.querySelectorAll('.pick')) {
    box.hidden = !title(box.dataset.name).toLowerCase().includes(wanted);
    visible += box.hidden ? 0 : 1;
  }
  $('pickers-none').hidden = visible > 0;
}

// The beginning.

function build() {
  $('pickers').replaceChildren(...schema.attributes.map(picker));
  $('find-row').hidden = schema.attributes.length < MANY;
  if (schema.examples.length) $('words').placeholder = schema.examples[0];
  $('words-hint').textContent = 'Separate with commas. "no hat" works, too.';
  $('words-hint').hidden = !schema.attributes.some((a) => a.values.join() === 'no,yes');
  $('filters').hidden = !info.can.filter;
  $('upload').hidden = !info.can.upload;
  const fields = Object.keys(info.fields || {}).filter((name) => !schema.attributes.some((a) => a.name === name));
  $('where-hint').textContent = fields.length
    ? `Fields: ${fields.join(', ')}. Example: camera in [1, 2] and time >= "2024-01-01"`
    : 'The crops of this index have no fields.';
  const crops = info.crops === null || info.crops === undefined ? '' : `${number(info.crops)} crops in `;
  $('source').textContent = `${crops}${info.name}`;
  const rules = [];
  if (info.user) rules.push(`Signed in as ${info.user}.`);
  $('sign-out').hidden = !info.session;
  if (info.logged) rules.push('Searches are logged.');
  if (info.policy.blurred) rules.push('Pictures are blurred.');
  if (info.policy.disabled_attributes) rules.push('Some attributes are disabled by the policy of this site.');
  rules.push('Attributes are how annotators saw a person, not facts.');
  $('rules').textContent = rules.join(' ');
  $('version').textContent = `tfreid ${info.version}`;
  if (info.policy.purpose) {
    const listed = info.policy.purposes;
    const stored = sessionStorage.getItem('purpose') || '';
    const field = listed.length
      ? make('select', { id: 'purpose', required: true },
        make('option', { value: '', textContent: 'Choose…' }),
        ...listed.map((text) => make('option', { value: text, textContent: text })))
      : make('input', { id: 'purpose', type: 'text', maxLength: 200, required: true });
    field.value = stored;
    if (field.value !== stored) field.value = '';
    $('purpose-place').replaceChildren(field);
    $('purpose-row').hidden = false;
  }
  setCount(20);
}

// A search runs by itself only if it was begun in this page, or if the address was typed or is a
// bookmark. Anybody can write a link, and what it searches for would be logged as this person's.
function follow() {
  if (!history.state) history.replaceState({ begun: false }, '');
  const state = fromAddress(location.hash);
  write(state);
  if (state.upload) {
    clearResults();
    $('status').textContent = 'A picture is not part of a link. Choose it again.';
    return;
  }
  if (isEmpty(state) || history.state.begun) search(state, { keep: true });
  else propose(state);
}

function propose(state) {
  clearResults();
  shown = null;
  $('status').textContent = 'Nothing was searched for yet.';
  fill($('empty'),
    make('h3', { textContent: 'A link asks for this' }),
    make('p', { textContent: `${summary(state)}.` }),
    make('p', { className: 'soft' }, 'The link does not come from this page. Search only if you meant to.'),
    make('div', { className: 'answers' }, make('button', {
      id: 'propose', type: 'button', textContent: 'Search for it',
      onclick: () => search(state, { keep: true }),
    })));
  $('empty').hidden = false;
}

function upload(file) {
  if (!file) return;
  search({ ...read(), settings: new Map(), words: '', upload: true }, { file });
}

async function start() {
  // Kept with this place in the history, since after a reload the server sees no link any more.
  if (!history.state) {
    history.replaceState({ begun: document.documentElement.dataset.arrival === 'trusted' }, '');
  }
  $('status').textContent = 'Loading…';
  if (narrow.matches) $('attributes').open = false;
  try {
    await load();
  } catch (error) {
    showError(error);
    return;
  }
  $('form').addEventListener('submit', (event) => {
    event.preventDefault();
    search(read());
  });
  $('form').addEventListener('input', refreshPickers);
  $('clear').addEventListener('click', () => {
    write({ ...fromAddress(''), count: Number($('count').value) });
    search({ ...fromAddress(''), count: 20 });
    $('words').focus();
  });
  $('find').addEventListener('input', filterPickers);
  $('find').addEventListener('keydown', (event) => {
    if (event.key === 'Enter') event.preventDefault(); // here it would search for what is half said
  });
  $('file').addEventListener('change', () => {
    upload($('file').files[0]);
    $('file').value = ''; // the same file once more is a change, too
  });
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    $('drop').addEventListener(kind, (event) => {
      event.preventDefault();
      $('drop').classList.toggle('over', kind === 'dragover');
      if (kind === 'drop') upload(event.dataTransfer.files[0]);
    });
  }
  $('more').addEventListener('click', () => {
    const state = { ...shown, count: Math.min(2 * shown.count, info.policy.max_results, 500) };
    setCount(state.count);
    search(state);
    $('results').focus({ preventScroll: true });
  });
  $('link').addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $('status').textContent = 'The link is in the clipboard.';
    } catch {
      $('status').textContent = 'The link is in the address bar of the browser.';
    }
  });
  $('skip').addEventListener('click', (event) => {
    event.preventDefault(); // the fragment holds the search
    $('results').focus();
  });
  window.addEventListener('popstate', follow);
  document.body.dataset.ready = 'true';
  follow();
}

$('sign-out').addEventListener('click', async () => {
  try {
    await ask('/api/v1/session', { method: 'DELETE' });
  } catch (error) {
    if (error.status !== 401) {
      showError(error);
      return;
    }
  }
  sessionStorage.clear();
  // What was searched for is not for whoever signs in next.
  history.replaceState({ begun: false }, '', location.pathname);
  location.reload();
});

$('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  try {
    await post('/api/v1/session', { token: $('token').value });
    location.reload();
  } catch (error) {
    $('error').replaceChildren(make('b', { textContent: 'Not signed in' }), error.message);
    $('token').select();
  }
});

start();
