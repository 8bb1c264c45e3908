// Makes ES modules of React's CommonJS packages: `make vendor`, or `npm install && npm run build` here.
//
// React publishes no ES modules. A page whose components come from several places must still run on one React, so
// react.js holds the only copy, and the other two import it by its relative address.
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { build } from 'esbuild';

process.env.NODE_ENV = 'production';
const require = createRequire(import.meta.url);

/** Spell out the names that a CommonJS package exports, which an ES module has to declare. */
const names = (id) => Object.keys(require(id)).filter((name) => /^[A-Za-z_]\w*$/.test(name));
const reexport = (id, known) => `export { ${known.join(', ')} } from '${id}';`;

const dom = names('react-dom');
const client = names('react-dom/client').filter((name) => !dom.includes(name));
const entries = {
  'react.js': `${reexport('react', names('react'))}\nexport { default } from 'react';`,
  'react-jsx-runtime.js':
    `export { jsx, jsxs } from 'react/jsx-runtime';\nexport { Fragment } from './react.js';`,
  'react-dom.js':
    `${reexport('react-dom', dom)}\n${reexport('react-dom/client', client)}\nexport { default } from 'react-dom';`,
};

const oneReact = {
  name: 'one-react',
  setup(build) {
    build.onResolve({ filter: /^\.\/react\.js$/ }, ({ path }) => ({ path, external: true }));
    if (build.initialOptions.outfile === 'react.js') return;
    build.onResolve({ filter: /^react$/ }, () => ({ path: 'react', namespace: 'one-react' }));
    build.onLoad({ filter: /.*/, namespace: 'one-react' }, () => ({ contents: `export * from './react.js';` }));
  },
};

const version = (id) => JSON.parse(readFileSync(require.resolve(`${id}/package.json`))).version;
const files = [];
for (const [outfile, contents] of Object.entries(entries)) {
  await build({
    stdin: { contents, resolveDir: '.' },
    outfile,
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    legalComments: 'inline',
    define: { 'process.env.NODE_ENV': '"production"' },
    plugins: [oneReact],
  });
  const bytes = readFileSync(outfile);
  files.push({ file: outfile, bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') });
}
const packages = Object.fromEntries(['react', 'react-dom', 'scheduler', 'esbuild'].map((id) => [id, version(id)]));
const licence = readFileSync(require.resolve('react/package.json').replace('package.json', 'LICENSE'));
writeFileSync('LICENSE.react.txt', licence);
writeFileSync('manifest.json', `${JSON.stringify({ licence: 'MIT (LICENSE.react.txt)', packages, files }, null, 2)}\n`);
