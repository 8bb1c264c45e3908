// A log as it is written: a window on its lines, with search, following, times, and what repeats folded away.
//
// A list of our own: lines that one searches, folds, links to and copies, and that a screen reader reads. What moves the
// cursor is seen as it was meant in the other view, terminal.js.
import { clockTime, count, fullTime, get, html, plural, refine, remembered, route, useCallback, useEffect, useKeys, useLayoutEffect, useMemo, useRef, useSignal, useState } from './kit.js';
import { Icon } from './parts.js';

const HEIGHT = 20;
const LONGEST = 4000;
/** So many lines are kept; of a longer log the first ones are left to the download. */
const MOST = 200_000;

// Lines, and what they look like -------------------------------------------------------------------------------------

/** Control sequences as ECMA-48 has them, `[1;31m` and `[?25l` alike; strings such as titles and links; then any other control. */
const ESCAPE = /\x1b\[([0-?]*)[ -/]*([@-~])|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
export const plain = (text) => text.replace(ESCAPE, '');

/** Split a line with colours into pieces: [text, classes]. */
export function pieces(text) {
  const found = [];
  let style = {};
  let from = 0;
  const add = (until) => { if (until > from) found.push([text.slice(from, until), Object.values(style).filter(Boolean).join(' ')]); };
  for (const match of text.matchAll(ESCAPE)) {
    add(match.index);
    from = match.index + match[0].length;
    if (match[2] !== 'm') continue;
    const codes = (match[1] || '0').split(/[;:]/).map(Number);
    for (let at = 0; at < codes.length; at += 1) {
      const code = codes[at];
      if (code === 0) style = {};
      else if (code === 1) style.weight = 'b';
      else if (code === 2) style.weight = 'd';
      else if (code === 3) style.slant = 'i';
      else if (code === 4) style.line = 'u';
      else if (code === 22) style.weight = '';
      else if (code === 39) style.colour = '';
      else if (code >= 30 && code <= 37) style.colour = `c${code - 30}`;
      else if (code >= 90 && code <= 97) style.colour = `c${code - 90}`;
      else if (code === 38 || code === 48) at += codes[at + 1] === 5 ? 2 : 4;
    }
  }
  add(text.length);
  return found;
}

const PROGRESS = /^\s*(?:HOSTLER_PROGRESS=|::progress\b)|\b\d{1,3}(?:\.\d+)?\s?%|[━█▉▊▋▌▍▎▏#=]{6,}[>\s.━-]*|\b\d+(?:\.\d+)?\s?[kMG]i?B\/s\b/;
const DIRECTIVE = /^\s*(?:HOSTLER_PROGRESS=|::progress\b)/;
const GROUP = /^::group::(.*)/;
const GROUP_END = /^::endgroup::/;

/** The lines of a log, as they come in, and what is folded of them. */
export class Lines {
  constructor() {
    Object.assign(this, { all: [], open: { stdout: null, stderr: null }, next: 0, folded: new Map(), version: 0, first: 1, gaps: [] });
  }

  /** Take output whose first line is `seq`; a line that has no end yet is gone on with. */
  take({ data, stream, seq, attempt, at }) {
    this.version += 1;
    let number = seq;
    let rest = data;
    while (rest) {
      const end = rest.indexOf('\n');
      const text = end < 0 ? rest : rest.slice(0, end);
      const begun = this.open[stream];
      if (begun && begun.n === number) this.write(begun, begun.raw + text); else if (!(this.next > number)) this.write(this.add({ n: number, stream, attempt, at }), text);
      if (end < 0) { this.open[stream] = this.all.at(-1)?.n === number ? this.all.at(-1) : begun; break; }
      this.open[stream] = null;
      this.next = Math.max(this.next, number + 1);
      number += 1;
      rest = rest.slice(end + 1);
    }
    if (this.all.length > MOST) { this.all.splice(0, this.all.length - MOST); this.rows_ = null; }
  }

  add(line) {
    const before = this.all.at(-1);
    if (before && line.attempt > before.attempt) this.all.push({ n: line.n, kind: 'attempt', attempt: line.attempt, text: `Attempt ${line.attempt}`, at: line.at });
    this.all.push(line);
    return line;
  }

  write(line, raw) {
    // a carriage return goes back to the line's beginning: what was written last is what one would see, and all that is kept
    let end = raw.length;
    while (end > 0 && raw[end - 1] === '\r') end -= 1;
    const back = end > 0 ? raw.lastIndexOf('\r', end - 1) + 1 : 0;
    line.over ||= back > 0;
    line.raw = back > 0 ? raw.slice(back) : raw;
    const visible = raw.slice(back, end);
    line.cut = visible.length > LONGEST;
    line.text = visible.slice(0, LONGEST);
    line.progress = line.over || PROGRESS.test(visible);
    line.directive = DIRECTIVE.test(visible);
    line.group = GROUP.exec(visible)?.[1];
    line.groupEnd = GROUP_END.test(visible);
  }

  /** Return what is shown: lines, and in place of what is folded one row each. */
  rows(unfolded) {
    const shown = [];
    for (let at = 0; at < this.all.length; at += 1) {
      const line = this.all[at];
      if (line.groupEnd) continue;
      if (line.group !== undefined) {
        let end = at + 1;
        while (end < this.all.length && !this.all[end].groupEnd && this.all[end].group === undefined) end += 1;
        const folded = unfolded.get(line.n) === false;
        shown.push({ ...line, kind: 'group', folded, text: line.group || 'Group', hides: end - at - 1 });
        if (folded) at = end - 1;
        continue;
      }
      if (line.progress) {
        let end = at + 1;
        while (end < this.all.length && this.all[end].progress) end += 1;
        if (end - at >= 4) {
          const folded = !unfolded.get(line.n);
          const live = end === this.all.length;
          shown.push({ n: line.n, kind: 'fold', folded, hides: end - at - (live ? 1 : 0), at: line.at, text: '' });
          if (folded) {
            if (live) shown.push(this.all[end - 1]);
            at = end - 1;
            continue;
          }
          for (; at < end; at += 1) shown.push(this.all[at]);
          at -= 1;
          continue;
        }
      }
      shown.push(line);
    }
    return shown;
  }
}

// What a job prints, over a socket of its own that goes on where it broke off ------------------------------------------

/** Tell `hear` of every message of a job's stream, from its first line on, whatever breaks off; answers how to stop. */
export function followJob(jobId, hear, tellState) {
  let after = '';
  let over = false;
  let failures = 0;
  let timer = 0;
  let socket;
  const open = () => {
    const address = new URL('/api/jobs/stream', location.href);
    address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:';
    address.searchParams.set('jobId', jobId);
    if (after) address.searchParams.set('after', after);
    socket = new WebSocket(address);
    socket.onopen = () => { failures = 0; tellState('live'); };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      after = message.id || after;
      hear(message);
    };
    socket.onclose = ({ code }) => {
      if (over) return;
      if (code === 1000) { tellState('ended'); return; }
      if (code === 4404) { tellState('gone'); return; }
      failures += 1;
      tellState('connecting');
      timer = setTimeout(open, Math.min(5000, 150 * 2 ** Math.min(failures, 6)));
    };
  };
  open();
  return () => { over = true; clearTimeout(timer); socket.close(); };
}

/** In place of lines that are no longer kept. */
export const gapWords = ({ from, to }) => `… lines ${from} to ${to} are no longer kept …\n`;

export function useJobLog(jobId, hear) {
  const [lines, setLines] = useState(() => new Lines());
  const [version, setVersion] = useState(0);
  const [state, setState] = useState('connecting');
  const told = useRef(hear);
  told.current = hear;
  useEffect(() => {
    const mine = new Lines();
    setLines(mine);
    let drawing = 0;
    const draw = () => { drawing ||= requestAnimationFrame(() => { drawing = 0; setVersion((number) => number + 1); }); };
    const stop = followJob(jobId, (message) => {
      if (message.type === 'job.output') mine.take({ ...message, at: Date.now() });
      else if (message.type === 'stream.gap') mine.take({ data: gapWords(message), stream: 'stderr', seq: message.from, attempt: mine.all.at(-1)?.attempt ?? 1 });
      else told.current?.(message);
      draw();
    }, setState);
    get(`/api/jobs/${encodeURIComponent(jobId)}/log/times`).then(({ times }) => { mine.times = times; draw(); }, () => {});
    return () => { stop(); cancelAnimationFrame(drawing); };
  }, [jobId]);
  return { lines, version, state };
}

/** When a line came: told by the server for those that were there before, else when it came here. */
function timeOf(lines, line) {
  const times = lines.times;
  if (!times?.length || line.n > times.at(-1)[0] + 1000) return line.at;
  let low = 0;
  let high = times.length - 1;
  if (line.n < times[0][0]) return null;
  while (low < high) { const middle = (low + high + 1) >> 1; if (times[middle][0] <= line.n) low = middle; else high = middle - 1; }
  return low === times.length - 1 && line.at > times[low][1] + 2000 ? line.at : times[low][1];
}

// The view -----------------------------------------------------------------------------------------------------------

export function LogView({ lines, version, live, waiting, download, filename, tools }) {
  const box = useRef(null);
  const { query } = useSignal(route);
  const [follow, setFollow] = useState(!query.line);
  const [times, setTimes] = useState(remembered.get('times', false));
  const [text, setText] = useState('');
  const [hit, setHit] = useState(0);
  const [unfolded, setUnfolded] = useState(new Map());
  const [range, setRange] = useState([0, 60]);
  const seek = useRef(null);
  const rows = useMemo(() => lines.rows(unfolded), [lines, version, unfolded]);
  const wanted = text.toLowerCase();
  const hits = useMemo(() => {
    if (!wanted) return [];
    const found = [];
    for (let at = 0; at < rows.length && found.length < 10_000; at += 1) if (plain(rows[at].text ?? '').toLowerCase().includes(wanted)) found.push(at);
    return found;
  }, [rows, wanted]);
  const look = useCallback(() => {
    const { scrollTop, clientHeight } = box.current;
    const first = Math.max(0, Math.floor(scrollTop / HEIGHT) - 15);
    const last = Math.ceil((scrollTop + clientHeight) / HEIGHT) + 15;
    setRange((before) => (before[0] === first && before[1] === last ? before : [first, last]));
  }, []);
  const programmatic = useRef(0);
  const scrollTo = (top) => { programmatic.current = Date.now(); box.current.scrollTop = top; look(); };
  useLayoutEffect(() => { if (follow) scrollTo(rows.length * HEIGHT); }, [rows.length, follow]);
  useEffect(() => {
    const element = box.current;
    const scrolled = () => {
      look();
      const atEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - HEIGHT;
      if (Date.now() - programmatic.current > 150) setFollow(atEnd);
    };
    element.addEventListener('scroll', scrolled, { passive: true });
    const sizes = new ResizeObserver(look);
    sizes.observe(element);
    return () => { element.removeEventListener('scroll', scrolled); sizes.disconnect(); };
  }, []);
  const reveal = (row) => { setFollow(false); scrollTo(Math.max(0, row * HEIGHT - box.current.clientHeight / 2)); };
  const step = (by) => { if (!hits.length) return; const next = (hit + by + hits.length) % hits.length; setHit(next); reveal(hits[next]); };
  useEffect(() => { if (hits.length) { setHit(0); reveal(hits[0]); } }, [wanted]);
  const marked = Number(query.line) || 0;
  const arrived = useRef(false);
  useEffect(() => {
    if (!marked || arrived.current) return;
    const row = rows.findIndex((each) => each.n === marked && each.kind !== 'attempt');
    if (row >= 0) { arrived.current = true; reveal(row); }
  }, [rows.length, marked]);
  const toggleTimes = () => { setTimes(!times); remembered.set('times', !times); };
  const toggle = (row) => setUnfolded((before) => new Map(before).set(row.n, row.folded));
  useKeys({ f: () => { setFollow(!follow); return true; }, t: () => { toggleTimes(); return true; }, '/': () => { seek.current.focus(); seek.current.select(); return true; } });
  const current = hits[hit];
  return html`<div class="log"><div class="log-bar">
      <div class="search"><${Icon} name="search" /><input ref=${seek} class="input" type="search" placeholder="Search the log" aria-label="Search the log" value=${text} onChange=${(event) => setText(event.target.value)}
        onKeyDown=${(event) => { if (event.key === 'Enter') { event.preventDefault(); step(event.shiftKey ? -1 : 1); } if (event.key === 'Escape') { setText(''); seek.current.blur(); } }} /></div>
      ${wanted && html`<span class="small soft nowrap" role="status">${hits.length ? `${count(hit + 1)} of ${hits.length === 10_000 ? '10,000 or more' : count(hits.length)}` : 'not found'}</span>
        <button class="button icon tiny" aria-label="Previous" onClick=${() => step(-1)} disabled=${!hits.length}><${Icon} name="up" /></button><button class="button icon tiny" aria-label="Next" onClick=${() => step(1)} disabled=${!hits.length}><${Icon} name="down" /></button>`}
      <span class="acts" style=${{ marginLeft: 'auto' }}>${tools}
        <button class="button tiny" aria-pressed=${times} onClick=${toggleTimes} title="Show when each line came (t)"><${Icon} name="clock" /><span class="label">Times</span></button>
        <button class="button tiny" aria-pressed=${follow} onClick=${() => setFollow(!follow)} title="Stay at the end (f)"><${Icon} name="download" /><span class="label">Follow</span></button>
        ${download && html`<a class="button icon tiny" href=${download} download=${filename} aria-label="Download the log" title="Download the log"><${Icon} name="file" /></a>`}</span></div>
    <div class="log-lines" ref=${box} tabIndex="0" role="log" aria-label="Log" aria-live="off">
      ${rows.length === 0 ? html`<div class="empty soft">${waiting}</div>` : html`<div class="log-space" style=${{ height: rows.length * HEIGHT + 8 }}>${rows.slice(range[0], range[1]).map((row, index) => html`<${Line} key=${`${row.kind ?? ''}${row.n}`} row=${row} top=${(range[0] + index) * HEIGHT + 4}
        here=${row.n === marked} time=${times ? timeOf(lines, row) : undefined} wanted=${wanted} now=${range[0] + index === current} toggle=${toggle} />`)}</div>`}
    </div></div>`;
}

function Line({ row, top, here, time, wanted, now, toggle }) {
  const stamp = time !== undefined && html`<span class="t" title=${time ? fullTime(time) : 'When it came is not known any more'}>${time ? clockTime(time) : '--:--:--'}</span>`;
  const style = { top };
  if (row.kind === 'attempt') return html`<div class="log-line cap" style=${style}><span class="n"></span>${stamp}<span>── ${row.text} ──</span></div>`;
  if (row.kind === 'fold' || row.kind === 'group') {
    return html`<div class="log-line cap" style=${style}><span class="n">${row.kind === 'group' ? row.n : ''}</span>${stamp}<button class="fold" aria-expanded=${!row.folded} onClick=${() => toggle(row)}>${row.folded ? '▸' : '▾'} ${row.kind === 'group' ? row.text : `${plural(row.hides, 'line')} of progress`}</button></div>`;
  }
  return html`<div class=${`log-line ${row.directive ? 'aside' : row.stream === 'stderr' ? 'err' : ''} ${here ? 'here' : ''}`} style=${style}>
    <a class="n" href="#" tabIndex="-1" aria-label=${`Line ${row.n}`} onClick=${(event) => { event.preventDefault(); refine({ line: here ? '' : row.n }); }}>${row.n}</a>${stamp}<span class="x"><${Text} of=${row.text ?? ''} wanted=${wanted} now=${now} />${row.cut && html`<span class="faint"> … ${count(row.raw.length - LONGEST)} more characters in the download</span>`}</span></div>`;
}

function Text({ of, wanted, now }) {
  if (!of.includes('\x1b') && !wanted) return plain(of);
  return pieces(of).map(([text, classes], index) => html`<span key=${index} class=${classes}>${wanted ? marks(text, wanted, now) : text}</span>`);
}

function marks(text, wanted, now) {
  const found = [];
  const lower = text.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
    found.push(text.slice(from, at), html`<mark key=${at} class=${now ? 'now' : ''}>${text.slice(at, at + wanted.length)}</mark>`);
    from = at + wanted.length;
  }
  return [...found, text.slice(from)];
}
