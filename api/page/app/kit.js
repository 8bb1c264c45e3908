// What every part of the page stands on: elements, requests, the store that one WebSocket feeds, routes, words for numbers.
import React, {
  createElement, useCallback, useEffect, useId, useLayoutEffect, useMemo, useRef, useState, useSyncExternalStore,
} from 'react';
import htm from './vendor/htm.js';

export { React, useCallback, useEffect, useId, useLayoutEffect, useMemo, useRef, useState, useSyncExternalStore };

const element = (type, props, ...children) => {
  if (props && typeof type === 'string' && 'class' in props) {
    const { class: className, ...rest } = props;
    return createElement(type, { className: Array.isArray(className) ? className.filter(Boolean).join(' ') : className || undefined, ...rest }, ...children);
  }
  return createElement(type, props, ...children);
};
export const html = htm.bind(element);

// Small stores ---------------------------------------------------------------------------------------------------

/** A value that components can watch. */
export function signal(initial) {
  let value = initial;
  const watchers = new Set();
  return {
    get: () => value,
    set(next) {
      const made = typeof next === 'function' ? next(value) : next;
      if (Object.is(made, value)) return;
      value = made;
      for (const tell of [...watchers]) tell();
    },
    watch(tell) {
      watchers.add(tell);
      return () => watchers.delete(tell);
    },
  };
}

export const useSignal = (source) => useSyncExternalStore(source.watch, source.get);

/** Settings of this browser alone. */
export const remembered = {
  get: (name, otherwise) => {
    try { return JSON.parse(localStorage.getItem(`hostler.${name}`)) ?? otherwise; } catch { return otherwise; }
  },
  set: (name, value) => {
    try { localStorage.setItem(`hostler.${name}`, JSON.stringify(value)); } catch { /* private windows may refuse */ }
  },
};

// Requests -------------------------------------------------------------------------------------------------------

/** What the server refused, with what can be done about it. */
export class Refusal extends Error {
  constructor(status, code, message, details, retryAfter) {
    super(message);
    Object.assign(this, { status, code, details: details ?? {}, retryAfter });
  }

  get remedy() {
    if (this.status === 0) return 'Check that Hostler runs; this page goes on by itself once it answers.';
    if (this.status === 401) return 'Sign in again.';
    if (this.status === 403) return /own Origin/.test(this.message) ? 'Set HOSTLER_PUBLIC_URL to the address that this browser shows.' : 'Ask an admin for a role that may do this.';
    if (this.status === 404) return 'It may have been removed meanwhile; go back to the list.';
    if (this.status === 409) return 'Something else has changed it meanwhile: look at its present state, then try again.';
    if (this.status === 413) return 'Send less, or have HOSTLER_UPLOAD_LIMIT_MB raised.';
    if (this.status === 429) return `Wait ${this.retryAfter ?? 'a few'} s, then try again.`;
    if (this.status === 503) return 'Something that Hostler stands on is away; the Health page says what.';
    if (this.status >= 500) return 'Try again; the server’s log names the reason by the request’s id.';
    return '';
  }
}

export async function ask(method, path, body, { headers = {}, signal: abort, text = false } = {}) {
  let answer;
  const plain = body === undefined || body instanceof FormData || body instanceof Blob;
  try {
    answer = await fetch(path, {
      method,
      credentials: 'same-origin',
      headers: { Accept: text ? 'text/plain, */*' : 'application/json', ...(plain ? {} : { 'Content-Type': 'application/json' }), ...headers },
      body: plain ? body : JSON.stringify(body),
      signal: abort,
    });
  } catch (problem) {
    if (problem.name === 'AbortError') throw problem;
    throw new Refusal(0, 'UNREACHABLE', 'The server cannot be reached.');
  }
  if (answer.ok) return answer.status === 204 || method === 'HEAD' ? null : text ? answer.text() : answer.json();
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401 && me.get()) me.set(null);
  throw new Refusal(answer.status, told.code, told.message || told.detail || told.error || `The server answered ${answer.status}.`, told.details, told.retryAfter);
}

export const get = (path, how) => ask('GET', path, undefined, how);
export const post = (path, body = {}, how) => ask('POST', path, body, how);
export const put = (path, body = {}) => ask('PUT', path, body);
export const remove = (path) => ask('DELETE', path);

/** Upload with progress, which fetch cannot tell. */
export function upload(file, onProgress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open('POST', '/api/files/upload');
    request.responseType = 'json';
    request.upload.onprogress = (event) => event.lengthComputable && onProgress?.(event.loaded / event.total);
    request.onload = () => (request.status < 300 ? resolve(request.response)
      : reject(new Refusal(request.status, request.response?.code, request.response?.message || 'The upload was refused.', request.response?.details)));
    request.onerror = () => reject(new Refusal(0, 'UNREACHABLE', 'The upload broke off.'));
    request.onabort = () => reject(new Refusal(0, 'ABORTED', 'The upload was stopped.'));
    const form = new FormData();
    form.append('file', file, file.name);
    request.send(form);
  });
  return { done, stop: () => request.abort() };
}

// Who is here ----------------------------------------------------------------------------------------------------

/** undefined: not known yet; null: nobody; else what /api/auth/me says. */
export const me = signal(undefined);
const rank = { r: 0, w: 1, a: 2 };
export const may = (role) => (rank[me.get()?.role] ?? -1) >= rank[role];
export const useMay = (role) => { useSignal(me); return may(role); };

// What happens, by one WebSocket ----------------------------------------------------------------------------------

/** connecting | live | waiting | cut: the server answers, but not this socket */
export const connection = signal('connecting');
const hearers = new Set();
let socket = null;
let lastId = '';
let failures = 0;
let reviving = 0;

const tell = (event) => { for (const hear of [...hearers]) hear(event); };

/** Call `hear` with every event; answers how to stop. */
export function listen(hear) {
  hearers.add(hear);
  return () => hearers.delete(hear);
}

export function useEvents(hear) {
  const kept = useRef(hear);
  kept.current = hear;
  useEffect(() => listen((event) => kept.current(event)), []);
}

export function connect() {
  if (socket || !me.get()) return;
  clearTimeout(reviving);
  const address = new URL('/api/events', location.href);
  address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:';
  if (lastId) address.searchParams.set('after', lastId);
  const mine = new WebSocket(address);
  socket = mine;
  mine.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    lastId = event.id;
    if (event.type === 'stream.begin') {
      const again = failures > 0;
      failures = 0;
      connection.set('live');
      if (again) tell({ type: 'page.back' });
      return;
    }
    tell(event);
  };
  mine.onclose = ({ code }) => {
    if (socket !== mine) return;
    socket = null;
    if (code === 4401 || code === 4403) { checkIn(); return; }
    if (code === 4400) lastId = '';
    failures += 1;
    if (connection.get() !== 'cut') connection.set(failures > 1 ? 'waiting' : 'connecting');
    if (failures > 3) get('/api/health').then(() => connection.get() === 'waiting' && connection.set('cut'), () => connection.set('waiting'));
    reviving = setTimeout(connect, Math.min(5000, 150 * 2 ** Math.min(failures, 6)) * (0.7 + Math.random() * 0.6));
  };
}

export function disconnect() {
  const mine = socket;
  socket = null;
  lastId = '';
  clearTimeout(reviving);
  mine?.close();
}

export async function checkIn() {
  try {
    const { signedIn } = await get('/api/auth/setup');  // which refuses nobody, so that nothing is logged as an error
    me.set(signedIn ? await get('/api/auth/me') : null);
    connect();
  } catch (problem) {
    if (problem.status === 401 || problem.status === 403) me.set(null);
    else { connection.set('waiting'); setTimeout(checkIn, 1500); }
  }
}

addEventListener('online', () => { if (!socket) connect(); });
/** Somebody looks at this tab again: take the news up, or see whether they have signed in meanwhile in another one. */
function lookedAt() {
  if (document.hidden || socket) return;
  if (me.get() === null) checkIn(); else connect();
}
document.addEventListener('visibilitychange', lookedAt);
addEventListener('focus', lookedAt);

// The store: what was read, by address, and read again when something happens that concerns it ---------------------

const known = new Map();
const SETTLE_MS = 250;
let reader = null;
me.watch(() => {
  const id = me.get()?.id ?? null;
  if (id === reader) return;
  if (reader !== null) { disconnect(); known.clear(); }  // what one has read is not for who comes next
  reader = id;
});

function entryOf(path) {
  let entry = known.get(path);
  if (!entry) {
    const state = signal({ data: undefined, error: null, at: 0 });
    entry = { path, state, users: new Set(), busy: null, again: false, timer: 0, due: 0 };
    known.set(path, entry);
  }
  return entry;
}

async function read(entry) {
  if (entry.busy) { entry.again = true; return entry.busy; }
  entry.busy = get(entry.path).then(
    (data) => entry.state.set({ data, error: null, at: Date.now() }),
    (error) => {
      entry.state.set((before) => ({ ...before, error }));
      // a server that is away, or a moment of too much: look again by itself
      if (entry.users.size && (error.status === 0 || error.status === 429 || error.status >= 500)) soon(entry, 2000);
    },
  );
  await entry.busy;
  entry.busy = null;
  if (entry.again) { entry.again = false; soon(entry); }
}

function soon(entry, wait_ms = SETTLE_MS) {
  if (entry.timer) return;
  entry.timer = setTimeout(() => { entry.timer = 0; read(entry); }, wait_ms);
}

listen((event) => {
  for (const entry of known.values()) {
    if (event.type === 'stream.gap' || event.type === 'page.back') {
      if (entry.users.size) soon(entry, 0); else known.delete(entry.path);
    } else if ([...entry.users].some((user) => user.about?.(event))) soon(entry);
    else if (!entry.users.size) known.delete(entry.path);  // it may have changed, and nobody looks
  }
});

/** Read `path` and keep it fresh: again whenever `about` says that an event concerns it, and every `every` ms. */
export function useRead(path, { about = null, every = 0 } = {}) {
  const entry = useMemo(() => (path ? entryOf(path) : null), [path]);
  const user = useRef({});
  user.current.about = about;
  const state = useSyncExternalStore(
    useCallback((watcher) => (entry ? entry.state.watch(watcher) : () => {}), [entry]),
    () => (entry ? entry.state.get() : NOTHING),
  );
  useEffect(() => {
    if (!entry) return undefined;
    known.set(path, entry);
    const mine = user.current;
    entry.users.add(mine);
    if (!entry.state.get().at || Date.now() - entry.state.get().at > 1000) read(entry);
    const timer = every ? setInterval(() => { if (!document.hidden) read(entry); }, every) : 0;
    return () => { entry.users.delete(mine); clearInterval(timer); };
  }, [entry, every]);
  const reload = useCallback(() => entry && read(entry), [entry]);
  return { ...state, loading: !state.at && !state.error, reload };
}
const NOTHING = { data: undefined, error: null, at: 0 };

/** Whether a module of the server is switched on; undefined until that is known. */
export const useModule = (name) => useRead('/api/modules').data?.modules[name];

/** Show what is about to be so, before the server has said it. */
export function foretell(path, change) {
  const entry = known.get(path);
  if (entry?.state.get().data) entry.state.set((before) => ({ ...before, data: change(before.data) }));
}

// Routes: #/jobs?status=failed ------------------------------------------------------------------------------------

const decoded = (part) => { try { return decodeURIComponent(part); } catch { return part; } };  // an address may be mistyped
const parse = () => {
  const [path, query = ''] = location.hash.replace(/^#/, '').split('?');
  const parts = path.split('/').filter(Boolean).map(decoded);
  return { path: `/${parts.join('/')}`, parts, query: Object.fromEntries(new URLSearchParams(query)) };
};
export const route = signal(parse());
addEventListener('hashchange', () => route.set(parse()));

const written = (path, query = {}) => {
  const kept = Object.entries(query).filter(([, value]) => value !== '' && value != null && value !== false);
  const words = new URLSearchParams(kept).toString();
  return `#${path}${words ? `?${words}` : ''}`;
};
export const to = (...parts) => `#/${parts.map(encodeURIComponent).join('/')}`;
export const link = written;
export const go = (path, query) => { location.hash = written(path, query); };
/** Change what the address says beside the page, without a step back to be taken. */
export function refine(changes) {
  const { path, query } = route.get();
  history.replaceState(null, '', written(path, { ...query, ...changes }));
  route.set(parse());
}

// Words for times and numbers --------------------------------------------------------------------------------------

export const now = signal(Date.now());
setInterval(() => { if (!document.hidden) now.set(Date.now()); }, 1000);

const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'long' });
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const minute = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const moment = new Intl.DateTimeFormat(undefined, { weekday: 'short', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const numbers = new Intl.NumberFormat();

export const fullTime = (at) => absolute.format(at);
export const shortTime = (at) => minute.format(new Date(at));
export const clockTime = (at) => clock.format(at);
export const dayTime = (at) => moment.format(at);
export const count = (value) => (value == null ? '–' : numbers.format(value));

const STEPS = [[60, 'second'], [3600, 'minute', 60], [86_400, 'hour', 3600], [604_800, 'day', 86_400]];
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: 'always', style: 'short' });

export function ago(at, from = Date.now()) {
  const seconds = (at - from) / 1000;
  const size = Math.abs(seconds);
  if (size < 5) return seconds > 1 ? 'now' : 'just now';
  for (const [limit, unit, length = 1] of STEPS) {
    if (size < limit) return relative.format(Math.trunc(seconds / length), unit);
  }
  return day.format(at);
}

export function lasted(ms) {
  if (ms == null) return '–';
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(size) {
  if (size == null) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = size;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function since(at, from) {
  return at ? lasted(Math.max(0, (from ?? now.get()) - Date.parse(at))) : '–';
}

// Theme -----------------------------------------------------------------------------------------------------------

export const theme = signal(remembered.get('theme', 'auto'));
const paint = () => {
  const chosen = theme.get();
  document.documentElement.dataset.theme = chosen === 'auto'
    ? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light') : chosen;
};
theme.watch(() => { remembered.set('theme', theme.get()); paint(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);
paint();

export function useMedia(query) {
  const list = useMemo(() => matchMedia(query), [query]);
  return useSyncExternalStore(
    useCallback((tellIt) => { list.addEventListener('change', tellIt); return () => list.removeEventListener('change', tellIt); }, [list]),
    () => list.matches,
  );
}

// Keys ------------------------------------------------------------------------------------------------------------

const bindings = new Set();
/** Bind keys while a component is there: {'j': fn, 'Enter': fn}. Not while somebody types, unless the key says Ctrl. */
export function useKeys(keys, active = true) {
  const kept = useRef(keys);
  kept.current = keys;
  useEffect(() => {
    if (!active) return undefined;
    const mine = (name, event) => kept.current[name]?.(event);
    bindings.add(mine);
    return () => bindings.delete(mine);
  }, [active]);
}
export const typing = (target) => target?.closest?.('input, textarea, select, [contenteditable]') != null;
let before = '';
addEventListener('keydown', (event) => {
  if (event.defaultPrevented || event.altKey) return;
  const held = event.ctrlKey || event.metaKey;
  if (!held && (typing(event.target) || document.querySelector('dialog[open]'))) return;
  const pressed = held ? `Ctrl+${event.key.toLowerCase()}` : event.key;
  const names = before ? [`${before} ${pressed}`, pressed] : [pressed];
  before = !held && pressed === 'g' ? 'g' : '';
  for (const name of names) {
    for (const bound of [...bindings].reverse()) {
      if (bound(name, event) === true) { event.preventDefault(); return; }
    }
  }
});
