import { useClock } from '../clock';
import { useApp, useStore } from '../context';
import type { Alert } from '../api/types';
import { duration } from '../format';
import { called, numberOf } from '../names';
import { Ago } from './parts';
import { useTask } from './useTask';

/** What somebody has to look at; nothing at all while there is nothing. */
export function Alerts({ userId }: { userId?: string }) {
  const alerts = useStore('alerts', (s) => s.alerts);
  const shown = userId === undefined ? alerts : alerts.filter((a) => a.userId === userId);
  if (shown.length === 0) return null;
  return (
    <section id="alerts" aria-labelledby="alerts-title" data-testid="alerts">
      <div className="section-head">
        <h2 id="alerts-title" tabIndex={-1}>
          Alerts
        </h2>
        <span className="chip alert">{shown.length} open</span>
      </div>
      <ul className="card events">
        {shown.map((a) => (
          <AlertRow key={a.id} alert={a} named={userId === undefined} />
        ))}
      </ul>
    </section>
  );
}

function AlertRow({ alert, named }: { alert: Alert; named: boolean }) {
  const { session, clinic, zone } = useApp();
  const wearer = useStore('users', (s) => s.users.find((u) => u.id === alert.userId));
  const number = numberOf(wearer);
  const moment = useClock((now) => zone.moment(alert.from, now));
  const { busy, error, run } = useTask();
  const acknowledge = () =>
    run(async () => {
      await clinic.client.acknowledgeAlert(alert.id);
      await clinic.load();
    });
  return (
    <li className="event open" data-testid="alert-row" data-user={alert.userId ?? ''}>
      <div className="event-what">
        <strong>{alert.title}</strong>
        {named && wearer !== undefined && (
          <>
            <a href={`#/wearer/${encodeURIComponent(wearer.id)}`}>{wearer.displayName}</a>
            {number !== null && <span className="muted ext">{number}</span>}
          </>
        )}
      </div>
      <div className="event-when">
        <time dateTime={new Date(alert.from).toISOString()}>{moment}</time>
        <span className="muted">
          <Ago at={alert.from} />
        </span>
      </div>
      <p className="event-more muted">
        <span className={`severity ${alert.severity}`}>{alert.severity}</span>
        {alert.to > alert.from && `, for ${duration(alert.to - alert.from)}`}
      </p>
      <div className="event-act">
        {session.member.role === 'viewer' ? (
          <span className="muted">open</span>
        ) : (
          <button type="button" className="button small" disabled={busy} onClick={() => void acknowledge()}>
            {busy ? 'Saving…' : 'Acknowledge'}
            <span className="sr">
              {' '}
              {alert.title}
              {wearer !== undefined && ` of ${called(wearer, '')}`}, {moment}
            </span>
          </button>
        )}
      </div>
      {error && (
        <p className="event-error" role="alert">
          {error}
        </p>
      )}
    </li>
  );
}
