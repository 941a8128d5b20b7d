import { useDeferredValue, useMemo, useState } from 'react';
import { useClock } from '../clock';
import { useApp, useStore } from '../context';
import { isStale } from '../format';
import { TILE_TYPES } from '../clinic';
import { EventList } from './EventList';
import { GatewayCard } from './GatewayCard';
import { Empty, Icon } from './parts';
import { AddedAtBoxes } from './AddedAtBoxes';
import { Alerts } from './Alerts';
import { WearerTile } from './WearerTile';

/** From so many wearers on, finding one by eye takes long. */
const SEARCH_FROM = 7;

export function Overview() {
  const users = useStore('users', (s) => s.users);
  const loaded = useStore('users', (s) => s.loaded);
  const gateways = useStore('gateways', (s) => s.gateways);
  const episodes = useStore('events', (s) => s.episodes);
  const [search, setSearch] = useState('');
  const wanted = useDeferredValue(search.trim().toLowerCase());
  const shown = useMemo(
    () => users.filter((u) => wanted === '' || u.displayName.toLowerCase().includes(wanted) || u.externalId.toLowerCase().includes(wanted)),
    [users, wanted],
  );
  const alerts = useStore('alerts', (s) => s.alerts.length);
  const open = episodes.reduce((n, e) => n + (e.acknowledgedAt === null ? 1 : 0), 0);

  return (
    <div className="overview">
      <nav className="jump" aria-label="Parts of this page">
        <Jump to="wearers">Wearers {loaded && <b>{users.length}</b>}</Jump>
        {alerts > 0 && (
          <Jump to="alerts">
            Alerts <b className="alert">{alerts} open</b>
          </Jump>
        )}
        <Jump to="events">Events {loaded && <b className={open > 0 ? 'alert' : ''}>{open > 0 ? `${open} open` : episodes.length}</b>}</Jump>
        <Jump to="gateways">Gateways {loaded && <b>{gateways.length}</b>}</Jump>
      </nav>
      <section id="wearers" className="wearers" aria-labelledby="wearers-title">
        <div className="section-head">
          <h1 id="wearers-title" tabIndex={-1}>
            Wearers
          </h1>
          {loaded && users.length > 0 && <LiveCount />}
          {users.length >= SEARCH_FROM && (
            <label className="search">
              <Icon name="search" />
              <span className="sr">Find a wearer</span>
              <input type="search" placeholder="Find a wearer" value={search} onChange={(e) => setSearch(e.target.value)} />
            </label>
          )}
          <p className="legend">
            <span className="mark" aria-hidden="true" /> not yet stored
          </p>
        </div>
        <AddedAtBoxes />
        {!loaded ? (
          <ul className="tiles" aria-busy="true" aria-label="Loading wearers">
            {[0, 1, 2, 3].map((n) => (
              <li key={n} className="card tile skeleton" />
            ))}
          </ul>
        ) : users.length === 0 ? (
          <Empty title="No wearers yet">An administrator adds wearers and assigns devices to them; they appear here at once.</Empty>
        ) : shown.length === 0 ? (
          <Empty title={`No wearer’s name or number contains “${search.trim()}”`} />
        ) : (
          <ul className="tiles">
            {shown.map((u) => (
              <WearerTile key={u.id} user={u} />
            ))}
          </ul>
        )}
      </section>
      <aside className="side" aria-label="Alerts, events and gateways">
        <Alerts />
        <section id="events" aria-labelledby="events-title">
          <div className="section-head">
            <h2 id="events-title" tabIndex={-1}>
              Events
            </h2>
            {open > 0 && <span className="chip alert">{open} open</span>}
            <ZoneNote />
          </div>
          <EventList episodes={episodes} loaded={loaded} />
        </section>
        <section id="gateways" aria-labelledby="gateways-title">
          <div className="section-head">
            <h2 id="gateways-title" tabIndex={-1}>
              Gateways
            </h2>
          </div>
          {loaded && gateways.length === 0 ? (
            <Empty title="No gateway yet">The box that collects the readings appears here once it is enrolled.</Empty>
          ) : (
            <ul className="gateways">
              {gateways.map((g) => (
                <GatewayCard key={g.id} gateway={g} />
              ))}
            </ul>
          )}
        </section>
      </aside>
    </div>
  );
}

function Jump({ to, children }: { to: string; children: React.ReactNode }) {
  return (
    <button
      type="button"
      onClick={() => {
        // Not a link: the address' hash is the page's route.
        document.getElementById(to)?.scrollIntoView({ block: 'start' });
        document.getElementById(`${to}-title`)?.focus({ preventScroll: true });
      }}
    >
      {children}
    </button>
  );
}

function ZoneNote() {
  const { zone } = useApp();
  return <span className="muted zone">{zone.name.replace(/_/g, ' ')} time</span>;
}

function LiveCount() {
  const { store } = useApp().clinic;
  const text = useClock((now) => {
    let live = 0;
    for (const u of store.users) {
      if (TILE_TYPES.some((t) => {
        const r = store.reading(u.id, t);
        return r !== undefined && !isStale(r.timeMs, now);
      })) live++;
    }
    return `${live} of ${store.users.length} live`;
  });
  return <span className="muted count">{text}</span>;
}
