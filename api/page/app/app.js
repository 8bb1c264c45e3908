// The frame around all pages: who is here, where to go, what keys do. Pages are fetched when they are first opened.
import { createRoot } from 'react-dom/client';
import {
  React, checkIn, connection, count, disconnect, get, go, html, link, me, post, remembered, route, signal, theme, to, useEffect, useKeys, useMedia, useModule, useRead, useRef,
  useSignal, useState,
} from './kit.js';
import { Confirmation, Dialog, Icon, Loading, Problem, Toasts, complain, toast } from './parts.js';

// [place, name, icon, key after g, module, role]
const PLACES = [
  ['', 'Overview', 'overview', 'o', 'overview', 'r'],
  ['Work'],
  ['jobs', 'Jobs', 'jobs', 'j', 'jobs', 'r'],
  ['submit', 'Submit', 'plus', 'n', 'submit', 'w'],
  ['schedules', 'Schedules', 'clock', 's', 'schedules', 'r'],
  ['quarantine', 'Quarantine', 'shield', 'q', 'quarantine', 'r'],
  ['files', 'Files', 'file', 'f', 'files', 'r'],
  ['Apps'],
  ['apps', 'Apps', 'apps', 'a', 'apps', 'r'],
  ['catalogue', 'Catalogue', 'store', 'c', 'catalogue', 'r'],
  ['System'],
  ['workers', 'Workers', 'node', 'w', 'workers', 'r'],
  ['backups', 'Backups', 'backup', 'b', 'backups', 'r'],
  ['people', 'Users and keys', 'people', 'u', 'people', 'r'],
  ['health', 'Health', 'health', 'h', 'health', 'r'],
];
const LADDER = { r: 0, w: 1, a: 2 };
const open = (role) => LADDER[me.get()?.role] >= LADDER[role];
const usePlaces = () => {
  const backups = useModule('backups');
  return PLACES.filter((place) => place.length === 1 || (open(place[5]) && (backups !== false || place[0] !== 'backups')));
};
/** Pages below a place, by how many words the address has. */
const BELOW = { jobs: 'job', apps: 'app', workers: 'worker' };
const moduleOf = ([first = '', second]) => (second && BELOW[first]) || PLACES.find((place) => place.length > 1 && place[0] === first)?.[4];

const pages = new Map();
const RELOADED = 'reloaded';
/** Fetch a page's module; a version of the page that the server no longer has is left by loading all anew, once. */
async function fetchPage(name) {
  try {
    const found = (await import(`./pages/${name}.js`)).default;
    sessionStorage.removeItem(RELOADED);
    return found;
  } catch (problem) {
    if (!navigator.onLine || sessionStorage.getItem(RELOADED)) throw problem;
    const answer = await fetch('/', { cache: 'no-cache' }).catch(() => null);
    if (answer?.ok && !(await answer.text()).includes(new URL('.', import.meta.url).pathname)) {
      sessionStorage.setItem(RELOADED, '1');
      location.reload();
    }
    throw problem;
  }
}

function Page({ name, parts }) {
  const [found, setFound] = useState(() => pages.get(name));
  const [problem, setProblem] = useState(null);
  const load = () => fetchPage(name).then((page) => { pages.set(name, page); setProblem(null); setFound(() => page); }, setProblem);
  useEffect(() => { if (!found) load(); }, []);
  if (found) return React.createElement(found, { parts, key: parts.join('/') });
  return problem ? html`<${Problem} of=${{ message: 'This page could not be fetched.', remedy: 'Check that Hostler runs, then try again.' }} again=${load} />` : html`<${Loading} />`;
}

class Fence extends React.Component {
  state = { problem: null };
  static getDerivedStateFromError(problem) { return { problem }; }
  render() {
    if (!this.state.problem) return this.props.children;
    return html`<div class="content"><${Problem} of=${{ message: `This page broke: ${this.state.problem.message}`, remedy: 'Load it anew; if that does not help, the other pages and the command line still work.' }} again=${() => location.reload()} /></div>`;
  }
}

// Side -------------------------------------------------------------------------------------------------------------

const aboutCounts = (event) => /^(job\.(queued|started|completed)|app\.|worker\.)/.test(event.type);

function Side({ opened, close, palette }) {
  const { parts } = useSignal(route);
  const overview = useRead('/api/overview', { about: aboutCounts, every: 30_000 }).data;
  const tallies = overview ? {
    jobs: overview.jobs.running + overview.jobs.queued ? count(overview.jobs.running + overview.jobs.queued) : '',
    quarantine: overview.jobs.quarantined || '',
    apps: Object.values(overview.apps).reduce((sum, each) => sum + each, 0) || '',
    workers: `${overview.workers.online}/${overview.workers.total}`,
  } : {};
  const groups = usePlaces().reduce((all, place) => {
    if (place.length === 1) all.push([place[0], []]); else all.at(-1)[1].push(place);
    return all;
  }, [['', []]]);
  return html`<aside class=${`side ${opened ? 'open' : ''}`}>
    <a class="brand" href="#/" onClick=${close}><img src=${new URL('./icon.svg', import.meta.url)} width="24" height="24" alt="" />Hostler</a>
    <button class="seek" onClick=${() => { close(); palette(); }}><${Icon} name="search" /><span>Find or do</span><kbd>Ctrl K</kbd></button>
    <nav aria-label="Pages">${groups.map(([title, group]) => group.length > 0 && html`<div key=${title}>${title && html`<div class="nav-title" id=${`nav-${title}`} style=${{ paddingTop: 14 }}>${title}</div>`}
      <ul class="nav" aria-labelledby=${title ? `nav-${title}` : undefined}>${group.map(([place, name, icon]) => html`<li key=${place}><a href=${`#/${place}`} onClick=${close} aria-current=${(parts[0] ?? '') === place ? 'page' : undefined}><${Icon} name=${icon} />${name}
        ${tallies[place] !== undefined && tallies[place] !== '' && html`<span class=${`tally ${place === 'quarantine' ? 'bad' : ''}`}>${tallies[place]}</span>`}</a></li>`)}</ul></div>`)}</nav>
    <div class="side-foot"><${LinkState} /><${Who} /></div>
  </aside>`;
}

const STATES = { live: 'Live', connecting: 'Connecting', waiting: 'Waiting for the server', cut: 'Not live' };
function LinkState() {
  const state = useSignal(connection);
  return html`<div class="link-state" role="status"><span class=${`pip ${state}`}></span>${STATES[state]}</div>`;
}

const THEMES = { auto: ['half', 'as the system has it', 'light'], light: ['sun', 'light', 'dark'], dark: ['moon', 'dark', 'auto'] };
function Who() {
  const who = useSignal(me);
  const chosen = useSignal(theme);
  const [icon, words, next] = THEMES[chosen];
  return html`<div class="who"><div class="who-name"><div class="cut strong small">${who.username}</div><div class="faint small">${who.roleName}</div></div>
    <button class="button quiet icon tiny" title=${`Theme: ${words}`} aria-label=${`Theme: ${words}. Change it.`} onClick=${() => theme.set(next)}><${Icon} name=${icon} /></button>
    <button class="button quiet icon tiny" title="Sign out" aria-label="Sign out" onClick=${signOut}><${Icon} name="out" /></button></div>`;
}

async function signOut() {
  try { await post('/api/auth/logout'); } catch (problem) { if (problem.status !== 401) { complain(problem); return; } }
  disconnect();
  me.set(null);
}

// Palette ----------------------------------------------------------------------------------------------------------

function Palette({ close, help }) {
  const [text, setText] = useState('');
  const [found, setFound] = useState([]);
  const [at, setAt] = useState(0);
  const list = useRef(null);
  useEffect(() => {
    if (text.trim().length < 2) { setFound([]); return undefined; }
    const stop = new AbortController();
    const timer = setTimeout(async () => {
      const [jobs, apps] = await Promise.all([
        get(`/api/jobs/list?limit=6&search=${encodeURIComponent(text.trim().slice(0, 200))}`, { signal: stop.signal }).catch(() => ({ jobs: [] })),
        get('/api/apps?limit=200', { signal: stop.signal }).catch(() => ({ apps: [] })),
      ]);
      if (stop.signal.aborted) return;
      const wanted = text.trim().toLowerCase();
      setFound([
        ...apps.apps.filter((app) => `${app.instanceId} ${app.name}`.toLowerCase().includes(wanted)).slice(0, 4).map((app) => ({ name: app.instanceId, icon: 'apps', note: app.status, href: to('apps', app.instanceId) })),
        ...jobs.jobs.map((job) => ({ name: job.name || job.command || (job.argv ?? []).join(' ') || job.jobId, icon: 'jobs', note: job.status, href: to('jobs', job.jobId) })),
      ]);
    }, 120);
    return () => { clearTimeout(timer); stop.abort(); };
  }, [text]);
  const places = usePlaces();
  const commands = [
    ...places.filter((place) => place.length > 1).map(([place, name, icon, key]) => ({ name, icon, note: `g ${key}`, href: `#/${place}` })),
    open('w') && { name: 'Install an app', icon: 'store', href: '#/catalogue' },
    open('w') && { name: 'Upload a file', icon: 'upload', href: '#/files' },
    { name: 'Failed jobs', icon: 'cross', href: '#/jobs?status=failed' },
    { name: 'Running jobs', icon: 'play', href: '#/jobs?status=running' },
    { name: 'Create an API key', icon: 'key', href: '#/people?new=key' },
    open('a') && { name: 'Add a user', icon: 'people', href: '#/people?new=user' },
    { name: 'API reference', icon: 'file', act: () => window.open('/api/docs', '_blank', 'noopener') },
    { name: 'Light theme', icon: 'sun', act: () => theme.set('light') },
    { name: 'Dark theme', icon: 'moon', act: () => theme.set('dark') },
    { name: 'Keys', icon: 'terminal', note: '?', act: help },
    { name: 'Sign out', icon: 'out', act: signOut },
  ].filter(Boolean).filter(({ name }) => name.toLowerCase().includes(text.trim().toLowerCase()));
  const all = [...commands, ...found];
  const chosen = Math.min(at, all.length - 1);
  const run = (item) => { close(); if (item.href) location.hash = item.href.slice(1); else item.act(); };
  const press = (event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      const next = (chosen + (event.key === 'ArrowDown' ? 1 : -1) + all.length) % Math.max(1, all.length);
      setAt(next);
      list.current?.children[next]?.scrollIntoView({ block: 'nearest' });
    } else if (event.key === 'Enter' && all[chosen]) { event.preventDefault(); run(all[chosen]); }
  };
  return html`<${Dialog} bare label="Find or do" onClose=${close}><div class="palette"><input autoFocus role="combobox" aria-expanded="true" aria-controls="palette-list" aria-activedescendant=${all.length ? `palette-${chosen}` : undefined}
      aria-label="Find a page, a job, an app, or a command" placeholder="Find a page, a job, an app, or a command" value=${text} onChange=${(event) => { setText(event.target.value); setAt(0); }} onKeyDown=${press} />
    <ul id="palette-list" role="listbox" aria-label="What there is" ref=${list}>${all.map((item, index) => html`<li key=${`${item.name}${item.href ?? ''}`} id=${`palette-${index}`} role="option" aria-selected=${index === chosen} onMouseMove=${() => setAt(index)} onClick=${() => run(item)}>
      <${Icon} name=${item.icon} /><span class="cut">${item.name}</span>${item.note && html`<span class="faint small nowrap">${item.note}</span>`}</li>`)}
      ${all.length === 0 && html`<li role="option" aria-selected="false" class="faint">Nothing is called that.</li>`}</ul></div><//>`;
}

const KEYS = [
  ['Ctrl K', 'find a page, a job or an app; run a command'], ['/', 'search in this page'], ['j  k', 'down and up a list'], ['Enter', 'open what is at hand'],
  ['x', 'pick it, for several at once'], ['n', 'submit a job'], ['g then a letter', 'go to a page'], ['f', 'follow a log, or stop following'], ['t', 'times in a log'], ['Esc', 'close, or leave a field'], ['?', 'this list'],
];
const Help = ({ close }) => html`<${Dialog} title="Keys" onClose=${close}><dl class="facts">${KEYS.map(([key, what]) => html`<${React.Fragment} key=${key}><dt><kbd>${key}</kbd></dt><dd>${what}</dd><//>`)}</dl>
  <h3>Go to</h3><dl class="facts">${usePlaces().filter((place) => place.length > 1).map(([place, name, , key]) => html`<${React.Fragment} key=${place}><dt><kbd>g ${key}</kbd></dt><dd>${name}</dd><//>`)}</dl><//>`;

// Frame ------------------------------------------------------------------------------------------------------------

const FILLED = new Set(['jobs', 'job']);

function Frame() {
  const { parts, path } = useSignal(route);
  const state = useSignal(connection);
  const narrow = useMedia('(max-width: 760px)');
  const [over, setOver] = useState('');
  const [drawer, setDrawer] = useState(false);
  const content = useRef(null);
  const name = moduleOf(parts);
  const places = usePlaces();
  useEffect(() => {
    setDrawer(false);
    content.current?.scrollTo(0, 0);
    const place = PLACES.find((each) => each.length > 1 && each[0] === (parts[0] ?? ''));
    document.title = `${parts[1] ?? place?.[1] ?? 'Not found'} · Hostler`;
  }, [path]);
  useKeys({
    'Ctrl+k': () => { setOver((before) => (before === 'palette' ? '' : 'palette')); return true; },
    '?': () => { setOver('help'); return true; },
    n: () => { if (!open('w')) return false; go('/submit'); return true; },
    Escape: () => { setDrawer(false); return drawer; },
    ...Object.fromEntries(places.filter((place) => place.length > 1).map(([place, , , key]) => [`g ${key}`, () => { go(`/${place}`); return true; }])),
  });
  const close = () => setOver('');
  return html`<div class="shell">
    <${Side} opened=${drawer} close=${() => setDrawer(false)} palette=${() => setOver('palette')} />
    ${narrow && drawer && html`<button class="shade" aria-label="Close the menu" onClick=${() => setDrawer(false)}></button>`}
    <div class="main">
      <div class="topbar"><button class="button quiet icon" aria-label="Menu" aria-expanded=${drawer} onClick=${() => setDrawer(true)}><${Icon} name="menu" size=${20} /></button><a class="brand" href="#/">Hostler</a>
        <button class="button quiet icon" aria-label="Find or do" onClick=${() => setOver('palette')}><${Icon} name="search" size=${18} /></button></div>
      ${state === 'cut' && html`<div class="offline" role="alert"><${Icon} name="warn" />The server answers, but what happens is not told: a proxy between keeps WebSockets from passing, or this address is not HOSTLER_PUBLIC_URL.</div>`}
      ${state === 'waiting' && html`<div class="offline" role="alert"><${Icon} name="warn" />The server does not answer. What you see is what was last known; this page goes on by itself.</div>`}
      <main ref=${content} class=${`content ${FILLED.has(name) ? 'fill flows' : ''}`} tabIndex="-1" id="content"><${Fence} key=${path}>${name
        ? html`<${Page} name=${name} parts=${parts} key=${name} />`
        : html`<${Problem} of=${{ message: `There is no page ${path}.`, remedy: 'Press Ctrl+K to find what you look for.' }} />`}<//></main>
    </div>
    ${over === 'palette' && html`<${Palette} close=${close} help=${() => setOver('help')} />`}
    ${over === 'help' && html`<${Help} close=${close} />`}
    <${Confirmation} />
  </div>`;
}

function Whole() {
  const who = useSignal(me);
  if (who === undefined) return html`<p class="boot">Hostler</p>`;
  return html`${who ? html`<${Frame} key=${who.id} />` : html`<${Page} name="door" parts=${[]} key="door" />`}<${Toasts} />`;
}

// A link with a token, as `hostler up` prints it, opens the door once ------------------------------------------------

async function enter() {
  const { parts, query } = route.get();
  if (parts[0] === 'enter') {
    history.replaceState(null, '', '#/');
    route.set({ path: '/', parts: [], query: {} });
    if (query.token) {
      try { await post('/api/auth/session', { token: query.token }); } catch (problem) {
        toast('That link does not open the door any more.', { kind: 'bad', hint: 'It works once, for a quarter of an hour. Sign in below, or start hostler up again.', lasts: 0 });
      }
    }
  }
  await checkIn();
}

addEventListener('hashchange', () => { if (route.get().parts[0] === 'enter') enter(); });
createRoot(document.getElementById('page')).render(html`<${Fence}><${Whole} /><//>`);
enter();
