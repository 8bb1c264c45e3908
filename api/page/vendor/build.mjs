// Copies what the page and its tests need from npm, minified: `make vendor`, or `npm install && npm run build` here.
//
// React is not among it: the page runs on the one that api/cuby/vendored serves, as the components of products do.
import { createHash } from 'node:crypto';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { build } from 'esbuild';

const require = createRequire(import.meta.url);
const folder = (id) => `node_modules/${id}`;
const about = (id) => JSON.parse(readFileSync(`${folder(id)}/package.json`));
const sum = (path) => {
  const bytes = readFileSync(path);
  return { bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
};

const modules = [
  { id: 'htm', from: 'dist/htm.module.js', file: 'htm.js', licence: 'LICENSE' },
  { id: 'uplot', from: 'dist/uPlot.esm.js', file: 'uplot.js', licence: 'LICENSE' },
  { id: 'uplot', from: 'dist/uPlot.min.css', file: 'uplot.css' },
];

const packages = [];
for (const { id, from, file, licence } of modules) {
  await build({
    entryPoints: [`${folder(id)}/${from}`], outfile: file, minify: true, target: 'es2022', legalComments: 'inline',
    format: file.endsWith('.js') ? 'esm' : undefined,
  });
  if (licence) copyFileSync(`${folder(id)}/${licence}`, `LICENSE.${id}.txt`);
  const { version, license } = about(id);
  packages.push({ package: id, version, licence: `${license} (LICENSE.${id}.txt)`, from, file, ...sum(file) });
}
const react = JSON.parse(readFileSync('../../cuby/vendored/manifest.json'));
for (const { file, bytes, sha256 } of react.files) {
  packages.push({
    package: file.startsWith('react-dom') ? 'react-dom' : 'react', version: react.packages.react,
    licence: 'MIT (../../cuby/vendored/LICENSE.react.txt)', file: `../../cuby/vendored/${file}`, bytes, sha256,
  });
}

// for the tests alone: what holds each page against the accessibility guidelines
copyFileSync(`${folder('axe-core')}/axe.min.js`, '../../../tests/page/axe.min.js');
const { version: axe, license: axeLicence } = about('axe-core');
packages.push({ package: 'axe-core', version: axe, licence: axeLicence, file: '../../../tests/page/axe.min.js', ...sum('../../../tests/page/axe.min.js') });

writeFileSync('manifest.json', `${JSON.stringify({ packages }, null, 2)}\n`);
