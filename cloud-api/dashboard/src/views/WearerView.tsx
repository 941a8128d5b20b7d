import { useEffect, useId, useMemo, useState } from 'react';
import { explain } from '../api/http';
import type { ClinicEvent, Gap, Readings } from '../api/types';
import { Chart } from '../charts/Chart';
import { coarsen, columns, gapThresholdMs } from '../charts/gaps';
import { TILE_TYPES } from '../clinic';
import { now, useClock } from '../clock';
import { useApp, useStore } from '../context';
import { duration, gapReason, isStale, typeName, unit, value } from '../format';
import { useIsDark } from '../theme';
import { Alerts } from './Alerts';
import { DeviceLine } from './DeviceLine';
import { EventList } from './EventList';
import { Metric } from './Metric';
import { Empty, ErrorBox, Icon } from './parts';
import { useLoaded } from './useTask';

const WINDOWS = [
  { id: '15m', label: '15 min', ms: 15 * 60_000, reloadMs: 30_000 },
  { id: '1h', label: '1 h', ms: 3_600_000, reloadMs: 60_000 },
  { id: '24h', label: '24 h', ms: 24 * 3_600_000, reloadMs: 120_000 },
  { id: '7d', label: '7 d', ms: 7 * 24 * 3_600_000, reloadMs: 300_000 },
] as const;
type Window = (typeof WINDOWS)[number];

/** Beyond the types of the tiles, those that a reference plan delivers; shown once there is a reading of them. */
const MORE_TYPES = ['spo2', 'rr_interval', 'ambient_temperature', 'activity_counts', 'steps'] as const;

const COLOURS: Record<string, string> = { heart_rate: '--hr', skin_temperature: '--temp', eda: '--eda' };
const MIN_RANGE: Record<string, number> = {
  heart_rate: 20,
  skin_temperature: 1,
  ambient_temperature: 2,
  eda: 2,
  spo2: 6,
  rr_interval: 200,
  activity_counts: 10,
  steps: 10,
};

export default function WearerView({ userId }: { userId: string }) {
  const { clinic, zone } = useApp();
  const user = useStore('users', (s) => s.users.find((u) => u.id === userId));
  const loaded = useStore('users', (s) => s.loaded);
  const devices = useStore(`devices|${userId}`, (s) => s.devicesOfUser(userId));
  const [span, setSpan] = useState<Window>(WINDOWS[0]);
  const group = useId();
  const known = user !== undefined;

  // Opened by its address, there was no tile that asked for the last minutes.
  useEffect(() => {
    if (known) clinic.wantHistory(userId);
  }, [clinic, userId, known]);

  if (!user) {
    return (
      <div className="detail">
        <BackLink />
        {loaded ? <Empty title="No such wearer">It may belong to another clinic, or have been removed.</Empty> : <p className="loading">Loading…</p>}
      </div>
    );
  }
  return (
    <div className="detail">
      <BackLink />
      <div className="detail-head card">
        <div>
          <h1>{user.displayName}</h1>
          <p className="muted">
            {user.externalId}
            {user.timeZone !== zone.name && ` · lives at ${user.timeZone.replace(/_/g, ' ')} time`}
          </p>
          <ul className="device-lines">
            {devices.length === 0 ? <li className="muted">No device assigned</li> : devices.map((d) => <DeviceLine key={d.id} device={d} />)}
          </ul>
        </div>
        <div className="metrics">
          {TILE_TYPES.map((t) => (
            <Metric key={t} userId={userId} readingType={t} />
          ))}
        </div>
      </div>
      <div className="detail-bar">
        <div className="segments" role="radiogroup" aria-label="Time shown">
          {WINDOWS.map((w) => (
            <label key={w.id} className={w === span ? 'on' : ''}>
              <input type="radio" name={group} checked={w === span} onChange={() => setSpan(w)} />
              {w.label}
            </label>
          ))}
        </div>
        <p className="legend">
          <span className="key band" aria-hidden="true" /> range <span className="key dashed" aria-hidden="true" /> not yet stored{' '}
          <span className="key gap" aria-hidden="true" /> gap with a known reason
        </p>
        <p className="muted zone">{zone.name.replace(/_/g, ' ')} time</p>
      </div>
      <div className="detail-body">
        <Charts key={span.id} userId={userId} name={user.displayName} span={span} />
        <Events userId={userId} />
      </div>
    </div>
  );
}

function BackLink() {
  return (
    <a className="back" href="#/">
      <Icon name="back" />
      All wearers
    </a>
  );
}

function Charts({ userId, name, span }: { userId: string; name: string; span: Window }) {
  const { clinic, zone } = useApp();
  const [gaps, setGaps] = useState<readonly Gap[]>([]);
  const [gapError, setGapError] = useState<string | null>(null);
  const extra = useStore('users', (s) => MORE_TYPES.filter((t) => s.reading(userId, t) !== undefined).join(' '));

  useEffect(() => {
    const abort = new AbortController();
    const load = () => {
      const to = now();
      clinic.client.gaps({ userId, from: to - span.ms, to }, abort.signal).then(
        (g) => {
          setGaps(g);
          setGapError(null);
        },
        (e: unknown) => {
          if (!abort.signal.aborted) setGapError(explain(e));
        },
      );
    };
    load();
    const timer = setInterval(load, span.reloadMs);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [clinic, userId, span]);

  const { value: known } = useLoaded(() => clinic.client.readingTypes());
  const types = [...TILE_TYPES, ...(extra ? extra.split(' ') : [])];
  const intervalS = (type: string) => known?.find((one) => one.name === type)?.intervalS ?? 1;
  return (
    <div className="charts">
      {types.map((t) => (
        <TypeChart key={t} userId={userId} name={name} readingType={t} intervalS={intervalS(t)} span={span} gaps={gaps} />
      ))}
      <section className="card gaps" aria-labelledby="gaps-title">
        <h2 id="gaps-title">Gaps</h2>
        {gapError ? (
          <ErrorBox error={gapError} />
        ) : gaps.length === 0 ? (
          <p className="muted">None recorded in this time.</p>
        ) : (
          <ul>
            {gaps.slice(0, 50).map((g, i) => (
              <li key={i}>
                <span className="gap-time">
                  {g.from === null ? 'time unknown' : zone.moment(g.from, now())}
                  {g.from !== null && g.to !== null && `, ${duration(g.to - g.from)}`}
                </span>
                <span>{gapReason(g.reason)}</span>
              </li>
            ))}
            {gaps.length > 50 && <li className="muted">and {gaps.length - 50} more</li>}
          </ul>
        )}
      </section>
    </div>
  );
}

function TypeChart(props: { userId: string; name: string; readingType: string; intervalS: number; span: Window; gaps: readonly Gap[] }) {
  const { userId, name, readingType, intervalS, span, gaps } = props;
  const { clinic, zone } = useApp();
  const dark = useIsDark();
  const [stored, setStored] = useState<(Readings & { points: Readings['points']; asked: number }) | null>(null);
  const [error, setError] = useState<string | null>(null);
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    const abort = new AbortController();
    // No more points than a wide screen has columns for.
    const asked = Math.min(1_500, Math.max(300, Math.round(innerWidth)));
    const load = () => {
      const to = now();
      clinic.client.readings({ userId, readingType, from: to - span.ms, to, points: asked }, abort.signal).then(
        (r) => {
          setStored({ ...r, asked });
          setError(null);
        },
        (e: unknown) => {
          if (!abort.signal.aborted) setError(explain(e));
        },
      );
    };
    load();
    const timer = setInterval(load, span.reloadMs);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [clinic, userId, readingType, span, attempt]);

  // The chart moves in steps of a pixel or so: each second for a quarter of an hour, every few minutes for a week.
  const step = Math.max(1_000, span.ms / 1_000);
  const to = useClock((n) => Math.ceil(n / step) * step);
  const series = clinic.store.series(userId, readingType);
  const version = useStore(`${userId}|${readingType}`, (s) => (span.ms <= 3_600_000 ? s.series(userId, readingType).version : 0));
  const from = to - span.ms;
  const cols = useMemo(
    () =>
      columns(
        stored?.points ?? [],
        coarsen({ t: series.t, v: series.v, firstPending: series.firstPending() }, span.ms / (stored?.asked ?? 500)),
        from,
        to,
        gapThresholdMs(intervalS, span.ms, stored?.asked ?? 500),
      ),
    // The series changes in place; its version stands for it.
    [stored, series, version, from, to, intervalS, span.ms],
  );
  const current = useStore(`${userId}|${readingType}`, (s) => s.reading(userId, readingType));
  const timeMs = current?.timeMs;
  const fresh = useClock((n) => timeMs !== undefined && !isStale(timeMs, n));
  const signs = unit(stored?.unit || current?.unit || '');
  const summary = useMemo(() => summarise(cols.min, cols.max, readingType), [cols, readingType]);
  const title = typeName(readingType);

  return (
    <section className="card chart-card" aria-label={title} data-testid={`chart-${readingType}`}>
      <div className="chart-head">
        <h2>
          {title} {!fresh && <span className="unit">{signs}</span>}
        </h2>
        {fresh && current && (
          <p className="chart-now">
            <span className="number">{value(current.value, readingType)}</span> <span className="unit">{signs}</span>
          </p>
        )}
        {summary && <p className="muted">{summary}</p>}
      </div>
      {error && <ErrorBox error={error} onRetry={() => setAttempt((n) => n + 1)} />}
      {!stored && !error ? (
        <p className="muted loading chart-wait">Loading…</p>
      ) : cols.t.length === 0 ? (
        <p className="muted chart-wait">No readings in the last {span.label}.</p>
      ) : (
        <Chart
          columns={cols}
          gaps={gaps}
          from={from}
          to={to}
          colour={COLOURS[readingType] ?? '--other'}
          unit={signs}
          timeZone={zone.name}
          label={`${title} of ${name}, last ${span.label}${summary ? `: ${summary} ${signs}` : ''}`}
          height={readingType in COLOURS ? 180 : 130}
          minRange={MIN_RANGE[readingType] ?? 1}
          sync={`wearer-${userId}`}
          dark={dark}
          format={(v) => value(v, readingType)}
        />
      )}
    </section>
  );
}

function summarise(min: readonly (number | null)[], max: readonly (number | null)[], readingType: string): string {
  let low = Infinity;
  let high = -Infinity;
  for (const v of min) if (v !== null && v < low) low = v;
  for (const v of max) if (v !== null && v > high) high = v;
  return low <= high ? `${value(low, readingType)} to ${value(high, readingType)}` : '';
}

/** This wearer's events of the last week; those that come meanwhile are the store's. */
function Events({ userId }: { userId: string }) {
  const { clinic } = useApp();
  const recent = useStore('events', (s) => s.episodes);
  const [older, setOlder] = useState<readonly ClinicEvent[] | null>(null);
  const [error, setError] = useState<string | null>(null);
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    let gone = false;
    clinic.client.events({ userId, from: now() - 7 * 86_400_000, limit: 100 }).then(
      (e) => {
        if (gone) return;
        setOlder(e);
        setError(null);
        // Into the store too, where an acknowledgement updates them.
        clinic.store.addEvents(e);
      },
      (e: unknown) => {
        if (!gone) setError(explain(e));
      },
    );
    return () => {
      gone = true;
    };
  }, [clinic, userId, attempt]);

  const episodes = useMemo(() => recent.filter((e) => e.userId === userId), [recent, userId]);
  return (
    <section className="side" aria-labelledby="wearer-events">
      <Alerts userId={userId} />
      <div className="section-head">
        <h2 id="wearer-events">Events</h2>
        <span className="muted">last 7 days</span>
      </div>
      {error && <ErrorBox error={error} onRetry={() => setAttempt((n) => n + 1)} />}
      <EventList episodes={episodes} loaded={older !== null || error !== null} ofOne />
    </section>
  );
}
