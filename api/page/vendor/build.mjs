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

/**
 * xterm.js writes its colours and sizes into <style> elements and `style` attributes, which the page's policy forbids; a
 * sheet that a script makes, and a style that it sets, are not inline to it. Stops where xterm.js is not as expected.
 */
const withoutInlineStyle = {
  name: 'without-inline-style',
  setup: (building) => building.onLoad({ filter: /@xterm.xterm.lib.xterm\.mjs$/ }, ({ path }) => {
    let changed = 0;
    const change = (text, pattern, by) => text.replace(pattern, (...found) => { changed += 1; return by(...found); });
    let contents = readFileSync(path, 'utf8');
    contents = change(contents, /([\w.]+)\.createElement\("style"\)/g, (_, document) => `madeSheet(${document})`);
    contents = change(contents, /(\w+)\.setAttribute\("style",`\$\{\1\.getAttribute\("style"\)\|\|""\}\$\{(\w+)\};`\)/g, (_, element, style) => `${element}.style.cssText+=${style}`);
    if (changed !== 4 || /setAttribute\("style"|insertAdjacentHTML|innerHTML/.test(contents)) throw new Error('xterm.js writes its styles in another way now: look at withoutInlineStyle.');
    return { contents: `${contents}
function madeSheet(document) {
  const sheet = new CSSStyleSheet(), element = document.createElement("template"), remove = element.remove;
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, "textContent", { set: (text) => sheet.replaceSync(text) });
  element.remove = () => { remove.call(element); document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== sheet); };
  return element;
}`, loader: 'js' };
  }),
};

const modules = [
  { id: 'htm', from: 'dist/htm.module.js', file: 'htm.js', licence: 'LICENSE' },
  { id: 'uplot', from: 'dist/uPlot.esm.js', file: 'uplot.js', licence: 'LICENSE' },
  { id: 'uplot', from: 'dist/uPlot.min.css', file: 'uplot.css' },
  { id: '@xterm/xterm', from: 'lib/xterm.mjs', file: 'xterm.js', licence: 'LICENSE', plugins: [withoutInlineStyle] },
  { id: '@xterm/xterm', from: 'css/xterm.css', file: 'xterm.css' },
  { id: '@xterm/addon-fit', from: 'lib/addon-fit.mjs', file: 'xterm-fit.js', licence: 'LICENSE' },
];

const packages = [];
for (const { id, from, file, licence, plugins } of modules) {
  const named = id.replace('@xterm/addon', 'xterm').replace('@xterm/', '');
  await build({
    entryPoints: [`${folder(id)}/${from}`], outfile: file, minify: true, target: 'es2022', legalComments: 'inline',
    format: file.endsWith('.js') ? 'esm' : undefined, bundle: Boolean(plugins), plugins,
  });
  if (licence) copyFileSync(`${folder(id)}/${licence}`, `LICENSE.${named}.txt`);
  const { version, license } = about(id);
  packages.push({ package: id, version, licence: `${license} (LICENSE.${named}.txt)`, from, file, ...(plugins && { changed: 'styles are set by script instead of inline' }), ...sum(file) });
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
