// Users and keys: who may do what, and the keys by which programs act for them.
import { checkIn, html, me, post, put, refine, remove, route, useMay, useRead, useSignal, useState } from '../kit.js';
import { Act, Card, Copy, Dialog, Empty, Field, Head, Icon, List, Menu, Problem, Read, Spinner, Time, complain, confirm, toast, useForm } from '../parts.js';

const ROLES = { r: ['viewer', 'reads everything'], w: ['operator', 'changes jobs and apps too'], a: ['admin', 'does everything'] };
const Role = ({ of }) => html`<span class=${`badge plain ${of === 'a' ? 'busy' : ''}`} title=${ROLES[of][1]}>${ROLES[of][0]}</span>`;

function RoleField({ value, onChange, most = 'a' }) {
  const order = 'rwa';
  return html`<${Field} label="Role" hint=${`It ${ROLES[value][1]}.`}>${(shared) => html`<select class="input" value=${value} onChange=${(event) => onChange(event.target.value)} ...${shared}>${[...order].filter((each) => order.indexOf(each) <= order.indexOf(most)).map((each) => html`<option key=${each} value=${each}>${ROLES[each][0]}</option>`)}</select>`}<//>`;
}

export default function People() {
  const admin = useMay('a');
  const { query } = useSignal(route);
  const close = () => refine({ new: '', user: '' });
  const [all, setAll] = useState(false);
  const users = useRead(admin ? '/api/users?limit=1000' : null);
  const keys = useRead(`/api/keys${all ? '?all=true' : ''}`);
  const names = new Map((users.data?.users ?? []).map((user) => [user.id, user.username]));
  const who = useSignal(me);
  return html`<${Head} title="Users and keys" />
    <div class="grid">${admin && html`<${Card} flush title="Users" acts=${html`<button class="button tiny" onClick=${() => refine({ new: 'user' })}><${Icon} name="plus" />Add a user</button>`}><${Read} of=${users}>${({ users: list }) => html`<${List} label="Users" rows=${list} keyOf=${(user) => user.id} columns=${[
      { name: 'User', show: (user) => html`<span class="strong">${user.username}</span>${user.id === who?.id && html` <span class="faint small">you</span>`}<div class="faint small">${user.email}</div>` }, { name: 'Role', show: (user) => html`<${Role} of=${user.role} />` }, { name: 'Added', named: true, show: (user) => html`<${Time} at=${user.createdAt} />` },
      { name: 'Actions', unseen: true, right: true, show: (user) => html`<${Menu} label=${`Change ${user.username}`} items=${[{ label: 'Change', icon: 'edit', act: () => refine({ user: user.id }) }, { label: 'Delete', icon: 'trash', danger: true, act: () => discard(user, users.reload) }]} />` }]} />`}<//><//>`}
    <${Card} flush title="API keys" acts=${html`${admin && html`<button class="button tiny" aria-pressed=${all} onClick=${() => setAll(!all)}>Everybody’s</button>`}<button class="button tiny" onClick=${() => refine({ new: 'key' })}><${Icon} name="plus" />Create a key</button>`}><${Read} of=${keys}>${({ keys: list }) => (list.length ? html`<${List} label="API keys" rows=${list} keyOf=${(key) => key.id} columns=${[
      { name: 'Key', show: (key) => html`<span class="strong">${key.name}</span><div class="faint small mono">${key.prefix}…</div>` }, { name: 'Role', show: (key) => html`<${Role} of=${key.role} />${key.scope && html` <span class="faint small">${key.scope} alone</span>`}` }, all && { name: 'Owner', named: true, show: (key) => names.get(key.userId) ?? key.userId }, { name: 'Created', named: true, show: (key) => html`<${Time} at=${key.createdAt} />` },
      { name: 'Actions', unseen: true, right: true, show: (key) => html`<${Act} kind="tiny danger" icon="trash" do=${() => revoke(key, keys.reload)}>Revoke<//>` }].filter(Boolean)} />` : html`<${Empty} icon="key" title="No key" command="hostler keys create ci --role operator">A key lets programs act for you, with your role or a lesser one.<//>`)}<//><//>
    <${Card} title="You"><div class="acts"><span>${who?.username}, <${Role} of=${who?.role ?? 'r'} /></span></div><//></div>
    ${query.new === 'user' && admin && html`<${NewUser} close=${close} done=${users.reload} />`}${query.new === 'key' && html`<${NewKey} close=${close} done=${keys.reload} />`}
    ${query.user && admin && users.data && html`<${EditUser} key=${query.user} user=${users.data.users.find((each) => each.id === query.user)} close=${close} done=${users.reload} />`}`;
}

async function discard(user, reload) {
  if (!(await confirm({ title: `Delete ${user.username}?`, body: 'Sessions and API keys of it end at once. Its jobs stay.', action: 'Delete the user', danger: true }))) return;
  try { await remove(`/api/users/${user.id}`); toast(`${user.username} is gone.`); reload(); } catch (problem) { complain(problem); }
}

async function revoke(key, reload) {
  if (!(await confirm({ title: `Revoke ${key.name}?`, body: 'Programs that use it are refused at once.', action: 'Revoke it', danger: true }))) return;
  await remove(`/api/keys/${key.id}`);
  reload();
}

function NewUser({ close, done }) {
  const form = useForm({ username: '', email: '', password: '', role: 'w' }, async (values) => { await post('/api/users', values); toast(`${values.username} is added.`); done(); close(); });
  return html`<${Dialog} title="Add a user" onClose=${close}><form class="form" onSubmit=${form.submit}>${form.problem && html`<${Problem} of=${form.problem} />`}
    <div class="pair"><${Field} label="User name" required autoFocus autoComplete="off" ...${form.bind('username')} /><${Field} label="Email" type="email" required autoComplete="off" ...${form.bind('email')} /></div>
    <${Field} label="Password" type="password" required minLength="8" autoComplete="new-password" hint="8 characters or more; hand it over by another way." ...${form.bind('password')} /><${RoleField} value=${form.values.role} onChange=${(role) => form.set('role', role)} />
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy && html`<${Spinner} />`}Add</button></div></form><//>`;
}

function EditUser({ user, close, done }) {
  const form = useForm({ username: user?.username, email: user?.email, role: user?.role, password: '' }, async (values) => {
    const changes = Object.fromEntries(Object.entries(values).filter(([name, value]) => value && value !== user[name]));
    if (Object.keys(changes).length) await put(`/api/users/${user.id}`, changes);
    toast(`${values.username} is changed.`);
    done();
    if (user.id === me.get()?.id) checkIn();
    close();
  });
  if (!user) return null;
  return html`<${Dialog} title=${`Change ${user.username}`} onClose=${close}><form class="form" onSubmit=${form.submit}>${form.problem && html`<${Problem} of=${form.problem} />`}
    <div class="pair"><${Field} label="User name" required ...${form.bind('username')} /><${Field} label="Email" type="email" required ...${form.bind('email')} /></div>
    <${RoleField} value=${form.values.role} onChange=${(role) => form.set('role', role)} /><${Field} label="New password" type="password" minLength="8" autoComplete="new-password" hint="Empty: it stays. A new one ends its sessions and keys." ...${form.bind('password')} />
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy && html`<${Spinner} />`}Save</button></div></form><//>`;
}

function NewKey({ close, done }) {
  const who = useSignal(me);
  const [made, setMade] = useState(null);
  const form = useForm({ name: '', role: 'r' }, async (values) => { setMade(await post('/api/keys', values)); done(); });
  if (made) return html`<${Dialog} title=${`The key ${made.name}`} onClose=${close} foot=${html`<button class="button primary" onClick=${close}>I have it</button>`}><p>It is shown this once. Programs send it as <code>X-API-Key</code>.</p><${Copy} wrap text=${made.key} /><p class="soft">For the command line:</p><${Copy} wrap text=${`export HOSTLER_URL=${location.origin} HOSTLER_API_KEY=${made.key}`} /><//>`;
  return html`<${Dialog} title="Create a key" onClose=${close}><form class="form" onSubmit=${form.submit}>${form.problem && html`<${Problem} of=${form.problem} />`}<${Field} label="Name" required maxLength="100" autoFocus placeholder="ci" hint="What it is for." ...${form.bind('name')} /><${RoleField} value=${form.values.role} most=${who.role} onChange=${(role) => form.set('role', role)} />
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy && html`<${Spinner} />`}Create</button></div></form><//>`;
}
