// The components that pages are made of: badges, times, dialogs, toasts, lists that are windows on their rows.
import {
  Refusal, ago, count, fullTime, html, lasted, me, now, signal, typing, useCallback, useEffect, useId, useLayoutEffect, useMemo, useRead, useRef, useSignal,
  useState, useKeys,
} from './kit.js';

// Icons: strokes on a grid of 16 -----------------------------------------------------------------------------------

const STROKES = {
  overview: 'M2.5 8.5h3v5h-3zM6.5 5.5h3v8h-3zM10.5 2.5h3v11h-3z',
  jobs: 'M3 4h10M3 8h10M3 12h6',
  play: 'M5 3.5v9l7-4.5z',
  plus: 'M8 3v10M3 8h10',
  clock: 'M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12zM8 5v3.2l2 1.3',
  shield: 'M8 2l5 2v4c0 3-2.2 5-5 6-2.8-1-5-3-5-6V4z',
  apps: 'M3 3h4v4H3zM9 3h4v4H9zM3 9h4v4H3zM9 9h4v4H9z',
  store: 'M3 6.5V13h10V6.5M2.5 6.5 4 3h8l1.5 3.5M2.5 6.5h11M6.5 13V9.5h3V13',
  node: 'M2.5 3.5h11v4h-11zM2.5 8.5h11v4h-11zM5 5.5h.01M5 10.5h.01',
  backup: 'M8 2.5c3 0 5 .8 5 2s-2 2-5 2-5-.8-5-2 2-2 5-2zM3 4.5v7c0 1.200 2 2 5 2s5-.8 5-2v-7M3 8c0 1.200 2 2 5 2s5-.8 5-2',
  file: 'M4 2.500h5l3 3v8H4zM9 2.500v3h3',
  people: 'M6 8a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5zM1.800 13c.3-2.300 2-3.500 4.200-3.500s3.900 1.200 4.200 3.500M10.500 3.300a2.400 2.400 0 0 1 0 4.500M12 9.800c1.300.5 2 1.600 2.200 3.200',
  health: 'M2 8.500h3l1.500-4 3 7.500 1.500-3.500h3',
  search: 'M7 11.500a4.500 4.500 0 1 0 0-9 4.500 4.500 0 0 0 0 9zM10.300 10.300 13.500 13.500',
  check: 'M3.500 8.500 6.500 11.500 12.500 5',
  cross: 'M4 4l8 8M12 4l-8 8',
  ban: 'M8 13.500a5.500 5.500 0 1 0 0-11 5.500 5.500 0 0 0 0 11zM4.200 4.200l7.600 7.600',
  warn: 'M8 2.500 14.200 13H1.800zM8 6.500v3M8 11.300v.1',
  down: 'M4 6l4 4 4-4', right: 'M6 4l4 4-4 4', left: 'M10 4 6 8l4 4', up: 'M4 10l4-4 4 4',
  download: 'M8 2.500v7.500M5 7.500l3 3 3-3M3 13.500h10',
  upload: 'M8 10.500V3M5 5.500l3-3 3 3M3 13.500h10',
  copy: 'M5.500 5.500h7v8h-7zM3.500 10.500v-8h7',
  again: 'M13 8a5 5 0 1 1-1.500-3.600M13 2.500v3h-3',
  edit: 'M3 13l.6-2.800 7-7 2.200 2.200-7 7z',
  trash: 'M3 4.500h10M6 4.500V3h4v1.500M4.500 4.500l.5 9h6l.5-9M6.800 7v4M9.200 7v4',
  stop: 'M4.500 4.500h7v7h-7z', pause: 'M5.500 4v8M10.500 4v8',
  menu: 'M2.500 4.500h11M2.500 8h11M2.500 11.500h11', more: 'M3.500 8h.01M8 8h.01M12.500 8h.01',
  sun: 'M8 10.800a2.800 2.800 0 1 0 0-5.600 2.800 2.800 0 0 0 0 5.600zM8 1.500v1.600M8 12.900v1.600M1.500 8h1.600M12.900 8h1.600M3.400 3.400l1.100 1.100M11.500 11.500l1.100 1.100M3.400 12.600l1.100-1.100M11.500 4.500l1.100-1.100',
  moon: 'M13 9.500A5.500 5.500 0 1 1 6.500 3a4.500 4.500 0 0 0 6.500 6.500z',
  half: 'M8 13.500a5.500 5.500 0 1 0 0-11zM8 2.500a5.500 5.500 0 0 0 0 11',
  key: 'M10.500 9A3.500 3.500 0 1 0 7.200 6.800L2.500 11.500v2h2.500v-1.500h1.500v-1.500l1.200-1.200c.8.5 1.800.7 2.800-.3zM10.800 5.200h.01',
  out: 'M9.500 3h3.500v10H9.500M7 5l-3 3 3 3M4 8h6.500',
  box: 'M8 2l5.500 2.800v6.400L8 14l-5.500-2.800V4.800zM2.500 4.800 8 7.600l5.500-2.800M8 7.600V14',
  dash: 'M8 13.500a5.500 5.500 0 1 0 0-11 5.500 5.500 0 0 0 0 11z',
  terminal: 'M2.500 3h11v10h-11zM5 6l2 2-2 2M8.500 10.500H11',
  gear: 'M8 10.200a2.200 2.200 0 1 0 0-4.400 2.200 2.200 0 0 0 0 4.400zM8 2v2M8 12v2M2 8h2M12 8h2M3.800 3.800l1.400 1.400M10.800 10.800l1.400 1.400M3.800 12.200l1.400-1.400M10.800 5.200l1.400-1.400',
  folder: 'M2.500 12.500v-9h4l1.500 2h5.500v7z',
};

export const Icon = ({ name, size = 16, class: extra, dashed }) => html`<svg class=${extra} width=${size} height=${size} viewBox="0 0 16 16"
  fill="none" stroke="currentColor" strokeWidth="1.500" strokeLinecap="round" strokeLinejoin="round" aria-hidden="true"
  strokeDasharray=${dashed ? '2.600 2.400' : undefined}><path d=${STROKES[name]} /></svg>`;

export const Spinner = ({ size = 14 }) => html`<svg class="turn" width=${size} height=${size} viewBox="0 0 16 16" fill="none" stroke="currentColor"
  strokeWidth="2" strokeLinecap="round" aria-hidden="true"><path d="M8 2.500A5.500 5.500 0 1 1 2.500 8" /></svg>`;

// Status -----------------------------------------------------------------------------------------------------------

const LOOKS = {
  queued: ['', 'dash', true], waiting: ['', 'clock'], running: ['busy', 'spin'], completed: ['good', 'check'], failed: ['bad', 'cross'],
  cancelled: ['', 'ban'], cancelling: ['warn', 'spin'], online: ['good', 'check'], offline: ['bad', 'cross'], error: ['bad', 'warn'], draining: ['warn', 'pause'],
  ready: ['good', 'check'], starting: ['busy', 'spin'], stopping: ['busy', 'spin'], stopped: ['', 'stop'], crashed: ['bad', 'cross'], unknown: ['warn', 'warn'],
  installing: ['busy', 'spin'], updating: ['busy', 'spin'], removing: ['busy', 'spin'], needs_config: ['warn', 'gear'], installed: ['', 'box'],
  ok: ['good', 'check'], warn: ['warn', 'warn'], fail: ['bad', 'cross'], degraded: ['warn', 'warn'], unavailable: ['bad', 'cross'], quarantined: ['bad', 'shield'],
  healthy: ['good', 'check'], unhealthy: ['bad', 'cross'], proven: ['good', 'check'], unproven: ['warn', 'clock'],
};
const WORDS = { needs_config: 'needs configuration', ok: 'ok', warn: 'look at it', fail: 'failed' };

export const lookOf = (status) => LOOKS[status] ?? ['', 'dash'];
export function Badge({ status, children, steady }) {
  const [kind, icon, dashed] = lookOf(steady && status === 'running' ? 'ready' : status);
  return html`<span class=${`badge ${kind}`}>${icon === 'spin' ? html`<${Spinner} size=${12} />` : html`<${Icon} name=${icon} size=${13} dashed=${dashed} />`}${children ?? WORDS[status] ?? status}</span>`;
}
export const Glyph = ({ status, size = 16 }) => {
  const [kind, icon, dashed] = lookOf(status);
  const colour = { good: 'good', bad: 'bad', warn: 'warn' }[kind] ?? 'soft';
  return html`<span class=${`glyph ${colour}`}>${icon === 'spin' ? html`<${Spinner} size=${size - 2} />` : html`<${Icon} name=${icon} size=${size} dashed=${dashed} />`}</span>`;
};
export const Tags = ({ of }) => (of?.length ? html`<span class="tags">${of.map((tag) => html`<span class="tag" key=${tag}>${tag}</span>`)}</span>` : null);

// Times ------------------------------------------------------------------------------------------------------------

export function Time({ at, otherwise = '–', future }) {
  useSignal(now);
  if (!at) return html`<span class="faint">${otherwise}</span>`;
  const moment = typeof at === 'number' ? at : Date.parse(at);
  return html`<time dateTime=${new Date(moment).toISOString()} title=${fullTime(moment)}>${future && moment < Date.now() ? 'now' : ago(moment)}</time>`;
}
export function Running({ since, until, ms }) {
  useSignal(now);
  if (ms != null) return html`<span>${lasted(ms)}</span>`;
  if (!since) return html`<span class="faint">–</span>`;
  return html`<span>${lasted((until ? Date.parse(until) : Date.now()) - Date.parse(since))}</span>`;
}

/** Who did something, by the name that people know. */
export function Actor({ of }) {
  const who = useSignal(me);
  const [kind, id] = (of ?? '').split(/:(.*)/);
  const keys = useRead(kind === 'key' ? '/api/keys' : null).data?.keys;
  const users = useRead(kind === 'user' && id !== who?.id && who?.role === 'a' ? '/api/users?limit=1000' : null).data?.users;
  const name = kind === 'user' ? (id === who?.id ? 'you' : users?.find((each) => each.id === id)?.username) : kind === 'key' ? keys?.find((each) => each.id === id)?.name : kind;
  return html`<span title=${of}>${kind === 'key' ? `key ${name ?? `…${id.slice(-6)}`}` : name ?? `${kind} …${(id ?? '').slice(-6)}`}</span>`;
}

// Toasts and dialogs ------------------------------------------------------------------------------------------------

const toasts = signal([]);
let toastNumber = 0;
export function toast(message, { kind = 'good', hint = '', link: where, lasts = kind === 'bad' ? 12_000 : 5000 } = {}) {
  const id = (toastNumber += 1);
  toasts.set((before) => [...before.slice(-3), { id, message, kind, hint, where }]);
  if (lasts) setTimeout(() => dismiss(id), lasts);
  return id;
}
export const dismiss = (id) => toasts.set((before) => before.filter((each) => each.id !== id));
export const complain = (problem) => {
  if (problem?.name === 'AbortError') return;
  toast(problem.message, { kind: 'bad', hint: problem instanceof Refusal ? problem.remedy : '' });
};
export function Toasts() {
  const shown = useSignal(toasts);
  return html`<div class="toasts" role="status" aria-live="polite">${shown.map((each) => html`<div key=${each.id} class=${`toast ${each.kind}`}>
    <div><div class="strong">${each.message}</div>${each.hint && html`<div class="soft small">${each.hint}</div>`}${each.where && html`<a href=${each.where[1]}>${each.where[0]}</a>`}</div>
    <button class="button quiet icon tiny" aria-label="Dismiss" onClick=${() => dismiss(each.id)}><${Icon} name="cross" size=${14} /></button></div>`)}</div>`;
}

export function Dialog({ title, onClose, children, foot, broad, bare, label }) {
  const ref = useRef(null);
  useLayoutEffect(() => {  // which ends while the element is still there, so that focus goes back to where it was
    const dialog = ref.current;
    if (!dialog.open) dialog.showModal();
    dialog.querySelector('form :is(input, textarea, select), [data-first]')?.focus();  // React's autoFocus came before it was open
    return () => dialog.close();
  }, []);
  const id = useId();
  return html`<dialog ref=${ref} class=${bare ? 'at-top' : undefined} aria-labelledby=${bare ? undefined : id} aria-label=${label} onCancel=${(event) => { event.preventDefault(); onClose(); }}
    onMouseDown=${(event) => event.target === ref.current && onClose()}>${bare ? children : html`<div class=${`dialog ${broad ? 'broad' : ''}`}>
    <div class="dialog-head"><h2 id=${id}>${title}</h2><button type="button" class="button quiet icon tiny" aria-label="Close" onClick=${onClose}><${Icon} name="cross" /></button></div>
    <div class="dialog-body">${children}</div>${foot && html`<div class="dialog-foot">${foot}</div>`}</div>`}</dialog>`;
}

const question = signal(null);
/** Ask before something that cannot be undone; resolves with true or false. */
export const confirm = (asked) => new Promise((resolve) => question.set({ ...asked, resolve }));
export function Confirmation() {
  const asked = useSignal(question);
  if (!asked) return null;
  const end = (answer) => { question.set(null); asked.resolve(answer); };
  return html`<${Dialog} title=${asked.title} onClose=${() => end(false)} foot=${html`<button class="button" onClick=${() => end(false)}>${asked.cancel ?? 'Back'}</button>
    <button class=${`button primary ${asked.danger ? 'danger' : ''}`} data-first onClick=${() => end(true)}>${asked.action}</button>`}><p>${asked.body}</p>${asked.more}<//>`;
}

export function Menu({ label, items, icon = 'more' }) {
  const [open, setOpen] = useState(false);
  const ref = useRef(null);
  useEffect(() => {
    if (!open) return undefined;
    const away = (event) => { if (!ref.current?.contains(event.target)) setOpen(false); };
    document.addEventListener('pointerdown', away);
    ref.current.querySelector('[role=menuitem]')?.focus();
    return () => document.removeEventListener('pointerdown', away);
  }, [open]);
  const move = (event) => {
    const all = [...ref.current.querySelectorAll('[role=menuitem]')];
    const at = all.indexOf(document.activeElement);
    if (event.key === 'ArrowDown') all[(at + 1) % all.length].focus();
    else if (event.key === 'ArrowUp') all[(at - 1 + all.length) % all.length].focus();
    else if (event.key === 'Escape') { setOpen(false); ref.current.querySelector('button').focus(); } else { if (event.key === 'Tab') setOpen(false); return; }
    event.preventDefault();
    event.stopPropagation();
  };
  const shown = items.filter(Boolean);
  if (!shown.length) return null;
  return html`<div class="menu" ref=${ref} onKeyDown=${open ? move : undefined}>
    <button class="button icon" aria-haspopup="menu" aria-expanded=${open} aria-label=${label} title=${label} onClick=${() => setOpen(!open)}><${Icon} name=${icon} /></button>
    ${open && html`<div class="menu-list" role="menu">${shown.map((item) => (item.href
      ? html`<a key=${item.label} role="menuitem" href=${item.href} download=${item.download} onClick=${() => setOpen(false)}><${Icon} name=${item.icon} />${item.label}</a>`
      : html`<button key=${item.label} role="menuitem" class=${item.danger ? 'danger' : ''} onClick=${() => { setOpen(false); item.act(); }}><${Icon} name=${item.icon} />${item.label}</button>`))}</div>`}</div>`;
}

// Buttons that wait for what they began ----------------------------------------------------------------------------

export function Act({ do: act, children, kind = '', icon, label, ...rest }) {
  const [busy, setBusy] = useState(false);
  const there = useRef(true);
  useEffect(() => { there.current = true; return () => { there.current = false; }; }, []);
  const run = async () => {
    setBusy(true);
    try { await act(); } catch (problem) { complain(problem); } finally { if (there.current) setBusy(false); }
  };
  return html`<button type="button" class=${`button ${kind}`} disabled=${busy} aria-label=${label} title=${label} onClick=${run} ...${rest}>${busy ? html`<${Spinner} />` : icon && html`<${Icon} name=${icon} />`}${children}</button>`;
}

export function Copy({ text, wrap }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } catch { toast('The browser did not let the text be copied.', { kind: 'bad', hint: 'Select it and press Ctrl+C.' }); }
  };
  return html`<span class=${`copy ${wrap ? 'wrap' : ''}`}><code tabIndex="0">${text}</code><button type="button" class="button quiet icon tiny" aria-label="Copy" title="Copy" onClick=${copy}><${Icon} name=${done ? 'check' : 'copy'} size=${14} /></button></span>`;
}

// Nothing, not yet, and not at all ----------------------------------------------------------------------------------

export const Empty = ({ icon = 'box', title, children, command, acts }) => html`<div class="empty"><${Icon} name=${icon} size=${32} class="big" /><h2>${title}</h2>${children && html`<p>${children}</p>`}
  ${acts && html`<div class="acts">${acts}</div>`}${command && html`<${Copy} text=${command} />`}</div>`;
export const Loading = ({ what = 'Loading' }) => html`<div class="loading" role="status"><${Spinner} /> ${what}…</div>`;
export const Problem = ({ of: problem, again }) => html`<div class="problem" role="alert"><${Icon} name="warn" /><div><div class="strong">${problem.message}</div>${problem.remedy && html`<div class="soft">${problem.remedy}</div>`}</div>
  ${again && html`<div class="acts"><${Act} kind="tiny" do=${again}>Try again<//></div>`}</div>`;

/** Show what was read once it is there. */
export function Read({ of, children }) {
  if (of.data === undefined) return of.error ? html`<${Problem} of=${of.error} again=${of.reload} />` : html`<${Loading} />`;
  return children(of.data);
}

export const Head = ({ title, sub, back, children, badge }) => html`<div>${back && html`<a class="crumb" href=${back[1]}><${Icon} name="left" size=${14} />${back[0]}</a>`}
  <header class="head"><div><h1>${title}</h1>${sub && html`<div class="head-sub">${sub}</div>`}</div>${badge}${children && html`<div class="acts">${children}</div>`}</header></div>`;
export const Card = ({ title, acts, children, flush, class: extra = '' }) => html`<section class=${`card ${extra}`}>${title && html`<div class="card-head"><h2>${title}</h2>${acts && html`<div class="acts">${acts}</div>`}</div>`}${flush ? children : html`<div class="card-body">${children}</div>`}</section>`;
export const Facts = ({ of }) => html`<dl class="facts">${of.filter(Boolean).filter(([, value]) => value !== null && value !== undefined && value !== '').map(([name, value]) => html`<${FactRow} key=${name} name=${name} value=${value} />`)}</dl>`;
const FactRow = ({ name, value }) => html`<dt>${name}</dt><dd>${value}</dd>`;

export function Segments({ options, value, onChange, label }) {
  return html`<div class="segments" role="group" aria-label=${label}>${options.map(([name, text, number]) => html`<button key=${name} type="button" aria-pressed=${value === name} onClick=${() => onChange(name)}>${text}${number != null && html`<span class="n">${count(number)}</span>`}</button>`)}</div>`;
}

export function Search({ value, onChange, placeholder, wait_ms = 200 }) {
  const [text, setText] = useState(value);
  const ref = useRef(null);
  const sent = useRef(value);
  useEffect(() => { if (value !== sent.current) { sent.current = value; setText(value); } }, [value]);
  useEffect(() => {
    if (text === sent.current) return undefined;
    const timer = setTimeout(() => { sent.current = text; onChange(text); }, wait_ms);
    return () => clearTimeout(timer);
  }, [text]);
  useKeys({ '/': () => { ref.current.focus(); ref.current.select(); return true; } });
  return html`<div class="search"><${Icon} name="search" /><input ref=${ref} type="search" class="input" value=${text} placeholder=${placeholder} aria-label=${placeholder}
    onChange=${(event) => setText(event.target.value)} onKeyDown=${(event) => { if (event.key === 'Escape') { setText(''); ref.current.blur(); } }} /></div>`;
}

// Fields -----------------------------------------------------------------------------------------------------------

export function Field({ label, hint, wrong, children, ...rest }) {
  const id = useId();
  const about = [hint && `${id}h`, wrong && `${id}w`].filter(Boolean).join(' ') || undefined;
  const shared = { id, 'aria-describedby': about, 'aria-invalid': wrong ? true : undefined };
  return html`<div class="field"><label htmlFor=${id}>${label}</label>${children ? children(shared) : html`<input class="input" ...${shared} ...${rest} />`}
    ${hint && html`<span class="hint" id=${`${id}h`}>${hint}</span>`}${wrong && html`<span class="wrong" id=${`${id}w`}>${wrong}</span>`}</div>`;
}

/** A form's values, what was refused of them, and how it is sent. */
export function useForm(initial, send) {
  const [values, setValues] = useState(initial);
  const [wrong, setWrong] = useState({});
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const set = (name, value) => { setValues((before) => ({ ...before, [name]: value })); setWrong((before) => ({ ...before, [name]: undefined })); };
  const bind = (name) => ({ name, value: values[name] ?? '', onChange: (event) => set(name, event.target.value), wrong: wrong[name] });
  const submit = async (event) => {
    event?.preventDefault();
    setBusy(true);
    setProblem(null);
    setWrong({});
    try { await send(values); } catch (error) {
      if (error.name !== 'AbortError') { setProblem(error); setWrong(error.details ?? {}); }
    } finally { setBusy(false); }
  };
  return { values, set, setValues, bind, wrong, problem, busy, submit };
}

// Windows on long lists ----------------------------------------------------------------------------------------------

/** Say which of `total` rows of one height are in view, and keep saying it. */
export function useWindow(ref, total, height, margin = 12) {
  const [range, setRange] = useState([0, 40]);
  const look = useCallback(() => {
    const box = ref.current;
    if (!box) return;
    const first = Math.max(0, Math.floor(box.scrollTop / height) - margin);
    const last = Math.min(total, Math.ceil((box.scrollTop + box.clientHeight) / height) + margin);
    setRange((before) => (before[0] === first && before[1] === last ? before : [first, last]));
  }, [total, height]);
  useLayoutEffect(() => {
    const box = ref.current;
    look();
    box.addEventListener('scroll', look, { passive: true });
    const sizes = new ResizeObserver(look);
    sizes.observe(box);
    return () => { box.removeEventListener('scroll', look); sizes.disconnect(); };
  }, [look]);
  return range;
}

/** j, k, Enter and x in a list; answers which row is at hand. */
export function useRoving(total, { open, pick, reveal, mine = () => true, active = true }) {
  const [at, setAt] = useState(-1);
  const move = (by) => {
    if (!total || !mine()) return false;
    const next = Math.max(0, Math.min(total - 1, at < 0 && by < 0 ? total - 1 : at + by));
    setAt(next);
    reveal?.(next);
    return true;
  };
  useEffect(() => { if (at >= total) setAt(total - 1); }, [total]);
  useKeys({
    j: () => move(1), k: () => move(-1), ArrowDown: (event) => !typing(event.target) && move(1), ArrowUp: (event) => !typing(event.target) && move(-1),
    Enter: (event) => { if (at < 0 || !mine() || event.target.closest('a, button, summary')) return false; open?.(at); return true; },
    x: () => { if (at < 0 || !pick || !mine()) return false; pick(at); return true; },
  }, active);
  return [at, setAt];
}

/** A table of few rows that j and k walk through, and Enter opens. */
export function List({ columns, rows, keyOf, open, label, folds = true }) {
  const body = useRef(null);
  const mine = () => {
    const all = [...document.querySelectorAll('table.walked')];
    return (all.find((table) => table.contains(document.activeElement)) ?? all[0])?.contains(body.current);
  };
  const [at] = useRoving(rows.length, {
    mine,
    open: open && ((index) => { location.hash = open(rows[index]); }),
    reveal: (index) => body.current?.children[index]?.scrollIntoView({ block: 'nearest' }),
  });
  return html`<div class="wide-table"><table class=${`list walked ${folds ? 'folds' : ''}`} aria-label=${label}><thead><tr>${columns.map((column) => html`<th key=${column.name} scope="col" class=${column.right ? 'right' : ''}>${column.unseen ? html`<span class="unseen">${column.name}</span>` : column.name}</th>`)}</tr></thead>
    <tbody ref=${body}>${rows.map((row, index) => html`<tr key=${keyOf(row)} class=${index === at ? 'at' : ''}>${columns.map((column) => html`<td key=${column.name} class=${column.right ? 'right' : ''} data-name=${column.named ? column.name : undefined}>${column.show(row)}</td>`)}</tr>`)}</tbody></table></div>`;
}

// Lines, drawn by hand -----------------------------------------------------------------------------------------------

export function Spark({ values, most, label }) {
  const points = values.map((value, index) => [values.length < 2 ? 100 : (index / (values.length - 1)) * 100, 30 - (Math.min(value, most || 1) / (most || 1)) * 28]);
  const line = points.map(([x, y], index) => `${index ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}`).join('');
  return html`<svg class="spark" viewBox="0 0 100 32" preserveAspectRatio="none" role="img" aria-label=${label}><path d=${`${line}L100 32L${points[0]?.[0] ?? 100} 32Z`} fill="var(--accent-wash)" /><path d=${line} fill="none" stroke="var(--accent)" strokeWidth="1.500" vectorEffect="non-scaling-stroke" /></svg>`;
}

/** uPlot, loaded when the first chart is shown. */
export function Chart({ series, from, step_s = 60, format, label, height = 180, stacked }) {
  const box = useRef(null);
  const plot = useRef(null);
  const data = useMemo(() => [series[0].values.map((_, index) => from / 1000 + index * step_s), ...series.map((each) => each.values)], [series, from]);
  const latest = useRef(data);
  latest.current = data;
  useEffect(() => {
    let over = false;
    let sizes;
    let watching;
    import('./chart.js').then(({ draw }) => {
      if (over) return;
      const make = () => { plot.current?.destroy(); plot.current = draw(box.current, latest.current, series, { format, height, stacked }); };
      make();
      sizes = new ResizeObserver(() => plot.current?.setSize({ width: box.current.clientWidth, height }));
      sizes.observe(box.current);
      watching = new MutationObserver(make);
      watching.observe(document.documentElement, { attributeFilter: ['data-theme'] });
    });
    return () => { over = true; sizes?.disconnect(); watching?.disconnect(); plot.current?.destroy(); plot.current = null; };
  }, []);
  useEffect(() => { plot.current?.setData(data); }, [data]);
  return html`<div class="chart" ref=${box} role="img" aria-label=${label} style=${{ height }}></div>`;
}
