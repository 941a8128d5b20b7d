import { memo } from 'react';
import { SPARK_SPAN_MS } from '../clinic';
import { useClock } from '../clock';
import { useStore } from '../context';
import { DASH, duration, isStale, typeName, unit, value } from '../format';
import { sparkPath } from '../live/series';

/** Units of the types on tiles, for the time before the first reading tells them. */
const EXPECTED_UNIT: Record<string, string> = { heart_rate: 'bpm', skin_temperature: '°C', eda: 'µS' };
/** Names that fit three to a row on a phone. */
const SHORT_NAME: Record<string, string> = { skin_temperature: 'Skin temp.' };
/** A sparkline's least height in the type's unit: without it, noise would look like news. */
const MIN_RANGE: Record<string, number> = { heart_rate: 20, skin_temperature: 1, eda: 1.5 };

/** One live value: its number, whether it is stored yet, and its last minutes. */
export const Metric = memo(function Metric({ userId, readingType }: { userId: string; readingType: string }) {
  const current = useStore(`${userId}|${readingType}`, (s) => s.reading(userId, readingType));
  const timeMs = current?.timeMs;
  const age = useClock((now) => (timeMs !== undefined && isStale(timeMs, now) ? duration(now - timeMs) : ''));
  const shown = current && age === '' ? value(current.value, readingType) : DASH;
  const signs = unit(current?.unit || EXPECTED_UNIT[readingType] || '');
  const pending = current !== undefined && age === '' && !current.stored;
  return (
    <div className={`metric ${readingType}${age ? ' stale' : ''}`}>
      <p className="metric-name">
        <span className="long">{typeName(readingType)}</span>
        <span className="short">{SHORT_NAME[readingType] ?? typeName(readingType)}</span>
      </p>
      <p className="metric-value">
        <span
          className="number"
          data-testid={`live-${readingType}`}
          data-user={userId}
          data-time-ms={timeMs}
          data-stored={current ? current.stored : undefined}
        >
          {shown === DASH ? <><span aria-hidden="true">{DASH}</span><span className="sr">no current value</span></> : shown}
        </span>
        <span className="unit">{signs}</span>
        {pending && (
          <span className="mark" title="Not yet stored">
            <span className="sr">not yet stored</span>
          </span>
        )}
      </p>
      {age && current ? (
        <p className="metric-age">
          {value(current.value, readingType)}, {age} ago
        </p>
      ) : (
        <Sparkline userId={userId} readingType={readingType} />
      )}
    </div>
  );
});

const WIDTH = 100;
const HEIGHT = 28;

const Sparkline = memo(function Sparkline({ userId, readingType }: { userId: string; readingType: string }) {
  // The version is what is subscribed to; the series itself changes in place.
  useStore(`${userId}|${readingType}`, (s) => s.series(userId, readingType).version);
  const series = useStore(`${userId}|${readingType}`, (s) => s.series(userId, readingType));
  const end = series.t[series.t.length - 1];
  const path = end === undefined ? '' : sparkPath(series, end, SPARK_SPAN_MS, WIDTH, HEIGHT, MIN_RANGE[readingType] ?? 1);
  return (
    <svg className="spark" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
      {path && <path d={path} />}
    </svg>
  );
});
