// The apps of the fleet: what each is and does, and the few things that are done to them every day.
import { html, plural, to, useMay, useRead, useState } from '../kit.js';
import { Act, Badge, Card, Empty, Head, Icon, List, Read, Search, Time, toast } from '../parts.js';
import { publishExample } from './overview.js';
import { change } from '../words.js';

const about = (event) => event.type.startsWith('app.') || event.type.startsWith('worker.');
const instances = (app) => {
  const wished = app.processes.reduce((sum, each) => sum + (each.running ? each.scale : 0), 0);
  const there = app.processes.reduce((sum, each) => sum + each.instances.filter((one) => one.state === 'running').length, 0);
  return wished || there ? `${there} of ${wished}` : '–';
};

export default function Apps() {
  const operator = useMay('w');
  const read = useRead('/api/apps?limit=1000&sort=-createdAt', { about, every: 30_000 });
  const [text, setText] = useState('');
  const act = (app, action, told) => async () => { await change(app.instanceId, action); toast(told); read.reload(); };
  return html`<${Head} title="Apps">${operator && html`<a class="button primary" href="#/catalogue"><${Icon} name="plus" />Install</a>`}<//>
    <${Read} of=${read}>${({ apps }) => {
      if (!apps.length) return html`<${Card}><${Empty} icon="apps" title="No app is installed" command="hostler apps install hello-web" acts=${operator && html`<${Act} kind="primary" icon="box" do=${publishExample}>Install the example app<//><a class="button" href="#/catalogue">Catalogue</a>`}>An app is a product that runs on a node: started, watched and restarted there, updated beside the old release, and rolled back when it does not come up.<//><//>`;
      const shown = apps.filter((app) => `${app.instanceId} ${app.name} ${app.product} ${app.node} ${app.status}`.toLowerCase().includes(text.toLowerCase()));
      return html`<div class="bar"><${Search} placeholder="Search apps" value=${text} onChange=${setText} wait_ms=${60} /><span class="faint small" role="status">${plural(shown.length, 'app')}</span></div>
        <${Card} flush><${List} label="Apps" rows=${shown} keyOf=${(app) => app.instanceId} open=${(app) => to('apps', app.instanceId)} columns=${[
          { name: 'App', show: (app) => html`<a class="strong" href=${to('apps', app.instanceId)}>${app.instanceId}</a><div class="faint small">${app.name}</div>` },
          { name: 'Status', show: (app) => html`<${Badge} status=${app.status} steady />${app.error && html`<div class="bad small cut" style=${{ maxWidth: 300 }} title=${app.error}>${app.error}</div>`}` },
          { name: 'Version', named: true, show: (app) => html`<span class="mono small">${app.version}</span>` },
          { name: 'Instances', named: true, show: instances },
          { name: 'Node', named: true, show: (app) => html`<a class="soft" href=${to('workers', app.node)}>${app.node}</a>${!app.nodeOnline && html` <span class="bad small">silent</span>`}` },
          { name: 'Changed', named: true, show: (app) => html`<span class="soft"><${Time} at=${app.updatedAt} /></span>` },
          { name: 'Actions', unseen: true, right: true, show: (app) => operator && html`<span class="acts">${app.status === 'needs_config' ? html`<a class="button tiny" href=${`${to('apps', app.instanceId)}?view=configuration`}>Configure</a>`
            : ['running', 'starting'].includes(app.status) ? html`<${Act} kind="tiny icon quiet" icon="again" label=${`Restart ${app.instanceId}`} do=${act(app, 'restart', 'It is being restarted.')} /><${Act} kind="tiny icon quiet" icon="stop" label=${`Stop ${app.instanceId}`} do=${act(app, 'stop', 'It is being stopped.')} />`
              : ['stopped', 'crashed', 'installed', 'failed', 'completed'].includes(app.status) ? html`<${Act} kind="tiny icon quiet" icon="play" label=${`Start ${app.instanceId}`} do=${act(app, 'start', 'It is being started.')} />` : null}</span>` },
        ]} />${shown.length === 0 && html`<div class="card-body soft">No app is called that.</div>`}<//>`;
    }}<//>`;
}
