import { memo } from 'react';
import type { Gateway } from '../api/types';
import { useClock } from '../clock';
import { useStore } from '../context';
import { bytes, count, DASH, duration, sentence } from '../format';
import { gatewayState, reportedAt, type BufferSample, type GatewayState } from '../gateway';
import { isLost } from '../live/store';
import { Ago, Icon } from './parts';

const WORDS: Record<GatewayState, { chip: string; says: string }> = {
  delivering: { chip: 'delivering', says: 'Readings reach the cloud within seconds.' },
  draining: { chip: 'draining', says: 'Sending what it kept while the cloud was unreachable.' },
  held: { chip: 'waiting', says: 'The cloud has not yet confirmed older readings. They stay on the gateway until it does.' },
  buffering: { chip: 'buffering', says: 'Cloud unreachable. The gateway keeps every reading and sends it later; below is its last report.' },
  silent: { chip: 'no report', says: 'No report from this gateway for a while. What it holds is safe on its disk; below is its last report.' },
  unknown: { chip: 'no report yet', says: 'This gateway has not reported yet.' },
};

export const GatewayCard = memo(function GatewayCard({ gateway }: { gateway: Gateway }) {
  const history = useStore('gateways', (s) => s.bufferHistory(gateway.id));
  const connected = useStore('connection', (s) => !isLost(s.connection));
  const state = useClock((now) => gatewayState(gateway, history, now));
  // Without a connection of our own, nothing true can be said about the gateway's.
  const { chip, says } = connected ? WORDS[state] : { chip: 'not known', says: 'This page has no connection; below is the last report it has seen.' };
  const { buffer, clock } = gateway;
  const oldest = useClock((now) => {
    if (buffer?.oldestAt == null || buffer.frames + buffer.batches === 0) return DASH;
    // In the ordinary flow what was oldest at the report is in the cloud by now; otherwise it grows older.
    return duration((state === 'delivering' ? reportedAt(gateway, history, now) : now) - buffer.oldestAt);
  });
  return (
    <li className={`card gateway ${connected ? state : ''}`} data-testid="gateway-card" data-gateway={gateway.id} data-state={state}>
      <div className="gateway-head">
        <Icon name="box" />
        <h3>{gateway.name}</h3>
        <span className={`chip ${connected ? state : ''}`}>{chip}</span>
      </div>
      <p className="gateway-says" role="status">
        {says}
      </p>
      <div data-testid="gateway-buffer" data-gateway={gateway.id} data-frames={buffer?.frames}>
        {buffer ? (
          <>
            <BufferLine history={history} />
            <dl className="figures">
              <div>
                <dt>Frames</dt>
                <dd>{count(buffer.frames)}</dd>
              </div>
              <div>
                <dt>Batches</dt>
                <dd>{count(buffer.batches)}</dd>
              </div>
              <div>
                <dt>On disk</dt>
                <dd>{bytes(buffer.bytes)}</dd>
              </div>
              <div>
                <dt>Oldest</dt>
                <dd>{oldest}</dd>
              </div>
            </dl>
          </>
        ) : (
          <p className="muted">Buffer: not reported</p>
        )}
      </div>
      {LEVELS[gateway.level ?? ''] && <p className="gateway-note warn">{LEVELS[gateway.level ?? '']}</p>}
      {gateway.notes.map((note) => (
        <p key={note} className="gateway-note muted">
          {note}
        </p>
      ))}
      <p className="gateway-foot muted">
        {clock && (
          <span className={clock.uncertaintyMs === null ? 'warn' : ''}>
            <Icon name="clock" />
            {clockWords(clock)}
          </span>
        )}
        <span>{gateway.lastSeenAt === null ? 'never seen' : <>report <Ago at={gateway.lastSeenAt} /></>}</span>
        {gateway.version && <span>{gateway.version}</span>}
      </p>
    </li>
  );
});

const LEVELS: Record<string, string> = {
  soft_limit: 'Its disk is filling up: waveforms are no longer kept.',
  hard_limit: 'Its disk is full: it takes events only. The wearables keep their readings for now.',
};

const SOURCES: Record<string, string> = {
  timedate1: 'network time',
  kernel: 'kernel',
  adjtimex: 'kernel',
  bridge: 'cloud time',
  https: 'web time',
  system: 'system, trusted',
  trusted: 'system, trusted',
  trust_system: 'system, trusted',
};

function clockWords(clock: { source: string; uncertaintyMs: number | null }): string {
  if (clock.source === '' || clock.source === 'none' || clock.source === 'unknown') return 'clock not set: readings wait for the time';
  const source = SOURCES[clock.source] ?? sentence(clock.source).toLowerCase();
  if (clock.uncertaintyMs === null) return `clock: ${source}`;
  return `clock: ${source}, ±${clock.uncertaintyMs < 10 ? clock.uncertaintyMs.toFixed(1).replace(/\.0$/, '') : count(clock.uncertaintyMs)} ms`;
}

const SPAN_MS = 5 * 60_000;

/** The buffer's size over the last minutes: one sees it fill and drain. */
const BufferLine = memo(function BufferLine({ history }: { history: readonly BufferSample[] }) {
  const last = history[history.length - 1];
  if (!last || history.length < 2) return null;
  const from = last.t - SPAN_MS;
  const shown = history.filter((s) => s.t >= from);
  const most = Math.max(50, ...shown.map((s) => s.frames));
  const x = (s: BufferSample) => (((s.t - from) / SPAN_MS) * 100).toFixed(1);
  const y = (s: BufferSample) => (27 - (s.frames / most) * 25).toFixed(1);
  // Steps, not slopes: between two reports the size is not known.
  const line = shown.map((s, i) => (i === 0 ? y(s) : `H${x(s)}V${y(s)}`)).join('');
  const start = x(shown[0] ?? last);
  return (
    <svg className="spark buffer" viewBox="0 0 100 28" preserveAspectRatio="none" aria-hidden="true">
      <path className="area" d={`M${start} 28V${line}V28Z`} />
      <path d={`M${start} ${line}`} />
    </svg>
  );
});
