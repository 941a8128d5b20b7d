import { memo, useState } from 'react';
import { explain } from '../api/http';
import type { ClinicEvent } from '../api/types';
import { useClock } from '../clock';
import { useApp, useStore } from '../context';
import { sentence } from '../format';
import { eventId } from '../live/store';
import { Ago, Empty, Icon } from './parts';

const FIRST_SHOWN = 5;

export function EventList({ events, loaded, ofOne = false }: { events: readonly ClinicEvent[]; loaded: boolean; ofOne?: boolean }) {
  const [all, setAll] = useState(false);
  if (!loaded) return <p className="muted loading">Loading…</p>;
  if (events.length === 0) return <Empty title={`No events in the last ${ofOne ? '7 days' : '24 hours'}`} />;
  return (
    <>
      <ul className="card events">
        {(all ? events : events.slice(0, FIRST_SHOWN)).map((e) => (
          <EventRow key={eventId(e)} event={e} named={!ofOne} />
        ))}
      </ul>
      {!all && events.length > FIRST_SHOWN && (
        <button type="button" className="button small more" onClick={() => setAll(true)}>
          Show all {events.length}
        </button>
      )}
    </>
  );
}

const EventRow = memo(function EventRow({ event, named }: { event: ClinicEvent; named: boolean }) {
  const { session, clinic, zone } = useApp();
  const name = useStore('users', (s) => s.users.find((u) => u.id === event.userId)?.displayName) ?? 'Unknown wearer';
  const moment = useClock((now) => zone.moment(event.time, now));
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const open = event.acknowledgedAt === null;
  const may = session.member.role !== 'viewer';

  const acknowledge = async () => {
    setBusy(true);
    setError(null);
    try {
      await clinic.acknowledge(event);
    } catch (e) {
      setError(explain(e));
    } finally {
      setBusy(false);
    }
  };

  return (
    <li className={open ? 'event open' : 'event'} data-testid="event-row" data-user={event.userId} data-type={event.eventType}>
      <div className="event-what">
        <strong>{sentence(event.eventType)}</strong>
        {named && <a href={`#/wearer/${encodeURIComponent(event.userId)}`}>{name}</a>}
      </div>
      <div className="event-when">
        <time dateTime={new Date(event.time).toISOString()}>{moment}</time>
        <span className="muted">
          <Ago at={event.time} />
        </span>
      </div>
      {(event.severity !== null || event.confidence !== null) && (
        <p className="event-more muted">
          {event.severity && <span className={`severity ${event.severity}`}>{event.severity}</span>}
          {event.severity && event.confidence !== null && ', '}
          {event.confidence !== null && `confidence\u00a0${Math.round(event.confidence * 100)}\u00a0%`}
        </p>
      )}
      <div className="event-act">
        {!open ? (
          <span className="done" title="Acknowledged">
            <Icon name="check" />
            <span className="sr">Acknowledged </span>
            {zone.minute(event.acknowledgedAt ?? 0)}
          </span>
        ) : may ? (
          <button type="button" className="button small" disabled={busy} onClick={() => void acknowledge()}>
            {busy ? 'Saving…' : 'Acknowledge'}
            <span className="sr">
              {' '}
              {sentence(event.eventType)} of {name}, {moment}
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
