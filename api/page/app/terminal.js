// A job's output as a terminal shows it, by xterm.js: cursor movements, progress bars and whole screens; read, not typed into.
import { html, theme, useEffect, useRef } from './kit.js';
import { followJob, gapWords } from './log.js';
import { Terminal } from './vendor/xterm.js';
import { FitAddon } from './vendor/xterm-fit.js';

const sheet = document.createElement('link');
sheet.rel = 'stylesheet';
sheet.href = new URL('./vendor/xterm.css', import.meta.url);
document.head.append(sheet);

/** What programs take a terminal's size to be where they are not told: it is never narrower. */
const COLUMNS = 80;
/** The largest that shows all columns is taken. */
const FONT_SIZES = [13, 12, 11];
const KEPT_LINES = 20_000;
const COLOURS = ['black', 'red', 'green', 'yellow', 'blue', 'magenta', 'cyan', 'white'];

function colours() {
  const style = getComputedStyle(document.documentElement);
  const token = (name) => style.getPropertyValue(name).trim();
  const bright = (name) => `bright${name[0].toUpperCase()}${name.slice(1)}`;
  return {
    background: token('--log'), foreground: token('--text'), cursor: token('--log'), cursorAccent: token('--log'), selectionBackground: token('--mark'),
    ...Object.fromEntries(COLOURS.flatMap((name, at) => [[name, token(`--a${at}`)], [bright(name), token(`--a${at}`)]])),
  };
}

/** Show the output of a job in `box`; answers how to stop. */
function show(box, jobId, tellState) {
  const terminal = new Terminal({
    convertEol: true, disableStdin: true, scrollback: KEPT_LINES, lineHeight: 1.3, fontFamily: getComputedStyle(box).fontFamily,
    cursorInactiveStyle: 'none', minimumContrastRatio: 4.5, theme: colours(),
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(box);
  terminal.textarea.readOnly = true;
  terminal.textarea.setAttribute('aria-label', 'Output of the job');
  const moves = { PageUp: () => terminal.scrollPages(-1), PageDown: () => terminal.scrollPages(1), ArrowUp: () => terminal.scrollLines(-1), ArrowDown: () => terminal.scrollLines(1), Home: () => terminal.scrollToTop(), End: () => terminal.scrollToBottom() };
  terminal.attachCustomKeyEventHandler((event) => {  // nothing is typed here: Tab leaves it, keys move through it
    if (event.type === 'keydown' && moves[event.key]) { moves[event.key](); event.preventDefault(); }
    return false;
  });
  const resize = () => {
    let size;
    for (const fontSize of FONT_SIZES) {
      terminal.options.fontSize = fontSize;
      size = fit.proposeDimensions();
      if (size?.cols >= COLUMNS) break;
    }
    if (size?.rows > 1) terminal.resize(Math.max(COLUMNS, size.cols || 0), size.rows);
  };
  resize();
  const sizes = new ResizeObserver(resize);
  sizes.observe(box);
  let attempt = 1;
  const stop = followJob(jobId, (message) => {
    if (message.type === 'stream.gap') terminal.write(gapWords(message));
    if (message.type !== 'job.output') return;
    if (message.attempt > attempt) {
      attempt = message.attempt;
      terminal.write(`\x1b[0m\r\n── Attempt ${attempt} ──\r\n`);
    }
    terminal.write(message.data);
  }, tellState);
  const unwatch = theme.watch(() => { terminal.options.theme = colours(); });
  return () => { stop(); unwatch(); sizes.disconnect(); terminal.dispose(); };
}

export default function TerminalView({ jobId, tools }) {
  const box = useRef(null);
  useEffect(() => show(box.current, jobId, () => {}), [jobId]);
  return html`<div class="log"><div class="log-bar"><span class="small soft">As a terminal shows it</span><span class="acts" style=${{ marginLeft: 'auto' }}>${tools}</span></div>
    <div class="log-lines terminal" ref=${box} role="region" aria-label="Terminal"></div></div>`;
}
