import { memo, useState } from 'react';
import { explain } from '../api/http';
import { useClock } from '../clock';
import { useApp, useStore } from '../context';
import { type Episode, foundBy } from '../episodes';
import { sentence } from '../format';
import { called, numberOf } from '../names';
import { Ago, Empty, Icon } from './parts';

const FIRST_SHOWN = 5;

/** Episodes, each in one row; to people they are called events. */
export function EventList({ episodes, loaded, ofOne = false }: { episodes: readonly Episode[]; loaded: boolean; ofOne?: boolean }) {
  const [all, setAll] = useState(false);
  if (!loaded) return <p className="muted loading">Loading…</p>;
  if (episodes.length === 0) return <Empty title={`No events in the last ${ofOne ? '7 days' : '24 hours'}`} />;
  return (
    <>
      <ul className="card events">
        {(all ? episodes : episodes.slice(0, FIRST_SHOWN)).map((e) => (
          <EventRow key={e.id} episode={e} named={!ofOne} />
        ))}
      </ul>
      {!all && episodes.length > FIRST_SHOWN && (
        <button type="button" className="button small more" onClick={() => setAll(true)}>
          Show all {episodes.length}
        </button>
      )}
    </>
  );
}

const EventRow = memo(function EventRow({ episode, named }: { episode: Episode; named: boolean }) {
  const { session, clinic, zone } = useApp();
  const wearer = useStore('users', (s) => s.users.find((u) => u.id === episode.userId));
  const number = numberOf(wearer);
  const moment = useClock((now) => zone.moment(episode.time, now));
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const open = episode.acknowledgedAt === null;
  const sure = episode.confidence === null ? '' : `confidence\u00a0${Math.round(episode.confidence * 100)}\u00a0%`;
  const more = [sure, foundBy(episode)].filter((words) => words !== '').join(', ');
  const may = session.member.role !== 'viewer';

  const acknowledge = async () => {
    setBusy(true);
    setError(null);
    try {
      await clinic.acknowledge(episode);
    } catch (e) {
      setError(explain(e));
    } finally {
      setBusy(false);
    }
  };

  return (
    <li className={open ? 'event open' : 'event'} data-testid="event-row" data-user={episode.userId} data-type={episode.eventType}>
      <div className="event-what">
        <strong>{sentence(episode.eventType)}</strong>
        {named && <a href={`#/wearer/${encodeURIComponent(episode.userId)}`}>{wearer?.displayName ?? 'Unknown wearer'}</a>}
        {named && number !== null && <span className="muted ext">{number}</span>}
      </div>
      <div className="event-when">
        <time dateTime={new Date(episode.time).toISOString()}>{moment}</time>
        <span className="muted">
          <Ago at={episode.time} />
        </span>
      </div>
      {(episode.severity !== null || more !== '') && (
        <p className="event-more muted" data-testid="event-more" title={episode.producers.join(', ') || undefined}>
          {episode.severity && <span className={`severity ${episode.severity}`}>{episode.severity}</span>}
          {episode.severity && more && ', '}
          {more}
        </p>
      )}
      <div className="event-act">
        {!open ? (
          <span className="done" title="Acknowledged">
            <Icon name="check" />
            <span className="sr">Acknowledged </span>
            {zone.minute(episode.acknowledgedAt ?? 0)}
          </span>
        ) : may ? (
          <button type="button" className="button small" disabled={busy} onClick={() => void acknowledge()}>
            {busy ? 'Saving…' : 'Acknowledge'}
            <span className="sr">
              {' '}
              {sentence(episode.eventType)} of {called(wearer, 'an unknown wearer')}, {moment}
            </span>
          </button>
        ) : (
          <span className="muted">open</span>
        )}
      </div>
      {error && (
        <p className="event-error" role="alert">
          {error}
        </p>
      )}
    </li>
  );
});
