/** One reading type over time: the mean with its min–max band, breaks where there was nothing, and gaps with reasons. */
import { useEffect, useRef } from 'react';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import type { Gap } from '../api/types';
import type { Columns } from './gaps';

export interface ChartProps {
  columns: Columns;
  gaps: readonly Gap[];
  from: number;
  to: number;
  colour: string;
  unit: string;
  timeZone: string;
  label: string;
  height: number;
  minRange: number;
  /** Charts of one view share a crosshair. */
  sync: string;
  format(value: number): string;
}

interface Palette {
  axis: string;
  grid: string;
  gap: string;
  line: string;
  band: string;
}

/** Colours are the style sheet's, so that the canvas follows light and dark. */
function palette(element: HTMLElement, colour: string): Palette {
  const style = getComputedStyle(element);
  const read = (name: string) => style.getPropertyValue(name).trim();
  return {
    axis: read('--muted'),
    grid: read('--grid'),
    gap: read('--gap'),
    line: read(colour),
    band: read(`${colour}-soft`),
  };
}

export function Chart(props: ChartProps & { dark: boolean }) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const { columns, from, to, gaps, dark, colour, timeZone, height, label, sync } = props;

  useEffect(() => {
    const element = host.current;
    if (!element) return;
    const colours = palette(element, colour);
    const width = Math.max(200, element.clientWidth);
    const font = '12px system-ui, sans-serif';
    const created = new uPlot(
      {
        width,
        height,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), timeZone),
        padding: [6, 12, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: sync }, drag: { x: false, y: false }, points: { size: 7 } },
        scales: {
          x: { time: true, range: () => [latest.current.from / 1000, latest.current.to / 1000] },
          y: { range: (_u, low, high) => yRange(low, high, latest.current.minRange) },
        },
        axes: [
          {
            stroke: colours.axis,
            font,
            grid: { stroke: colours.grid, width: 1 },
            ticks: { show: false },
            space: 70,
            size: 38,
            gap: 4,
            values: TIME_VALUES,
          },
          {
            stroke: colours.axis,
            font,
            size: 48,
            grid: { stroke: colours.grid, width: 1 },
            ticks: { show: false },
            space: 26,
          },
        ],
        series: [
          {},
          { label: 'max', stroke: 'transparent', points: { show: false }, spanGaps: false },
          { label: 'min', stroke: 'transparent', points: { show: false }, spanGaps: false },
          { label: 'value', stroke: colours.line, width: 1.75, points: { show: true, filter: lonely, size: 4, fill: colours.line }, spanGaps: false },
          { label: 'not yet stored', stroke: colours.line, width: 1.75, dash: [3, 3], points: { show: false }, spanGaps: false },
        ],
        bands: [{ series: [1, 2], fill: colours.band }],
        hooks: {
          drawClear: [(u) => drawGaps(u, latest.current.gaps, colours)],
          setCursor: [(u) => readout(u, latest.current, element)],
        },
      },
      data(latest.current.columns),
      element,
    );
    plot.current = created;
    const observer = new ResizeObserver(() => {
      const w = element.clientWidth;
      if (w > 0 && w !== created.width) created.setSize({ width: w, height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      created.destroy();
      plot.current = null;
    };
  }, [dark, colour, timeZone, height, sync]);

  useEffect(() => {
    plot.current?.setData(data(columns), true);
  }, [columns, from, to, gaps]);

  return (
    <div className="chart" role="img" aria-label={label}>
      <p className="chart-readout" aria-hidden="true" />
      <div ref={host} className="chart-host" />
    </div>
  );
}

function data(c: Columns): uPlot.AlignedData {
  return [c.t, c.max, c.min, c.value, c.pending] as uPlot.AlignedData;
}

function yRange(low: number | null, high: number | null, minRange: number): [number, number] {
  if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return [0, minRange];
  const middle = (low + high) / 2;
  const half = Math.max(high - low, minRange) * 0.56;
  // Quantities that cannot be negative are not given a negative axis.
  return [low >= 0 ? Math.max(0, middle - half) : middle - half, middle + half];
}

/** A dot only for a point with a break on either side: as a line it would be invisible. */
const lonely: uPlot.Series.Points.Filter = (u, seriesIndex) => {
  const values = u.data[seriesIndex] ?? [];
  const alone: number[] = [];
  for (let i = 0; i < values.length; i++) {
    if (values[i] != null && values[i - 1] == null && values[i + 1] == null) alone.push(i);
  }
  return alone;
};

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86_400;

/** 24-hour times, and the day where it changes. */
const TIME_VALUES: uPlot.Axis.Values = [
  [DAY, '{D} {MMM}', null, null, null, null, null, null, 1],
  [HOUR, '{HH}:{mm}', '\n{D} {MMM}', null, '\n{D} {MMM}', null, null, null, 1],
  [MINUTE, '{HH}:{mm}', '\n{D} {MMM}', null, '\n{D} {MMM}', null, null, null, 1],
  [1, '{HH}:{mm}:{ss}', '\n{D} {MMM}', null, '\n{D} {MMM}', null, null, null, 1],
];

function drawGaps(u: uPlot, gaps: readonly Gap[], colours: Palette): void {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.fillStyle = colours.gap;
  for (const gap of gaps) {
    if (gap.from === null || gap.to === null) continue;
    const x0 = u.valToPos(gap.from / 1000, 'x', true);
    const x1 = u.valToPos(gap.to / 1000, 'x', true);
    ctx.fillRect(x0, bbox.top, Math.max(2, x1 - x0), bbox.height);
  }
  ctx.restore();
}

function readout(u: uPlot, props: ChartProps, host: HTMLElement): void {
  const line = host.parentElement?.querySelector('.chart-readout');
  if (!line) return;
  const i = u.cursor.idx;
  const t = i == null ? undefined : u.data[0][i];
  if (i == null || t === undefined) {
    line.textContent = '';
    return;
  }
  const v = props.columns.value[i] ?? null;
  const p = props.columns.pending[i] ?? null;
  const low = props.columns.min[i] ?? null;
  const high = props.columns.max[i] ?? null;
  const at = new Intl.DateTimeFormat('en-GB', {
    timeZone: props.timeZone,
    day: 'numeric',
    month: 'short',
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
    hourCycle: 'h23',
  }).format(t * 1000);
  if (v === null && p === null) {
    line.textContent = `${at}  no reading`;
    return;
  }
  const spread = v !== null && low !== null && high !== null && high > low ? `  (${props.format(low)} to ${props.format(high)})` : '';
  line.textContent = `${at}  ${props.format(v ?? p ?? 0)} ${props.unit}${spread}${v === null ? '  not yet stored' : ''}`;
}
