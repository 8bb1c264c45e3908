// Charts over time, by uPlot; this module and uPlot itself are fetched when the first one is drawn.
import { shortTime } from './kit.js';
import uPlot from './vendor/uplot.js';

const sheet = document.createElement('link');
sheet.rel = 'stylesheet';
sheet.href = new URL('./vendor/uplot.css', import.meta.url);
document.head.append(sheet);

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function draw(box, data, series, { format, height }) {
  const axis = { stroke: token('--faint'), grid: { stroke: token('--line'), width: 1 }, ticks: { show: false }, font: '12px system-ui, sans-serif' };
  const options = {
    width: box.clientWidth,
    height,
    padding: [8, 18, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    scales: { y: { range: (_, least, most) => [0, Math.max(most * 1.1, 1)] } },
    axes: [
      { ...axis, grid: { show: false }, values: '{HH}:{mm}', space: 70, size: 28 },
      { ...axis, size: 54, values: (_, ticks) => ticks.map((tick) => (format ? format(tick) : tick)), space: 36, incrs: format ? undefined : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000] },
    ],
    series: [{}, ...series.map(({ name, colour, filled, bars }) => ({
      label: name, stroke: token(colour), width: 1.75, points: { show: false }, spanGaps: true,
      fill: filled ? `color-mix(in srgb, ${token(colour)} 14%, transparent)` : undefined,
      paths: bars ? uPlot.paths.bars({ size: [0.7, 24], radius: 0.25 }) : uPlot.paths.linear(),
    }))],
    plugins: [hint(series, format)],
  };
  return new uPlot(options, data, box);
}

function hint(series, format) {
  let tip;
  return {
    hooks: {
      init: (plot) => { tip = document.createElement('div'); tip.className = 'chart-tip'; tip.hidden = true; plot.over.append(tip); },
      setCursor: (plot) => {
        const { idx, left } = plot.cursor;
        tip.hidden = idx == null || left < 0;
        if (tip.hidden) return;
        const at = shortTime(plot.data[0][idx] * 1000);
        tip.textContent = [at, ...series.map(({ name }, index) => { const value = plot.data[index + 1][idx]; return `${name} ${value == null ? '–' : format ? format(value) : value}`; })].join('  ·  ');
        tip.style.left = `${Math.min(left + 10, plot.over.clientWidth - tip.offsetWidth)}px`;
      },
    },
  };
}
