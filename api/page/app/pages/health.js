// Health: what Hostler stands on, what `hostler doctor` finds, and how to mend it.
import { html, lasted, useMay, useRead } from '../kit.js';
import { Act, Badge, Card, Copy, Glyph, Head, Read, Time } from '../parts.js';

const NAMES = { redis: 'Redis', objectStore: 'Object store', scheduler: 'Scheduler', workers: 'Workers' };
const ORDER = { fail: 0, warn: 1, ok: 2 };

export default function Health() {
  const operator = useMay('w');
  const ready = useRead('/api/health/ready', { every: 10_000, about: (event) => event.type.startsWith('worker.') });
  const checks = useRead(operator ? '/api/health/checks' : null, { every: 60_000 });
  const version = useRead('/api/health').data?.version;
  return html`<${Head} title="Health" sub=${version && `Hostler ${version}`} badge=${ready.data && html`<${Badge} status=${ready.data.status} />`}>${operator && html`<${Act} icon="again" do=${async () => { await Promise.all([ready.reload(), checks.reload()]); }}>Check again<//>`}<//>
    <div class="grid"><div class="figures"><${Read} of=${ready}>${({ checks: list }) => list.map((check) => html`<div class="figure" key=${check.name}><span class="name"><${Glyph} status=${check.status === 'ok' ? 'ok' : 'fail'} size=${14} />${NAMES[check.name] ?? check.name}</span><span class="value">${check.status === 'ok' ? lasted(check.latencyMs) : 'away'}</span><span class="under">${check.message ?? 'answers'}</span></div>`)}<//></div>
    ${operator && html`<${Card} title="What doctor says" flush acts=${checks.data && html`<span class="faint small">checked <${Time} at=${checks.data.checkedAt} /></span>`}><${Read} of=${checks}>${({ checks: list }) => html`<table class="list"><thead class="unseen"><tr><th>Check</th><th>What was found</th></tr></thead><tbody>${[...list].sort((one, other) => ORDER[one.status] - ORDER[other.status]).map((check, index) => html`<tr key=${index}><td class="nowrap" style=${{ verticalAlign: 'top' }}><${Glyph} status=${check.status} /> <span class="strong">${check.name}</span><span class="unseen"> ${check.status}</span></td><td style=${{ width: '100%', overflowWrap: 'anywhere' }}>${check.message}${check.remedy && html`<div class="soft small">${check.remedy}</div>`}</td></tr>`)}</tbody></table>`}<//><//>`}
    <${Card} title="From a terminal"><div class="grid" style=${{ justifyItems: 'start' }}><${Copy} text="hostler doctor" /><a href="/api/docs" target="_blank" rel="noopener">API reference</a></div><//></div>`;
}
