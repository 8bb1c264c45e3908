// The catalogue: what can be installed, from here and from the marketplace above, and the wizard that installs it.
import { ask, html, plural, post, refine, route, to, upload, useMay, useRead, useRef, useSignal, useState } from '../kit.js';
import { Act, Badge, Card, Dialog, Empty, Field, Head, Icon, Menu, Problem, Read, Search, Spinner, complain, confirm, toast, useForm } from '../parts.js';
import { Own } from './app.js';
import { publishExample } from './overview.js';
import { FINISHED } from '../words.js';

const about = (event) => event.type.startsWith('product.') || event.type === 'app.removed' || event.type === 'app.status';

export default function Catalogue() {
  const operator = useMay('w');
  const { query } = useSignal(route);
  const read = useRead('/api/marketplace/products', { about });
  const [text, setText] = useState('');
  const [adding, setAdding] = useState('');
  const close = () => { setAdding(''); refine({ install: '' }); };
  return html`<${Head} title="Catalogue">${operator && html`<button class="button" onClick=${() => setAdding('package')}><${Icon} name="box" />Add a package</button><button class="button primary" onClick=${() => setAdding('archive')}><${Icon} name="upload" />Publish</button>`}<//>
    <${Read} of=${read}>${({ products, upstream }) => {
      const shown = products.filter((each) => `${each.id} ${each.name} ${each.description}`.toLowerCase().includes(text.toLowerCase()));
      const chosen = query.install && products.find((each) => each.id === query.install);
      return html`${upstream.configured && !upstream.available && html`<div class="note warn" style=${{ marginBottom: 16 }}>The marketplace above cannot be asked, so its products are missing: ${upstream.message}</div>`}
        ${products.length === 0 ? html`<${Card}><${Empty} icon="store" title="The catalogue is empty" command="hostler products publish examples/hello-web" acts=${operator && html`<${Act} kind="primary" icon="box" do=${publishExample}>Add the example app<//>`}>A product is a folder with a hostler.toml, packed; or a package of npm or PyPI.<//><//>`
          : html`<div class="bar"><${Search} placeholder="Search products" value=${text} onChange=${setText} wait_ms=${60} /><span class="faint small" role="status">${plural(shown.length, 'product')}</span></div><div class="cards">${shown.map((each) => html`<${Product} key=${each.id} product=${each} operator=${operator} reload=${read.reload} />`)}</div>`}
        ${chosen && operator && html`<${Wizard} product=${chosen} close=${close} />`}`;
    }}<//>
    ${adding === 'archive' && html`<${Publish} close=${close} done=${read.reload} />`}${adding === 'package' && html`<${Package} close=${close} done=${read.reload} />`}`;
}

function Product({ product, operator, reload }) {
  const discard = async () => {
    if (!(await confirm({ title: `Remove ${product.id} ${product.version} from the catalogue?`, body: 'Apps that have it installed keep it; it cannot be installed any more.', action: 'Remove it', danger: true }))) return;
    try { await ask('DELETE', `/api/releases/${encodeURIComponent(product.id)}/${encodeURIComponent(product.version)}`); reload(); } catch (problem) { complain(problem); }
  };
  return html`<section class="card card-body" style=${{ display: 'flex', flexDirection: 'column', gap: 12 }}><div style=${{ display: 'flex', gap: 8, alignItems: 'flex-start' }}><div style=${{ minWidth: 0 }}><h2>${product.name}</h2><div class="faint small mono">${product.id} ${product.version}</div></div>
    <span style=${{ marginLeft: 'auto' }}>${product.source === 'marketplace' ? html`<span class="badge plain">marketplace</span>` : product.npmPackage ? html`<span class="badge plain">npm</span>` : null}</span></div>
    <p class="soft small" style=${{ flex: 1 }}>${product.description || 'It does not say what it is.'}</p>
    ${product.instances.length > 0 && html`<div class="acts">${product.instances.map((each) => html`<a key=${each.instanceId} href=${to('apps', each.instanceId)}><${Badge} status=${each.status} steady>${each.instanceId}${each.updateAvailable ? ', update there is' : ''}<//></a>`)}</div>`}
    ${operator && html`<div class="acts"><button class="button primary" onClick=${() => refine({ install: product.id })}><${Icon} name="download" />Install</button>${product.source === 'local' && html`<${Menu} label=${`More about ${product.id}`} items=${[{ label: `Remove ${product.version}`, icon: 'trash', danger: true, act: discard }]} />`}</div>`}</section>`;
}

// The wizard: where, then what it is configured with, then watching it come up --------------------------------------------

const STEPS = [['where', 'Where'], ['install', 'Install'], ['configure', 'Configure'], ['ready', 'Ready']];

function Wizard({ product, close }) {
  const [installed, setInstalled] = useState(null);
  const path = installed && `/api/apps/${encodeURIComponent(installed.instanceId)}`;
  const app = useRead(path, { about: (event) => event.instanceId === installed?.instanceId, every: 2000 });
  const job = useRead(installed && `/api/jobs/status?jobId=${installed.jobId}`, { about: (event) => event.jobId === installed?.jobId, every: 2000 });
  const state = app.data;
  const failed = state?.phase === 'failed' || (job.data?.job.status === 'failed' && state?.phase !== 'needs_config');
  const step = !installed ? 'where' : state?.phase === 'needs_config' ? 'configure' : state?.status === 'running' || state?.status === 'stopped' || state?.status === 'completed' ? 'ready' : 'install';
  return html`<${Dialog} title=${`Install ${product.name}`} onClose=${close} foot=${step === 'ready' || (installed && step !== 'configure') ? html`<a class="button ${step === 'ready' ? 'primary' : ''}" href=${to('apps', installed.instanceId)}>${step === 'ready' ? 'See it' : 'Go on without me'}</a>` : null}>
    <ol class="steps">${STEPS.map(([name, words]) => html`<li key=${name} aria-current=${name === step ? 'step' : undefined}>${words}</li>`)}</ol>
    ${step === 'where' && html`<${Where} product=${product} done=${setInstalled} />`}
    ${step === 'install' && (failed ? html`<${Problem} of=${{ message: state?.error || job.data?.job.message || 'It could not be installed.', remedy: 'Its job’s log says more.' }} /><p><a href=${to('jobs', installed.jobId)}>The job’s log</a></p>`
      : html`<div role="status"><${Spinner} /> ${state?.message || (job.data && !FINISHED.has(job.data.job.status) ? 'It is being installed.' : 'It is about to start.')}</div><div class="meter" role="progressbar" aria-label="Progress" aria-valuenow=${state?.progress ?? 0}><i style=${{ width: `${state?.progress ?? 3}%` }}></i></div>`)}
    ${step === 'configure' && html`<${Configure} app=${state} reload=${app.reload} />`}
    ${step === 'ready' && html`<div style=${{ display: 'flex', gap: 12, alignItems: 'center' }}><${Badge} status=${state.status} steady /><span><span class="strong">${state.instanceId}</span> on ${state.node}</span></div>`}<//>`;
}

function Where({ product, done }) {
  const workers = useRead('/api/workers/list?limit=1000').data?.workers ?? [];
  const form = useForm({ alias: '', node: '', version: product.version, autostart: true }, async (values) => {
    let answer;
    if (product.source === 'marketplace') {
      const [first] = (await post('/api/install', { products: [{ productId: product.id, ...(values.alias && { alias: values.alias }), ...(values.node && { node: values.node }) }] })).products;
      answer = first;
    } else {
      answer = await post('/api/apps', { product: product.id, version: values.version, autostart: values.autostart, ...(values.alias && { alias: values.alias }), ...(values.node && { node: values.node }) });
    }
    done(answer);
  });
  const { values, set } = form;
  const online = workers.filter((each) => each.status === 'online' && each.kind !== 'agent');
  return html`<form class="form" onSubmit=${form.submit}>${form.problem && html`<${Problem} of=${form.problem} />`}
    ${product.versions.length > 1 && html`<${Field} label="Version">${(shared) => html`<select class="input" value=${values.version} onChange=${(event) => set('version', event.target.value)} ...${shared}>${product.versions.map((each) => html`<option key=${each}>${each}</option>`)}</select>`}<//>`}
    <${Field} label="Node" hint=${online.length ? '' : 'No node is online; it is installed when one is.'} wrong=${form.wrong.node}>${(shared) => html`<select class="input" value=${values.node} onChange=${(event) => set('node', event.target.value)} ...${shared}><option value="">The least loaded that fits</option>${online.map((each) => html`<option key=${each.workerId} value=${each.workerId}>${each.workerId}${each.tags.length ? ` (${each.tags.join(', ')})` : ''}</option>`)}</select>`}<//>
    <${Field} label="Alias" hint=${product.installed ? 'It is installed already; another instance needs an alias of its own.' : 'Needed only beside another instance of it.'} placeholder="optional" pattern="[a-z0-9][\\-a-z0-9]*" ...${form.bind('alias')} />
    <label class="tick"><input type="checkbox" checked=${values.autostart} onChange=${(event) => set('autostart', event.target.checked)} /><span>Start it after its node was rebooted</span></label>
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy ? html`<${Spinner} />` : html`<${Icon} name="download" />`}Install</button></div></form>`;
}

function Configure({ app, reload }) {
  const read = useRead(`/api/products/${encodeURIComponent(app.instanceId)}/config`);
  const save = async (config) => { await ask('POST', `/api/products/${encodeURIComponent(app.instanceId)}/configure`, { config }); reload(); };
  return html`<${Read} of=${read}>${({ config, schema, productId }) => html`<div class="own-component"><${Own} which="config" id=${app.instanceId} version=${app.version} productId=${productId} config=${config} schema=${schema} onSave=${save} /></div>`}<//>`;
}

// Publishing -----------------------------------------------------------------------------------------------------------

function Publish({ close, done }) {
  const [share, setShare] = useState(null);
  const [problem, setProblem] = useState(null);
  const [over, setOver] = useState(false);
  const input = useRef(null);
  const send = async (file) => {
    if (!file) return;
    setProblem(null);
    setShare(0);
    try {
      const kept = await upload(file, setShare).done;
      const release = await post('/api/releases', { fileId: kept.fileId });
      toast(`${release.name} ${release.version} is in the catalogue.`);
      done();
      close();
    } catch (refusal) { setProblem(refusal); setShare(null); }
  };
  return html`<${Dialog} title="Publish a product" onClose=${close}><p class="soft">An archive, zip or tar, whose folder holds a <code>hostler.toml</code>.</p>${problem && html`<${Problem} of=${problem} />`}
    ${share === null ? html`<div class=${`drop ${over ? 'over' : ''}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${(event) => { event.preventDefault(); setOver(false); send(event.dataTransfer.files[0]); }} onClick=${(event) => event.target === event.currentTarget && input.current.click()}><${Icon} name="upload" size=${22} /><div>Drop it here, or <button type="button" class="button tiny" onClick=${() => input.current.click()}>choose it</button></div><input ref=${input} type="file" hidden onChange=${(event) => send(event.target.files[0])} /></div>`
      : html`<div class="meter" role="progressbar" aria-label="Upload" aria-valuenow=${Math.round(share * 100)}><i style=${{ width: `${share * 100}%` }}></i></div>`}
    <div><${Act} icon="box" do=${async () => { await publishExample(); done(); close(); }}>Publish the example app instead<//></div><//>`;
}

function Package({ close, done }) {
  const form = useForm({ kind: 'npm', package: '', product: '', version: '' }, async (values) => {
    await post('/api/releases', { product: values.product, source: { kind: values.kind, package: values.package, ...(values.version && { version: values.version }) } });
    toast(`${values.product} is in the catalogue.`);
    done();
    close();
  });
  return html`<${Dialog} title="Add a package" onClose=${close}><form class="form" onSubmit=${form.submit}>${form.problem && html`<${Problem} of=${form.problem} />`}<p class="soft">A package of npm or PyPI that brings a <code>hostler.toml</code>. For one that does not: <code>hostler products add</code>.</p>
    <div class="pair"><${Field} label="Registry">${(shared) => html`<select class="input" value=${form.values.kind} onChange=${(event) => form.set('kind', event.target.value)} ...${shared}><option value="npm">npm</option><option value="pypi">PyPI</option></select>`}<//><${Field} label="Package" required ...${form.bind('package')} /></div>
    <div class="pair"><${Field} label="Product’s name here" required pattern="[a-z0-9][\\-a-z0-9]*" ...${form.bind('product')} /><${Field} label="Version" placeholder="the newest" ...${form.bind('version')} /></div>
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy && html`<${Spinner} />`}Add it</button></div></form><//>`;
}
