// The dialog of a product that brings a schema for its configuration, but no component of its own.
//
// It is served from /api/products/<instance>/config-component.js, so what it needs is told by its own address; what the
// page that shows it passes (config, schema, onSave) goes before that.
import { createElement as h, useEffect, useState } from '/api/shim/react.js';

const base = new URL('.', import.meta.url);
const MASK = '********';

async function ask(path, init) {
  const answer = await fetch(new URL(path, base), { credentials: 'same-origin', ...init });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(told.error ?? `Hostler answered ${answer.status}.`), { details: told.details });
  return told;
}

const post = (config) =>
  ask('configure', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ config }) });

const typeOf = (part) => [part.type].flat().find((each) => each && each !== 'null') ?? 'string';
const isSecret = (part) => part['x-secret'] === true || part.writeOnly === true;
const isSimple = (part) => part.enum || ['string', 'integer', 'number', 'boolean'].includes(typeOf(part));

/** What stands in a field at first: the value as text, and JSON for what is no simple value. */
const shown = (part, value) =>
  typeOf(part) === 'boolean' && !part.enum ? value === true
    : value === undefined ? '' : isSimple(part) && typeof value !== 'object' ? String(value) : JSON.stringify(value, null, 2);

/** The value that a field's text means; undefined for an empty one, which is left out. */
function meant(part, text) {
  if (typeof text === 'boolean') return text;
  if (text === '') return undefined;
  if (part.enum) return part.enum.find((each) => String(each) === text) ?? text;
  if (['integer', 'number'].includes(typeOf(part))) return Number.isNaN(Number(text)) ? text : Number(text);
  return isSimple(part) ? text : JSON.parse(text);
}

function Field({ name, part, text, required, problem, onText }) {
  const common = { id: `config-${name}`, name, required, 'aria-invalid': Boolean(problem) };
  const change = (event) => onText(event.target.value);
  const control = part.enum
    ? h('select', { ...common, value: text, onChange: change },
        [h('option', { key: '', value: '' }), ...part.enum.map((each) => h('option', { key: String(each) }, String(each)))])
    : typeOf(part) === 'boolean'
      ? h('input', { ...common, required: false, type: 'checkbox', checked: text, onChange: (event) => onText(event.target.checked) })
      : isSimple(part)
        ? h('input', { ...common, value: text, onChange: change, autoComplete: 'off', step: 'any',
            type: isSecret(part) ? 'password' : typeOf(part) === 'string' ? 'text' : 'number' })
        : h('textarea', { ...common, value: text, onChange: change, rows: 6, spellCheck: false });
  return h('p', null,
    h('label', { htmlFor: common.id }, part.title ?? name, required ? ' *' : ''), h('br'), control,
    part.description ? h('small', null, h('br'), part.description) : null,
    problem ? h('strong', { role: 'alert' }, h('br'), problem) : null);
}

export default function Form({ config, schema, onSave }) {
  const [known, setKnown] = useState(schema ? { config: config ?? {}, schema } : null);
  const [texts, setTexts] = useState({});
  const [told, setTold] = useState({});
  useEffect(() => {
    if (!known) ask('config').then(setKnown, (error) => setTold({ message: error.message }));
  }, []);
  if (!known) return h('p', { role: 'status' }, told.message ?? 'Loading…');

  const parts = Object.entries(known.schema?.properties ?? {});
  const required = known.schema?.required ?? [];
  const text = ([name, part]) => texts[name] ?? shown(part, known.config[name] ?? part.default);

  async function save(event) {
    event.preventDefault();
    setTold({ message: 'Saving…' });
    try {
      const given = parts.map(([name, part]) => [name, meant(part, text([name, part]))]);
      const others = Object.entries(known.config).filter(([name]) => !parts.some(([each]) => each === name));
      const kept = Object.fromEntries([...others, ...given.filter(([, value]) => value !== undefined)]);
      await (onSave ?? post)(kept);
      setTold({ message: 'Saved; it is being deployed.' });
    } catch (error) {
      setTold({ message: error.message, details: error.details });
    }
  }

  return h('form', { onSubmit: save, noValidate: true },
    parts.map(([name, part]) => h(Field, {
      key: name, name, part, text: text([name, part]), required: required.includes(name),
      problem: told.details?.[`config.${name}`], onText: (value) => setTexts({ ...texts, [name]: value }),
    })),
    parts.some(([, part]) => isSecret(part)) ? h('p', null, h('small', null, `${MASK} leaves a secret as it is.`)) : null,
    h('button', { type: 'submit' }, 'Save'),
    h('p', { role: 'status' }, told.message ?? ''));
}
