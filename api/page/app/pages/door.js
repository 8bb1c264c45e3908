// Before anybody is known: sign in, or, on an installation without users, make the first admin.
import { checkIn, html, post, useRead } from '../kit.js';
import { Field, Icon, Problem, Spinner, useForm } from '../parts.js';

const Brand = () => html`<div class="brand"><img src=${new URL('../icon.svg', import.meta.url)} width="32" height="32" alt="" />Hostler</div>`;

function SignIn() {
  const form = useForm({ name: '', password: '' }, async ({ name, password }) => {
    await post('/api/auth/login', name.includes('@') ? { email: name, password } : { username: name, password });
    await checkIn();
  });
  const { wrong: _, ...name } = form.bind('name');
  return html`<form class="card" onSubmit=${form.submit}><${Brand} /><div><h1>Sign in</h1></div>
    ${form.problem && html`<${Problem} of=${{ message: form.problem.message, remedy: form.problem.status === 401 ? 'Check both, capitals too.' : form.problem.remedy }} />`}
    <${Field} label="Email or user name" autoComplete="username" autoFocus required autoCapitalize="none" ...${name} />
    <${Field} label="Password" type="password" autoComplete="current-password" required ...${form.bind('password')} />
    <button class="button primary wide" disabled=${form.busy}>${form.busy && html`<${Spinner} />`}Sign in</button>
    <p class="small faint">After <code>hostler up</code>, its data folder holds the password in <code>admin.json</code>; in a terminal it also prints a link that signs you in once.</p></form>`;
}

function SetUp() {
  const form = useForm({ username: 'admin', email: '', password: '' }, async (values) => { await post('/api/auth/setup', values); await checkIn(); });
  return html`<form class="card" onSubmit=${form.submit}><${Brand} /><div><h1>Welcome</h1><p class="soft">Nobody is here yet. Make the first account: it may do everything, and add others.</p></div>
    ${form.problem && html`<${Problem} of=${form.problem} />`}
    <${Field} label="User name" autoComplete="username" required ...${form.bind('username')} />
    <${Field} label="Email" type="email" autoComplete="email" required autoFocus ...${form.bind('email')} />
    <${Field} label="Password" type="password" autoComplete="new-password" minLength="8" required hint="8 characters or more." ...${form.bind('password')} />
    <button class="button primary wide" disabled=${form.busy}>${form.busy ? html`<${Spinner} />` : html`<${Icon} name="check" />`}Begin</button></form>`;
}

export default function Door() {
  const { data, loading } = useRead('/api/auth/setup');
  if (loading) return html`<main class="door" aria-busy="true"></main>`;  // no field that is gone in a moment
  return html`<main class="door">${data?.needed ? html`<${SetUp} />` : html`<${SignIn} />`}</main>`;
}
