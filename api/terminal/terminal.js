// Whoever is signed in here hands a token that counts once to the command line: to the port that it listens on, on this
// machine alone, or, where there is no such port, to whoever copies it.
const asked = new URLSearchParams(location.search);
const port = Number(asked.get('port'));
const state = asked.get('state') ?? '';
const listens = Number.isInteger(port) && port >= 1024 && port <= 65535 && /^[\w-]{16,100}$/.test(state);
const $ = (id) => document.getElementById(id);

function show(id) {
  for (const part of ['login', 'question', 'handover', 'done']) $(part).hidden = part !== id;
  $(id).querySelector('input, button')?.focus();
}

async function call(method, path, body) {
  const answer = await fetch(path, {
    method, body: body && JSON.stringify(body), headers: body ? { 'Content-Type': 'application/json' } : {},
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(told.message ?? told.error ?? `The server answered ${answer.status}.`), { status: answer.status });
  return told;
}

async function attempt(what) {
  $('problem').hidden = true;
  try {
    await what();
  } catch (problem) {
    if (problem.status === 401 && $('login').hidden) return show('login');
    $('problem').textContent = problem.message;
    $('problem').hidden = false;
  }
}

async function begin() {
  const me = await call('GET', '/api/auth/me');
  $('who').textContent = me.username;
  $('compare').hidden = !listens;
  $('code').textContent = listens ? `${state.slice(0, 4)}-${state.slice(4, 8)}` : '';
  show('question');
}

$('login').addEventListener('submit', (event) => {
  event.preventDefault();
  attempt(async () => {
    const account = $('account').value.trim();
    await call('POST', '/api/auth/login', { [account.includes('@') ? 'email' : 'username']: account, password: $('password').value });
    $('password').value = '';
    await begin();
  });
});

$('allow').addEventListener('click', () => attempt(async () => {
  const { token } = await call('POST', '/api/auth/token');
  if (listens) {
    location.replace(`http://127.0.0.1:${port}/?${new URLSearchParams({ state, token })}`);
  } else {
    $('token').textContent = token;
    show('handover');
  }
}));
$('deny').addEventListener('click', () => show('done'));
$('copy').addEventListener('click', () => attempt(() => navigator.clipboard.writeText($('token').textContent)));

attempt(begin);
